//! A service that runs in the background of a terminal. Linux only.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, FromRawFd};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;

use nix::sys::signal::{SigHandler, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, getppid, setpgid, setsid};
use taskfork::{Event, Prefork, Report};

use crate::Scenario;
use crate::daemon::{Daemon, kill};
use crate::os::{Signal, ignore};
use crate::program::{drain, fork, on_log, prepare, say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("background_job_writes_to_its_terminal", writes_in_background, |daemon| {
            let parent = parent(daemon);
            daemon.worker();
            assert!(daemon.said("wrote Ok"), "{}", daemon.transcript());
            // The signals of an operator still count.
            kill(parent, Signal::SIGTTIN);
            daemon.worker();
            kill(parent, Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("log Scaled"), 1, "{}", daemon.transcript());
        }),
        Scenario::reporting("background_job_stops_although_a_thread_reads", reads_in_background, |daemon| {
            let parent = parent(daemon);
            daemon.wait_for("read Err");
            kill(parent, Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("log Scaled"), "{}", daemon.transcript());
        })
        .for_parents_with_threads(),
        Scenario::new("terminal_sigttin_in_the_background_adds_no_workers", background, |daemon| {
            let parent = parent(daemon);
            let worker = daemon.worker();
            // The kernel sends SIGTTIN to the whole process group. So when the worker is stopped, the parent has got
            // the signal too.
            await_stop(worker.pid);
            kill(worker.pid, Signal::SIGKILL);
            let replacement = daemon.worker();
            assert_eq!(replacement.id, 0);
            // Waits for the replacement to stop. If it were still running, the first SIGTERM would end it, and the
            // parent could exit before the second SIGTERM.
            await_stop(replacement.pid);
            kill(parent, Signal::SIGTERM);
            daemon.wait_for("log Stopping 1 processes");
            kill(parent, Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("log Scaled"), "{}", daemon.transcript());
        }),
        // The parent ignores ^C. A request of another process would lead to a restart.
        Scenario::reporting("a_worker_that_obeys_ctrl_c_is_done", obeys_the_terminal, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("drained 0") && daemon.said("report: finished"), "{}", daemon.transcript());
        })
        .forking(),
    ]
}

fn parent(daemon: &mut Daemon) -> u32 {
    let line = daemon.wait_for("parent ");
    line.rsplit(' ').next().expect("a pid").parse().expect("a pid")
}

fn await_stop(pid: u32) {
    while !is_stopped(pid) {
        std::thread::yield_now();
    }
}

fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the worker");
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
}

/// Creates a session with a terminal, and starts the service in a background process group. Such a group may not read
/// from the terminal.
fn background() {
    prepare();
    in_background(false, |terminal| {
        let id = fork(1, 100);
        say(&format!("parent {}", getppid()));
        up(id);
        let read = (&*terminal).read(&mut [0]);
        say(&format!("read {read:?}"));
    });
}

/// The parent writes to its terminal, which `stty tostop` forbids to a background job.
fn writes_in_background() -> Report {
    static TERMINAL: OnceLock<fs::File> = OnceLock::new();
    in_background(true, |terminal| {
        prepare();
        TERMINAL.get_or_init(|| terminal.try_clone().expect("a descriptor"));
        on_log("Starting", || {
            let written = TERMINAL.get().map(|mut terminal| terminal.write(b"."));
            say(&format!("wrote {:?}", written.expect("a terminal")));
        });
        say(&format!("parent {}", std::process::id()));
    });
    serve(Prefork::new().workers(1).max_workers(2), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        drain(&worker);
    })
}

/// A thread of the parent reads from the terminal. The terminal stops the spawned workers, which then have to be
/// killed.
fn reads_in_background() -> Report {
    let (go, wait) = mpsc::channel::<()>();
    in_background(false, |terminal| {
        let mut terminal = terminal.try_clone().expect("a descriptor");
        std::thread::spawn(move || {
            let _ = wait.recv();
            let read = terminal.read(&mut [0]);
            say(&format!("read {read:?}"));
        });
        say(&format!("parent {}", std::process::id()));
    });
    let service = Prefork::new().workers(1).graceful_timeout(Duration::from_millis(100));
    let go = Mutex::new(go);
    let service = service.on_event(move |event, _| {
        if matches!(event, Event::Started { .. }) {
            let _ = go.lock().expect("the thread").send(());
        }
    });
    serve(service, |worker| {
        assert!(worker.wait_for_stop(None));
    })
}

/// The service runs in the foreground of a terminal, in which the worker presses ^C. Only the worker obeys.
fn obeys_the_terminal() -> Report {
    continue_in_child();
    setsid().expect("a session");
    let (_terminal, master) = open_terminal(false);
    ignore(Signal::SIGINT);
    serve(Prefork::new().workers(1), move |worker| {
        // SAFETY: signal(2) with SIG_DFL installs no handler.
        unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }.expect("a signal");
        worker.enable_graceful_stop();
        nix::unistd::write(master, b"\x03").expect("a terminal");
        drain(&worker);
    })
}

/// Makes a terminal, continues in a background process group of it, and runs `job` there. With `tostop`, background
/// jobs must not write to the terminal. In a spawned worker, which is in the group already, does nothing.
fn in_background(tostop: bool, job: impl FnOnce(&fs::File)) {
    const IN_JOB: &str = "TASKFORK_TEST_IN_JOB";
    if std::env::var_os(IN_JOB).is_some() {
        return;
    }
    continue_in_child();
    setsid().expect("a session");
    let (terminal, _) = open_terminal(tostop);
    continue_in_child();
    setpgid(Pid::from_raw(0), Pid::from_raw(0)).expect("a group");
    // SAFETY: this process has no other thread that could read the environment.
    unsafe { std::env::set_var(IN_JOB, "1") };
    job(&terminal);
}

/// Returns in a forked child. The parent exits with the status of the child.
fn continue_in_child() {
    // SAFETY: this process has no other thread, so the child inherits no lock that another thread holds (fork(2)).
    if let ForkResult::Parent { child } = unsafe { nix::unistd::fork() }.expect("fork") {
        match waitpid(child, None).expect("wait") {
            WaitStatus::Exited(_, code) => std::process::exit(code),
            other => panic!("{other:?}"),
        }
    }
}

/// Opens the controlling terminal of this session. Returns the terminal and its other end, which stays open as long as
/// a process of the session runs.
fn open_terminal(tostop: bool) -> (fs::File, BorrowedFd<'static>) {
    let mut master = -1;
    let mut terminal = -1;
    let null = std::ptr::null_mut();
    // SAFETY: openpty(3) writes the two descriptors, and accepts null for the name, the attributes and the size.
    let opened = unsafe { libc::openpty(&mut master, &mut terminal, null, null.cast(), null.cast()) };
    // SAFETY: ioctl(2) with TIOCSCTTY takes an integer, and accesses no memory.
    assert_eq!((opened, unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) }), (0, 0));
    if tostop {
        // SAFETY: all-zero bytes are a valid termios, because it consists of integers.
        let mut attributes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: tcgetattr(3) writes one termios.
        assert_eq!(unsafe { libc::tcgetattr(terminal, &raw mut attributes) }, 0);
        attributes.c_lflag |= libc::TOSTOP;
        // SAFETY: tcsetattr(3) reads one termios.
        assert_eq!(unsafe { libc::tcsetattr(terminal, libc::TCSANOW, &raw const attributes) }, 0);
    }
    // SAFETY: the descriptors are open. Nothing else owns the first one, and nothing closes the second one.
    unsafe { (fs::File::from_raw_fd(terminal), BorrowedFd::borrow_raw(master)) }
}
