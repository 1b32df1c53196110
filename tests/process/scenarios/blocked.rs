//! Processes that do not exit after SIGKILL. Linux only.

use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use taskfork::{Prefork, Report};

use super::heartbeats::{TIMEOUT, send_heartbeats};
use crate::Scenario;
use crate::daemon::Up;
use crate::os::{Signal, idle};
use crate::program::{say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_process_that_survives_sigkill_is_abandoned", first_hangs, |daemon| {
            let first = daemon.worker();
            hold(first);
            daemon.wait_for(&format!("log {first} did not exit within 10 s of SIGKILL, abandoning it"));
            daemon.wait_for(&format!("log {first} is stale, restarting"));
            let second = daemon.worker();
            release(first);
            daemon.wait_for(&format!("log {first} was stale, and has exited"));
            hold(second);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for(&format!("log {second} did not exit within 10 s of SIGKILL, abandoning it"));
            daemon.ends_with(0);
            assert!(daemon.said("stale at the end: 1"), "{}", daemon.transcript());
            release(second);
        })
        .forking(),
    ]
}

/// Traces the worker, and never handles its stops. A process that has exited is not reported to its parent while
/// another process traces it (ptrace(2)). So for the parent, the worker is like a process that is blocked inside the
/// kernel.
fn hold(up: Up) {
    ptrace::seize(Pid::from_raw(up.pid as i32), ptrace::Options::empty()).expect("ptrace(2)");
}

/// Waits for the worker's exit as its tracer. After that, the kernel reports the exit to the parent.
fn release(up: Up) {
    loop {
        let status = waitpid(Pid::from_raw(up.pid as i32), Some(WaitPidFlag::__WALL)).expect("a traced process");
        if matches!(status, nix::sys::wait::WaitStatus::Signaled(..)) {
            return;
        }
    }
}

fn first_hangs() -> Report {
    let service = Prefork::new().workers(1).heartbeat_timeout(TIMEOUT).graceful_timeout(Duration::from_secs(1));
    let report = serve(service, |worker| {
        up(worker.id());
        if worker.generation() == 0 {
            idle();
        }
        send_heartbeats(&worker, false);
    });
    say(&format!("stale at the end: {}", report.stale().len()));
    report
}
