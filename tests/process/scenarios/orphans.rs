//! The parent is killed, at the worst of times.

use nix::sys::signal::Signal;

use super::ends::three_idle;
use crate::Scenario;
use crate::program::{fork, idle, on_log, own_descriptors, say, try_fork, up};

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
        Scenario::new("a_worker_drains_when_the_parent_is_killed", super::stops::three_that_drain, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert_eq!(daemon.count("drained"), 3);
        }),
        Scenario::new("a_call_that_fails_in_the_parent_leaves_nobody_behind", loses_its_descriptors, |daemon| {
            let workers = daemon.workers(3);
            crate::daemon::kill(workers[0].pid, Signal::SIGKILL);
            daemon.ends_with(1);
            let line = daemon.line("refused ");
            assert!(line.ends_with("; children left: Err(ECHILD)"), "{line}");
        }),
        Scenario::new("a_logger_that_panics_in_the_parent_leaves_nobody_behind", panics, |daemon| {
            let workers = daemon.workers(3);
            crate::daemon::kill(workers[0].pid, Signal::SIGKILL);
            daemon.ends_with(101);
        }),
    ]
}

fn loses_its_descriptors() {
    on_log("restarting", || {
        for descriptor in own_descriptors().iter().filter_map(|name| name.parse().ok()).filter(|&fd| fd > 2) {
            // SAFETY: whoever owns it still has a descriptor, if one that is of no use; which is what this is about.
            unsafe { libc::dup2(0, descriptor) };
        }
    });
    match try_fork(3, 100) {
        Ok(id) => up(id),
        Err(error) => {
            say(&format!("refused {:?}; children left: {:?}", error.call(), nix::sys::wait::wait()));
            std::process::exit(1)
        }
    }
    idle();
}

fn panics() {
    on_log("restarting", || panic!("a logger that panics"));
    three_idle();
}

fn forking() {
    up(fork(300, 100));
    idle();
}
