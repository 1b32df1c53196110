//! Tests of the state of forked workers and of their parent: signals, descriptors, task ids, buffers, and children of
//! the program.

use std::io::Write;
use std::process::Command;
use std::sync::Mutex;

use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use taskfork::{Event, Prefork};

use super::handles::{HANDLE, keep_handle};
use crate::Scenario;
#[cfg(target_os = "linux")]
use crate::daemon::kill;
use crate::os::{LIFELINES, Signal, idle, ignore, own_descriptors, state, wait_for_end};
#[cfg(target_os = "linux")]
use crate::program::on_log;
use crate::program::{drain, fail, fork, prepare, say, serve, try_fork, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("workers_keep_the_programs_signals_and_descriptors", unchanged_in_worker, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("as before: true"), 2, "{}", daemon.transcript());
        }),
        Scenario::new("task_id_is_none_in_the_parent", task_ids, |daemon| {
            daemon.ends_with(0);
            for line in ["before None", "id 0 Some(0)", "id 1 Some(1)", "after None"] {
                assert_eq!(daemon.count(line), 1, "{line}");
            }
        }),
        Scenario::new("buffered_output_is_printed_once", buffered, |daemon| {
            daemon.ends_with(0);
            assert_eq!((daemon.count("from Rust"), daemon.count("from C")), (1, 1), "{}", daemon.transcript());
        }),
        Scenario::new("buffered_log_lines_are_written_once", buffered_log, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("before the call"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("log worker"), 3);
            assert_eq!(daemon.count("exited normally"), 3, "the parent's last lines are written, too");
        }),
        #[cfg(target_os = "linux")]
        Scenario::new("logger_panic_in_a_new_worker_ends_only_this_worker", logger_panics, |daemon| {
            let workers = daemon.workers(2);
            kill(workers[0].pid, Signal::SIGKILL);
            daemon.wait_for("exited with status 101, restarting");
            assert!(crate::procfs::is_living_child(workers[1].pid, daemon.pid()), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("dropped in a child"), "{}", daemon.transcript());
        }),
        Scenario::new("handle_in_a_forked_worker_does_nothing", used_by_a_worker, |daemon| {
            daemon.worker();
            daemon.worker();
            daemon.wait_for("called");
            daemon.signal(Signal::SIGTTIN);
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("Rolling") && !daemon.said("replaced"), "{}", daemon.transcript());
            assert_eq!(daemon.count("log Scaled to"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("log Stopping 2 processes"), 1, "{}", daemon.transcript());
        }),
        Scenario::new("panic_in_a_fork_by_on_event_kills_no_workers", on_event_forks_and_panics, |daemon| {
            daemon.workers(2);
            daemon.wait_for_times("the fork: Ok(Exited(", 1);
            assert!(daemon.line("the fork").ends_with(", 101))"), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("killed by signal 9"), "{}", daemon.transcript());
            assert!(!daemon.said("dropped in a child"), "{}", daemon.transcript());
        }),
        Scenario::new("the_programs_own_child_is_not_reaped", own_child, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("child 0") && daemon.said("own child: Some(5)"), "{}", daemon.transcript());
        }),
    ]
}

fn unchanged_in_worker() {
    prepare();
    ignore(Signal::SIGTTIN);
    SigSet::from_iter([Signal::SIGUSR2, Signal::SIGHUP]).thread_block().expect("a mask");
    let before = state();
    let open_before = own_descriptors();
    fork(2, 100);
    let after = state();
    let open = own_descriptors();
    let open_as_before = open.is_superset(&open_before) && open.len() == open_before.len() + LIFELINES;
    say(&format!("as before: {}\n{before} {open_before:?}\n{after} {open:?}", before == after && open_as_before));
}

fn task_ids() {
    say(&format!("before {:?}", taskfork::task_id()));
    match try_fork(1, 0) {
        Ok(_) => std::process::exit(1),
        Err(_) => say(&format!("after {:?}", taskfork::task_id())),
    }
    let id = fork(2, 0);
    say(&format!("id {id} {:?}", taskfork::task_id()));
}

