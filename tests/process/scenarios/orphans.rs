//! The parent is killed, at the worst of times.

use nix::sys::signal::Signal;

use super::ends::three_idle;
use crate::Scenario;
use crate::program::{fork, idle, up};

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
        Scenario::new("a_worker_drains_when_the_parent_is_killed", super::stops::three_that_drain, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert_eq!(daemon.count("drained"), 3);
        }),
    ]
}

fn forking() {
    up(fork(300, 100));
    idle();
}
