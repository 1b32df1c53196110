//! How a worker hears that it is to stop.

use std::sync::Barrier;
use std::time::Duration;

use taskfork::{Prefork, Report, Worker};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Signal, no_terminal};
use crate::program::{say, serve, up, up_until};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("stop_requested_is_true_after_a_term", asks_again_and_again, drains_on_term),
        Scenario::reporting("stop_requested_is_true_after_the_int_of_a_terminal", asks_again_and_again, drains_on_int)
            .needs(no_terminal),
        Scenario::reporting("wait_for_stop_is_over_after_a_term", waits, drains_on_term),
        Scenario::reporting("wait_for_stop_is_over_after_the_int_of_a_terminal", waits, drains_on_int)
            .needs(no_terminal),
        Scenario::reporting(
            "wait_for_stop_is_over_at_once_after_a_term_that_came_before_it",
            waits_late,
            drains_on_term,
        ),
        Scenario::reporting("several_threads_may_ask_at_once", asks_from_threads, drains_on_term),
    ]
}

pub fn drains_on_term(daemon: &mut Daemon) {
    drains(daemon, |daemon| daemon.signal(Signal::SIGTERM));
}

pub fn drains_on_int(daemon: &mut Daemon) {
    drains(daemon, |daemon| daemon.interrupt());
}

fn drains(daemon: &mut Daemon, ask: fn(&Daemon)) {
    daemon.worker();
    ask(daemon);
    daemon.ends_with(0);
    assert_eq!(daemon.count("drained"), 1, "{}", daemon.transcript());
    assert!(daemon.said("exited normally"), "{}", daemon.transcript());
}

pub fn one(work: impl Fn(&Worker) + Send + Sync + 'static) -> Report {
    serve(Prefork::new().workers(1), move |worker| work(&worker))
}

fn asks_again_and_again() -> Report {
    one(|worker| {
        assert!(!worker.stop_requested());
        up_until(worker.id(), || worker.stop_requested());
        assert!(worker.stop_requested());
        say("drained");
    })
}

fn waits() -> Report {
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

/// The request comes before there is anything to wait on.
fn waits_late() -> Report {
    one(|worker| {
        assert!(!worker.stop_requested());
        up_until(worker.id(), || worker.stop_requested());
        assert!(worker.wait_for_stop(None));
        say("drained");
    })
}

fn asks_from_threads() -> Report {
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
