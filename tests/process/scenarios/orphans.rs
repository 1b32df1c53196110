//! Tests with parents that are killed at various moments, or that panic. Then every worker must exit.

use std::time::{Duration, Instant};

use taskfork::{Prefork, Report, Worker};

use super::ends::three_idle;
use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Signal, idle};
use crate::program::{EVER, drain, fork, on_log, say, serve, up};

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
        Scenario::reporting("a_hung_worker_is_killed_after_its_parent_died", hangs, loses_parent).for_processes(),
        Scenario::reporting("a_busy_worker_is_killed_after_its_parent_died", spins, loses_parent).for_processes(),
        // On Windows, all workers are killed at once.
        #[cfg(unix)]
        Scenario::reporting("a_worker_drains_after_the_death_of_its_parent", drains, |daemon| {
            loses_parent(daemon);
            assert!(daemon.said("drained 0"), "{}", daemon.transcript());
        })
        .for_processes(),
        #[cfg(unix)]
        Scenario::reporting("while_the_parent_lives_no_timer_kills_workers", outlives_the_timeout, |daemon| {
            let worker = daemon.worker();
            daemon.send(worker, Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("drained 0"), "{}", daemon.transcript());
        })
        .for_processes(),
        #[cfg(target_os = "linux")]
        Scenario::reporting("a_refused_timer_for_orphans_is_logged", no_timers, |daemon| {
            daemon.ends_with(0);
            let has_timers = cfg!(taskfork_portable);
            assert_eq!(daemon.said("timer_create"), !has_timers, "{}", daemon.transcript());
        })
        .for_processes(),
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

fn loses_parent(daemon: &mut Daemon) {
    daemon.worker();
    daemon.signal(Signal::SIGKILL);
    daemon.end();
}

fn one(graceful_timeout: Duration, work: impl Fn(&Worker) + Send + Sync + 'static) -> Report {
    serve(Prefork::new().workers(1).graceful_timeout(graceful_timeout), move |worker| work(&worker))
}

fn hangs() -> Report {
    one(Duration::from_millis(100), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        idle();
    })
}

/// The worker also gets a further stop request in each round. If these requests gave the worker more time, it would never
/// be killed: no round takes a second.
fn spins() -> Report {
    one(Duration::from_secs(1), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        loop {
            #[cfg(unix)]
            crate::os::raise(Signal::SIGTERM);
        }
    })
}

#[cfg(unix)]
fn drains() -> Report {
    one(EVER, |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        drain(worker);
    })
}

/// The worker gets a stop request from the test. It then runs for longer than the graceful timeout.
#[cfg(unix)]
fn outlives_the_timeout() -> Report {
    const TIMEOUT: Duration = Duration::from_millis(1);
    one(TIMEOUT, |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        assert!(worker.wait_for_stop(None));
        let requested = Instant::now();
        while requested.elapsed() < 100 * TIMEOUT {}
        say("drained 0");
    })
}

#[cfg(target_os = "linux")]
fn no_timers() -> Report {
    use nix::sys::resource::{Resource, setrlimit};

    one(EVER, |worker| {
        setrlimit(Resource::RLIMIT_SIGPENDING, 0, 0).expect("a limit");
        worker.enable_graceful_stop();
        assert!(!worker.stop_requested());
    })
}
