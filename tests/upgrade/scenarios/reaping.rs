//! Children that exit only after the parent has executed the new program.

use std::collections::BTreeSet;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Scenario;
use super::stops::in_checks;
use crate::build::{Build, Pool, Workers};
use crate::daemon::Daemon;
use crate::procfs;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("checkers_that_exit_late_are_reaped_by_the_new_program", late_checker),
        Scenario::new("abandoned_processes_are_reaped_by_the_new_program", abandoned_process),
    ]
}

fn late_checker(workers: Workers) {
    let mut daemon = in_checks(workers);
    let checker = daemon.pid_after("new before ");
    hold(checker);
    daemon.upgrade_despite_aborts(&Build::new("third", workers));
    assert_zombies(&daemon, &[checker]);
    release(checker);
    assert_zombies(&daemon, &[]);
    daemon.stop();
}

/// The report of the service shows that the new program knows which worker the process belonged to.
fn abandoned_process(workers: Workers) {
    let mut daemon = Daemon::start(&short_drains("old", workers));
    let first = daemon.ready_workers("old", 2).remove(0);
    let held = Pid::from_raw(first.pid.try_into().expect("a pid"));
    hold(held);
    daemon.signal(Signal::SIGHUP);
    let name = format!("child {} (pid {held})", first.id);
    daemon.wait_for(&format!("old log {name} did not exit within 10 s of SIGKILL, abandoning it"));
    daemon.wait_for("old log Rolling restart done");
    daemon.upgrade(&short_drains("new", workers));
    assert_zombies(&daemon, &[held]);
    release(held);
    daemon.wait_for(&format!("new log {name} was stale, and has exited"));
    assert_zombies(&daemon, &[]);
    daemon.stop();
}

fn short_drains(name: &str, workers: Workers) -> Build {
    Build::new(name, workers).pool(Pool { graceful_timeout_ms: 100, ..Pool::default() })
}

/// Traces the process, and never handles its stops. The exit of a traced process is reported to its parent only after
/// its tracer has waited for it (ptrace(2)).
fn hold(pid: Pid) {
    ptrace::seize(pid, ptrace::Options::empty()).expect("ptrace(2)");
}

/// Waits for the exit of the process as its tracer.
fn release(pid: Pid) {
    while !matches!(waitpid(pid, None).expect("waitpid(2)"), WaitStatus::Signaled(..)) {}
}

/// Checks that exactly these children of the parent have exited and are not reaped, as soon as it is so.
fn assert_zombies(daemon: &Daemon, expected: &[Pid]) {
    let expected: BTreeSet<u32> = expected.iter().map(|pid| pid.as_raw().unsigned_abs()).collect();
    let zombies = daemon.after_cleanup(|daemon| procfs::zombies(daemon.pid()), &expected);
    assert_eq!(zombies, expected, "{}", daemon.transcript());
}
