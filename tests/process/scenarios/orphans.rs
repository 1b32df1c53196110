//! Tests with parents that are killed at various moments, or that panic. Then every worker must exit.

use super::ends::three_idle;
use crate::Scenario;
use crate::os::{Signal, idle};
use crate::program::{fork, on_log, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("killing_the_parent_ends_every_worker", three_idle, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
        }),
        Scenario::new("killing_the_parent_at_the_first_fork_ends_workers", forking, |daemon| {
            daemon.wait_for("log Starting");
            daemon.signal(Signal::SIGKILL);
            daemon.end();
        }),
        Scenario::new("killing_the_parent_at_the_10th_fork_ends_workers", forking, |daemon| {
            daemon.wait_for("child 9 ");
            daemon.signal(Signal::SIGKILL);
            daemon.end();
        }),
        Scenario::new("killing_the_parent_at_the_100th_fork_ends_workers", forking, |daemon| {
            daemon.wait_for("child 99 ");
            daemon.signal(Signal::SIGKILL);
            daemon.end();
        }),
        Scenario::new("a_panicking_logger_in_the_parent_ends_workers", panics, |daemon| {
            let workers = daemon.workers(3);
            crate::daemon::kill(workers[0].pid, Signal::SIGKILL);
            daemon.ends_with(101);
        }),
    ]
}

fn panics() {
    on_log("restarting", || panic!("a logger that panics"));
    three_idle();
}

fn forking() {
    up(fork(300, 100));
    idle();
}
