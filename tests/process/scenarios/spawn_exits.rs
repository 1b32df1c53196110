//! Spawned workers that exit before they reach the call.

use std::fs::OpenOptions;

use taskfork::{Prefork, Report};

use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Signal, idle};
use crate::program::{scratch, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::spawning("a_worker_that_exits_before_the_call_ends_the_service", second_start_exits, |daemon| {
            daemon.ends_with(3);
            assert!(daemon.said("exited normally before it reached the call"), "{}", daemon.transcript());
            assert!(daemon.said("log Startup failed: child 0 "));
            assert_eq!(daemon.count("log Starting 1 processes"), 1);
        }),
        Scenario::spawning("a_restart_that_exits_before_the_call_is_repeated", third_start_exits, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGKILL);
            daemon.wait_for("exited normally before it reached the call, restarting in ");
            assert_eq!(daemon.worker().id, 0);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
    ]
}

/// Returns how often this program has been started before. The parent is the first start.
fn earlier_starts() -> usize {
    let is_new =
        |n: &usize| OpenOptions::new().write(true).create_new(true).open(scratch().join(format!("start-{n}"))).is_ok();
    (0..).find(is_new).expect("a number")
}

/// The first worker exits before the call.
fn second_start_exits() -> Report {
    serve_unless(1)
}

/// The first worker serves. The worker that replaces it exits before the call.
fn third_start_exits() -> Report {
    serve_unless(2)
}

fn serve_unless(start: usize) -> Report {
    if earlier_starts() == start {
        std::process::exit(0);
    }
    serve(Prefork::new().workers(1), |worker| {
        up(worker.id());
        idle()
    })
}
