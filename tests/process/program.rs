//! What the programs of the scenarios have in common.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::stat::Mode;
use nix::unistd::{alarm, mkfifo, pause};
use taskfork::{Backend, Prefork, Report, Role, Worker};

/// No process lives longer than this many seconds, whatever it waits for. It says so, and so fails its test.
const WATCHDOG: u32 = 60;

/// The call at the top of `main`, with its log where everything is said. An error is said, and ends the program.
pub fn fork(n: usize, max_restarts: u32) -> usize {
    try_fork(n, max_restarts).unwrap_or_else(|error| {
        say(&format!("error {error}"));
        std::process::exit(1)
    })
}

pub fn try_fork(n: usize, max_restarts: u32) -> taskfork::Result<usize> {
    prepare();
    let id = taskfork::fork_processes(n, max_restarts)?;
    // An alarm is not inherited.
    alarm::set(WATCHDOG);
    Ok(id)
}

/// The same with everything that can be chosen; in the parent, how it all went.
pub fn serve(prefork: Prefork, work: impl FnOnce(Worker)) -> Report {
    serve_watched(prefork, WATCHDOG, work)
}

/// The same for one that has so much to do that it may take longer than others.
pub fn serve_watched(prefork: Prefork, seconds: u32, work: impl FnOnce(Worker)) -> Report {
    prepare();
    alarm::set(seconds);
    match prefork.backend(backend()).start() {
        Ok(Role::Parent(report)) => report,
        Ok(Role::Worker(worker)) => {
            alarm::set(seconds);
            work(worker);
            std::process::exit(0)
        }
        Err(error) => {
            say(&format!("error {error}"));
            std::process::exit(1)
        }
    }
}

/// What this round of tests is about.
pub fn backend() -> Backend {
    match std::env::var(crate::BACKEND).as_deref() {
        Ok("spawn") => Backend::Spawn,
        _ => Backend::Fork,
    }
}

/// Until it is asked to stop, which it says.
pub fn drain(worker: &Worker) {
    assert!(worker.wait_for_stop(None));
    say(&format!("drained {}", worker.id()));
}

/// As a program that is started from a quiet shell, whatever the tests were started from.
pub fn reset_signals() {
    for number in Signal::iterator() {
        if !matches!(number, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: no handler is involved.
            let _ = unsafe { signal(number, SigHandler::SigDfl) };
        }
    }
    SigSet::empty().thread_set_mask().expect("a mask");
}

extern "C" fn out_of_time(_: libc::c_int) {
    let text = b"watchdog: somebody was still there\n";
    // SAFETY: write(2) and _exit(2) are async-signal-safe, and the text is there.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(99);
    }
}

pub fn prepare() {
    // SAFETY: the handler is async-signal-safe.
    unsafe { signal(Signal::SIGALRM, SigHandler::Handler(out_of_time)) }.expect("a handler");
    alarm::set(WATCHDOG);
    let _ = env_logger::Builder::new()
        .filter_module("taskfork", log::LevelFilter::Debug)
        .format(|line, record| {
            let text = record.args().to_string();
            for (part, hook) in HOOKS.lock().expect("hooks").iter() {
                if text.contains(part) {
                    hook();
                }
            }
            writeln!(line, "log {text}")
        })
        .try_init();
}

