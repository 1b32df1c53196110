//! Signals and exits on Unix.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use nix::sys::signal::Signal;
use nix::sys::signal::{self, SigHandler, SigSet, signal};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, alarm, mkfifo, pause};
use taskfork::Backend;

use crate::program::{fork, has_threads, say, scratch, serve_drained, serve_unresponsive, up};

/// The kinds of workers on this system.
pub const BACKENDS: &[&str] = &["fork", "spawn", "thread"];

/// Returns the backend of this name, or `None` for threads.
pub fn backend(name: &str) -> Option<Backend> {
    match name {
        "spawn" => Some(Backend::Spawn),
        "thread" => None,
        _ => Some(Backend::Fork),
    }
}

/// The log's text for a process that was killed.
pub const KILLED: &str = "killed by signal 9";
/// The `Debug` text of the exit of a process that was killed.
pub const KILLED_EXIT: &str = "Signal(9)";
/// The log's text for a process that has not enabled graceful stop and gets a stop request.
pub const TERMINATED: &str = "killed by signal 15";
/// The log's text for a process that is aborted because its heartbeats stopped.
pub const ABORTED: &str = "killed by signal 6";
/// The log lines, in this order, about a process that the test has stopped by SIGSTOP, so that it sends no heartbeats.
pub const IS_ABORTED: &[&str] = &["has sent no heartbeat in time, aborting it", "did not stop in time, killing it"];
/// The system's text for a path that does not exist.
#[cfg(not(target_os = "linux"))]
pub const NOT_FOUND: &str = "No such file or directory";

/// A timeout that a process misses only if it waits on purpose. A normal start takes less time.
pub const SOON: Duration = Duration::from_secs(2);

/// Returns `None`, because on Unix the test can always interrupt a process group.
pub fn no_terminal() -> Option<&'static str> {
    None
}

/// A process group: a process and those that it starts.
pub struct Group(Pid);

impl Group {
    pub fn start(command: &mut Command) -> (Child, Group) {
        let child = command.process_group(0).spawn().expect("the program");
        let leader = Pid::from_raw(child.id() as i32);
        (child, Group(leader))
    }

    /// Interrupts the parent and its workers, as a terminal does for ^C.
    pub fn interrupt(&self) {
        signal::killpg(self.0, Signal::SIGINT).expect("the group");
    }

    /// Kills all processes of the group, also if the group's leader has already exited.
    pub fn kill(&self) {
        let _ = signal::killpg(self.0, Signal::SIGKILL);
    }
}

pub fn kill(pid: u32, signal: Signal) {
    assert_ne!(pid, 0, "a thread has no pid, and pid 0 stands for the whole process group");
    signal::kill(Pid::from_raw(pid as i32), signal).expect("a process to signal");
}

pub type Reader = UnixStream;

/// Returns a pipe. The reader gets the end of the file once every process that has the writer open is gone.
pub fn pipe() -> (Reader, OwnedFd) {
    let (reader, writer) = UnixStream::pair().expect("a pipe");
    (reader, writer.into())
}

/// Returns whether there is something to read now or within this time.
#[cfg(target_os = "linux")]
pub fn is_readable_within(reader: &Reader, time: Duration) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;

    let mut stream = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    poll(&mut stream, PollTimeout::try_from(time).expect("a time for poll(2)")).expect("poll(2)") > 0
}

/// The text of the signal mask with which this process has started.
pub static INHERITED: OnceLock<String> = OnceLock::new();

/// Resets the signal mask and every disposition, so that the program does not inherit those of the test process.
pub fn begin() {
    INHERITED.get_or_init(blocked);
    for number in Signal::iterator() {
        if !matches!(number, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: signal(2) with SIG_DFL installs no handler.
            let _ = unsafe { signal(number, SigHandler::SigDfl) };
        }
    }
    SigSet::empty().thread_set_mask().expect("a mask");
}

extern "C" fn out_of_time(_: libc::c_int) {
    let text = b"watchdog: the process still runs\n";
    // SAFETY: write(2) and _exit(2) are async-signal-safe (signal-safety(7)), and the text is static.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(99);
    }
}

/// Ends this process after this many seconds, and prints a line that makes the test fail. A forked child does not
/// inherit the alarm (alarm(2)).
pub fn watch(seconds: u32) {
    // SAFETY: the handler calls only functions that are async-signal-safe (signal-safety(7)).
    unsafe { signal(Signal::SIGALRM, SigHandler::Handler(out_of_time)) }.expect("a handler");
    alarm::set(seconds);
}

/// A gate at which a process waits until another process of the program, or the test, opens it. Each opening lets one
/// process pass. The program must create the gate before it starts the workers.
pub struct Gate(File);

impl Gate {
    pub fn new() -> Gate {
        Gate::of(&scratch())
    }

    /// Returns the gate of the program with this scratch directory.
    pub fn of(scratch: &Path) -> Gate {
        let path = scratch.join("gate");
        // In a spawned worker, the fifo exists already, because the parent has created it.
        let _ = mkfifo(&path, Mode::S_IRWXU);
        Gate(File::options().read(true).write(true).open(path).expect("a gate"))
    }

    pub fn open(&self, times: usize) {
        (&self.0).write_all(&vec![0; times]).expect("an open gate");
    }

    pub fn pass(&self) {
        (&self.0).read_exact(&mut [0]).expect("a gate that opens");
    }
}

