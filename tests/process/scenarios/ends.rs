//! Tests of what the parent does when a worker exits.

use crate::Scenario;
use crate::daemon::kill;
use crate::os::{KILLED, Signal, TERMINATED, idle};
use crate::program::{fork, say, try_fork, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("the_parent_exits_0_once_all_workers_are_done", four_that_exit, |daemon| {
            let workers = daemon.workers(4);
            assert!(workers.iter().map(|up| up.id).eq(0..4), "{workers:?}");
            daemon.ends_with(0);
            assert!(daemon.said("log Starting 4 processes"));
            assert!(daemon.said(&format!("log child 2 (pid {}) exited normally", workers[2].pid)));
        }),
        Scenario::new("a_killed_worker_is_restarted_under_its_id", three_idle, |daemon| {
            let workers = daemon.workers(3);
            kill(workers[1].pid, Signal::SIGKILL);
            let again = daemon.worker();
            assert_eq!(again.id, 1);
            assert_ne!(again.pid, workers[1].pid);
            assert!(daemon.said(&format!("log child 1 (pid {}) {KILLED}, restarting", workers[1].pid)));
        }),
        Scenario::new(
            "the_restart_limit_ends_every_process",
            || {
                if fork(3, 2) == 1 {
                    std::process::exit(3);
                }
                idle()
            },
            |daemon| {
                daemon.ends_with(1);
                assert_eq!(daemon.count("exited with status 3, restarting"), 2);
                assert_eq!(daemon.count("exited with status 3"), 4, "two restarts, the last exit, and the error");
                assert!(daemon.said("log Too many child restarts (2), giving up"));
                assert!(daemon.said_before(TERMINATED, "error too many child restarts (2), giving up: child 1"));
            },
        ),
        Scenario::new(
            "the_restart_limit_error_names_worker_and_exit",
            || {
                let error = match try_fork(2, 0) {
                    Ok(0) => std::process::exit(7),
                    Ok(_) => idle(),
                    Err(error) => error,
                };
                say(&format!("{:?} {:?} {:?}", error.worker(), error.exit(), error.call()));
            },
            |daemon| {
                daemon.ends_with(0);
                assert!(daemon.said("Some(0) Some(Code(7)) None"), "{}", daemon.transcript());
            },
        ),
    ]
}

fn four_that_exit() {
    up(fork(4, 100));
}

pub fn three_idle() {
    up(fork(3, 100));
    idle();
}