type Hook = (&'static str, fn());

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Runs this in the parent, as a logger might, before a line that contains `part` is written.
pub fn on_log(part: &'static str, hook: fn()) {
    HOOKS.lock().expect("hooks").push((part, hook));
}

/// One line, in one write and past every buffer, so that those of several processes do not mix.
pub fn say(line: &str) {
    let line = format!("{line}\n");
    let written = std::io::stderr().write(line.as_bytes());
    assert_eq!(written.expect("somebody who listens"), line.len());
}

pub fn up(id: usize) {
    say(&format!("up {id} {}", std::process::id()));
}

/// What all processes of the program find there, whichever way they were started.
pub fn scratch() -> PathBuf {
    PathBuf::from(std::env::var_os(crate::SCRATCH).expect("a directory"))
}

/// Who passes it waits until another process of the program opens it, once for each. Made before the call.
pub struct Gate(File);

impl Gate {
    pub fn new() -> Gate {
        let path = scratch().join("gate");
        // It is there already in a worker that was spawned.
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

/// A count that all processes of the program share. Each call adds one.
pub fn start_count() -> impl Fn() -> u64 {
    let file = File::options().create(true).append(true).open(scratch().join("count")).expect("a file");
    move || {
        (&file).write_all(b".").expect("a count");
        file.metadata().expect("a count").len()
    }
}

/// Says that it is up, and waits for this signal, which may come as soon as it has said so.
pub fn up_until_signal(id: usize, awaited: Signal) {
    let awaited = SigSet::from_iter([awaited]);
    awaited.thread_block().expect("a mask");
    up(id);
    awaited.wait().expect("a signal");
}

/// Until a signal ends it.
pub fn idle() -> ! {
    loop {
        pause();
    }
}

/// Runs until it is asked to stop, says so, and ends normally.
pub fn drained(id: usize) -> ! {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::flag::register(signal, asked.clone()).expect("a handler");
    }
    up_until(id, || asked.load(Ordering::Relaxed));
    say(&format!("drained {id}"));
    std::process::exit(0)
}

/// Says that it is up, and waits for a signal that makes this true. None is missed between the question and the wait.
pub fn up_until(id: usize, done: impl Fn() -> bool) {
    let open = SigSet::thread_get_mask().expect("the mask");
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]).thread_block().expect("a mask");
    up(id);
    while !done() {
        let _ = open.suspend();
    }
}

pub fn ignore(which: Signal) {
    // SAFETY: no handler is involved.
    unsafe { signal(which, SigHandler::SigIgn) }.expect("a signal that can be ignored");
}

const SIGNALS: libc::c_int = if cfg!(target_os = "macos") { 32 } else { 65 };

#[cfg(target_os = "linux")]
const SA_RESTORER: libc::c_int = 0x0400_0000;
#[cfg(not(target_os = "linux"))]
const SA_RESTORER: libc::c_int = 0;

/// A worker's own, where the kernel does not tell it of the parent's end.
pub const LIFELINES: usize = if cfg!(any(target_os = "macos", taskfork_portable)) { 1 } else { 0 };

/// The signal mask, and every disposition with its flags.
pub fn state() -> String {
    let mask = SigSet::thread_get_mask().expect("the mask");
    let mut state = String::from("blocked");
    for number in 1..SIGNALS {
        // SAFETY: the set is a valid one. (nix's own iterator knows no real-time signals.)
        if unsafe { libc::sigismember(mask.as_ref(), number) } == 1 {
            state += &format!(" {number}");
        }
    }
    state += "; actions";
    for number in 1..SIGNALS {
        // SAFETY: zeroes are a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: `action` is there to be written to, and nothing is changed.
        if unsafe { libc::sigaction(number, std::ptr::null(), &mut action) } == 0 {
            // Set by the C library whenever it sets an action; nobody can tell the difference.
            let flags = action.sa_flags & !SA_RESTORER;
            state += &format!(" {number}:{:x}/{flags:x}", action.sa_sigaction);
        }
    }
    state
}

/// The open descriptors of this process.
pub fn own_descriptors() -> BTreeSet<String> {
    // The listing's own is the highest, and closed by now.
    let entries = fs::read_dir("/dev/fd").expect("the descriptors");
    let names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.into_iter().filter(|name| is_open(name)).collect()
}

fn is_open(name: &str) -> bool {
    // SAFETY: fcntl(2) with F_GETFD reads a flag.
    name.parse().is_ok_and(|fd: libc::c_int| unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1)
}

/// Runs this in a child that exits when it returns, and waits for that.
#[cfg(target_os = "linux")]
pub fn in_child(run: impl FnOnce()) -> i32 {
    // SAFETY: there is no other thread.
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