fn buffered() {
    print!("from Rust ");
    // SAFETY: printf(3) needs no arguments for a format without conversions.
    unsafe { libc::printf(c"from C ".as_ptr()) };
    fork(3, 100);
    println!();
    std::io::stdout().flush().expect("a reader");
}

/// A logger that keeps its lines until it is flushed.
struct BufferedLog(Mutex<String>);

impl log::Log for BufferedLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().expect("the buffer").push_str(&format!("log {}\n", record.args()));
    }

    fn flush(&self) {
        let lines = std::mem::take(&mut *self.0.lock().expect("the buffer"));
        std::io::stderr().write_all(lines.as_bytes()).expect("a reader");
    }
}

fn buffered_log() {
    static LOG: BufferedLog = BufferedLog(Mutex::new(String::new()));
    log::set_logger(&LOG).expect("the only logger");
    log::set_max_level(log::LevelFilter::Info);
    log::info!("before the call");
    let id = fork(3, 0);
    log::info!("worker {id}");
    log::logger().flush();
}

/// Prints a line if it is dropped in another process than the one that has made it.
struct InMain(u32);

impl InMain {
    fn new() -> InMain {
        InMain(std::process::id())
    }
}

impl Drop for InMain {
    fn drop(&mut self) {
        if std::process::id() != self.0 {
            say("dropped in a child");
        }
    }
}

/// A restarted worker gets no random numbers. It logs this error before the call returns in it, and its logger panics.
#[cfg(target_os = "linux")]
fn logger_panics() {
    prepare();
    let _in_main = InMain::new();
    on_log("killed by signal 9, restarting", || crate::seccomp::forbid(libc::SYS_getrandom));
    on_log("getrandom", || panic!("the logger cannot write"));
    up(fork(2, 100));
    idle();
}

/// The second process has a copy of the handle that the parent keeps.
fn used_by_a_worker() {
    let report = serve(Prefork::new().workers(1).on_event(keep_handle), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        if worker.id() == 0 && worker.generation() == 0 {
            fail(1);
        }
        if worker.id() == 0 {
            let handle = HANDLE.get().expect("a copy of the parent's handle").clone();
            for _ in 0..10_000 {
                handle.roll();
                handle.scale(3);
                handle.replace(0);
                handle.stop();
            }
            say("called");
        }
        drain(&worker);
    });
    assert!(report.is_success(), "{report:?}");
}

/// The closure forks a process, which panics. The process has copies of everything that the parent has.
fn on_event_forks_and_panics() {
    let _in_main = InMain::new();
    let mut is_first = true;
    let service = Prefork::new().workers(2).on_event(move |event, _| {
        if !matches!(event, Event::Started { process } if process.id == 1) || !std::mem::take(&mut is_first) {
            return;
        }
        // SAFETY: this process has no other thread, so the child inherits no lock that another thread holds (fork(2)).
        match unsafe { nix::unistd::fork() }.expect("fork") {
            ForkResult::Child => std::panic::resume_unwind(Box::new("in a fork")),
            ForkResult::Parent { child } => say(&format!("the fork: {:?}", waitpid(child, None))),
        }
    });
    let report = serve(service, |worker| {
        up(worker.id());
        idle();
    });
    assert!(report.is_success(), "{report:?}");
}

/// Starts a child without taskfork. This child exits before the workers start, so a call that waits for any child would
/// return this child first.
fn own_child() {
    let mut child = Command::new("sh").args(["-c", "exit 5"]).spawn().expect("sh(1)");
    wait_for_end(child.id());
    match try_fork(2, 1) {
        Ok(0) => std::process::exit(1),
        Ok(_) => idle(),
        Err(_) => say(&format!("own child: {:?}", child.wait().expect("its status").code())),
    }
}
