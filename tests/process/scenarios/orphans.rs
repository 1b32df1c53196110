//! The parent is killed, at the worst of times.

use super::ends::three_idle;
use crate::Scenario;
use crate::os::{Signal, idle};
use crate::program::{fork, on_log, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("nobody_is_left_behind_when_the_parent_is_killed", three_idle, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
        }),
        Scenario::new(
            "nobody_is_left_behind_when_the_parent_is_killed_while_it_is_forking_the_1st",
            forking,
            |daemon| {
                daemon.wait_for("log Starting");
                daemon.signal(Signal::SIGKILL);
                daemon.end();
            },
        ),
        Scenario::new(
            "nobody_is_left_behind_when_the_parent_is_killed_while_it_is_forking_the_10th",
            forking,
            |daemon| {
                daemon.wait_for("child 9 ");
                daemon.signal(Signal::SIGKILL);
                daemon.end();
            },
        ),
        Scenario::new(
            "nobody_is_left_behind_when_the_parent_is_killed_while_it_is_forking_the_100th",
            forking,
            |daemon| {
                daemon.wait_for("child 99 ");
                daemon.signal(Signal::SIGKILL);
                daemon.end();
            },
        ),
        Scenario::new("a_logger_that_panics_in_the_parent_leaves_nobody_behind", panics, |daemon| {
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