/// Prints that the worker is up, and waits for this signal. A signal that arrives right after the line is not missed.
pub fn up_until_signal(id: usize, awaited: Signal) {
    let awaited = SigSet::from_iter([awaited]);
    awaited.thread_block().expect("a mask");
    up(id);
    awaited.wait().expect("a signal");
}

/// Copies a program by cp(1). This process does not write the copy itself, because programs that other tests start
/// meanwhile could inherit its descriptor. A file that is open for writing cannot be executed (`ETXTBSY`, execve(2)).
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().expect("cp(1)").success());
}

/// Waits until another process ends this one.
pub fn idle() -> ! {
    loop {
        pause();
    }
}

/// Prints that the worker is up, and waits until `done` returns true. Checks `done` after each SIGTERM or SIGINT.
/// Blocks both signals between a check and the next wait, so that it misses none.
pub fn up_until(id: usize, done: impl Fn() -> bool) {
    let open = SigSet::thread_get_mask().expect("the mask");
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]).thread_block().expect("a mask");
    up(id);
    while !done() {
        let _ = open.suspend();
    }
}

/// Waits for SIGTERM or SIGINT, prints `drained`, and exits with status 0.
pub fn drained(id: usize) -> ! {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::flag::register(signal, asked.clone()).expect("a handler");
    }
    up_until(id, || asked.load(Ordering::Relaxed));
    say(&format!("drained {id}"));
    std::process::exit(0)
}

/// Runs `n` workers. Each calls `first`, and then waits for a stop request.
pub fn fork_drained(n: usize, first: impl Fn() + Send + Sync + 'static) {
    if has_threads() {
        return serve_drained(n, first);
    }
    let id = fork(n, 100);
    first();
    drained(id);
}

/// Runs `n` workers that ignore this signal. Worker threads ignore every stop request instead.
pub fn fork_unresponsive(n: usize, signal: Signal) {
    if has_threads() {
        return serve_unresponsive(n);
    }
    let id = fork(n, 100);
    ignore(signal);
    up(id);
    idle();
}

pub fn ignore(which: Signal) {
    // SAFETY: signal(2) with SIG_IGN installs no handler.
    unsafe { signal(which, SigHandler::SigIgn) }.expect("a signal that can be ignored");
}

/// Sends a signal to the calling thread, by raise(3).
pub fn raise(signal: Signal) {
    signal::raise(signal).expect("a signal");
}

/// Waits until this child has exited, but does not reap it.
pub fn wait_for_end(child: u32) {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::uninit();
    // SAFETY: waitid(2) writes one siginfo_t, for which `info` has room.
    let waited =
        unsafe { libc::waitid(libc::P_PID, child as libc::id_t, info.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) };
    assert_eq!(waited, 0);
}

const SIGNALS: libc::c_int = if cfg!(target_os = "macos") { 32 } else { 65 };

#[cfg(target_os = "linux")]
const SA_RESTORER: libc::c_int = 0x0400_0000;
#[cfg(not(target_os = "linux"))]
const SA_RESTORER: libc::c_int = 0;

/// The number of descriptors, and also of threads, that a worker needs to detect the end of its parent. On Linux and
/// FreeBSD it needs none, because the kernel sends a signal.
pub const LIFELINES: usize = if cfg!(any(target_os = "macos", taskfork_portable)) { 1 } else { 0 };

/// Returns the signal mask as text.
pub fn blocked() -> String {
    let mask = SigSet::thread_get_mask().expect("the mask");
    let mut text = String::from("blocked");
    for number in 1..SIGNALS {
        // SAFETY: sigismember(3) only reads the set, which is valid. (nix's iterator leaves out real-time signals.)
        if unsafe { libc::sigismember(mask.as_ref(), number) } == 1 {
            text += &format!(" {number}");
        }
    }
    text
}

/// Returns the signal mask, and every disposition with its flags, as text.
pub fn state() -> String {
    let mut state = blocked() + "; actions";
    for number in 1..SIGNALS {
        // SAFETY: zeroes are a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: sigaction(2) writes one sigaction. It changes nothing, because the new action is null.
        if unsafe { libc::sigaction(number, std::ptr::null(), &mut action) } == 0 {
            // The C library adds this flag to every action, so the flag does not show that the program has changed the
            // action.
            let flags = action.sa_flags & !SA_RESTORER;
            state += &format!(" {number}:{:x}/{flags:x}", action.sa_sigaction);
        }
    }
    state
}

/// Returns the numbers of the open descriptors of this process.
pub fn own_descriptors() -> BTreeSet<String> {
    // The list includes the descriptor that reads the list. `is_open` removes it, because it is closed by then.
    let entries = fs::read_dir("/dev/fd").expect("the descriptors");
    let names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.into_iter().filter(|name| is_open(name)).collect()
}

fn is_open(name: &str) -> bool {
    // SAFETY: fcntl(2) with F_GETFD only reads a flag.
    name.parse().is_ok_and(|fd: libc::c_int| unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1)
}

/// Calls `run` in a forked child, which then exits with status 0. Waits for the child, and returns its exit status.
#[cfg(target_os = "linux")]
pub fn in_child(run: impl FnOnce()) -> i32 {
    // SAFETY: this process has no other thread, so the child inherits no lock that another thread holds (fork(2)).
    match unsafe { nix::unistd::fork() }.expect("fork") {
        nix::unistd::ForkResult::Child => {
            run();
            std::process::exit(0)
        }
        nix::unistd::ForkResult::Parent { child } => match nix::sys::wait::waitpid(child, None).expect("wait") {
            nix::sys::wait::WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        },
    }
}
