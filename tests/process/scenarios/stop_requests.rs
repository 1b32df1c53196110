//! How a worker notices a stop request: `stop_requested` and `wait_for_stop`.

use std::sync::Barrier;
use std::time::Duration;

use taskfork::{Prefork, Report, Worker};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Signal, no_terminal};
use crate::program::{say, serve, up, up_until};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("stop_requested_is_true_after_a_term", polls_stop_requested, drains_on_term),
        Scenario::reporting("stop_requested_is_true_after_ctrl_c", polls_stop_requested, drains_on_int)
            .needs(no_terminal),
        Scenario::reporting("wait_for_stop_returns_after_a_term", waits_for_stop, drains_on_term),
        Scenario::reporting("wait_for_stop_returns_after_ctrl_c", waits_for_stop, drains_on_int).needs(no_terminal),
        Scenario::reporting(
            "wait_for_stop_returns_at_once_after_earlier_term",
            waits_after_the_request,
            drains_on_term,
        ),
        Scenario::reporting("threads_may_call_wait_for_stop_concurrently", calls_from_threads, drains_on_term),
    ]
}

pub fn drains_on_term(daemon: &mut Daemon) {
    drains(daemon, |daemon| daemon.signal(Signal::SIGTERM));
}

pub fn drains_on_int(daemon: &mut Daemon) {
    drains(daemon, |daemon| daemon.interrupt());
}

fn drains(daemon: &mut Daemon, request_stop: fn(&Daemon)) {
    daemon.worker();
    request_stop(daemon);
    daemon.ends_with(0);
    assert_eq!(daemon.count("drained"), 1, "{}", daemon.transcript());
    assert!(daemon.said("exited normally"), "{}", daemon.transcript());
}

pub fn one(work: impl Fn(&Worker) + Send + Sync + 'static) -> Report {
    serve(Prefork::new().workers(1), move |worker| work(&worker))
}

fn polls_stop_requested() -> Report {
    one(|worker| {
        assert!(!worker.stop_requested());
        up_until(worker.id(), || worker.stop_requested());
        assert!(worker.stop_requested());
        say("drained");
    })
}

fn waits_for_stop() -> Report {
    one(|worker| {
        assert!(!worker.wait_for_stop(Some(Duration::ZERO)));
        assert!(!worker.wait_for_stop(Some(Duration::from_micros(1))));
        up(worker.id());
        assert!(worker.wait_for_stop(None));
        assert!(worker.wait_for_stop(Some(Duration::ZERO)) && worker.wait_for_stop(Some(Duration::MAX)));
        assert!(worker.stop_requested());
        say("drained");
    })
}

/// The stop request comes before the worker first calls `wait_for_stop`.
fn waits_after_the_request() -> Report {
    one(|worker| {
        assert!(!worker.stop_requested());
        up_until(worker.id(), || worker.stop_requested());
        assert!(worker.wait_for_stop(None));
        say("drained");
    })
}

fn calls_from_threads() -> Report {
    one(|worker| {
        let barrier = Barrier::new(8);
        std::thread::scope(|scope| {
            let ask = || {
                barrier.wait();
                assert!(!worker.stop_requested());
            };
            (0..8).for_each(|_| drop(scope.spawn(ask)));
        });
        up(worker.id());
        std::thread::scope(|scope| {
            (0..8).for_each(|_| drop(scope.spawn(|| assert!(worker.wait_for_stop(None)))));
        });
        say("drained");
    })
}
