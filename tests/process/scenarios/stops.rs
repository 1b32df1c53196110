//! Requests that stop the whole service: SIGTERM, SIGQUIT, and Ctrl-C.

use taskfork::{Prefork, Report};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{KILLED, Signal, fork_drained, fork_unresponsive, idle, no_terminal};
use crate::program::{drain, fork, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("term_drains_the_workers_and_exits_0", three_that_drain, |daemon| {
            drains_on(daemon, Signal::SIGTERM);
        })
        .for_threads_too(),
        Scenario::new("quit_kills_unresponsive_workers_after_two_seconds", three_that_ignore_quit, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGQUIT);
            daemon.ends_with(0);
            assert_eq!(daemon.count("did not stop in time"), 3);
            assert_eq!(daemon.count(daemon.ended_by_parent(KILLED)), 3);
        })
        .for_threads_too(),
        Scenario::new("second_term_kills_unresponsive_workers", three_that_ignore_term, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 3 processes");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("log Second stop request, killing 3 processes"));
            assert_eq!(daemon.count(daemon.ended_by_parent(KILLED)), 3);
        })
        .for_threads_too(),
        Scenario::new("ctrl_c_stops_without_restarting_workers", twenty_idle, |daemon| {
            daemon.workers(20);
            daemon.interrupt();
            daemon.ends_with(0);
            assert!(!daemon.said("restarting"), "{}", daemon.transcript());
        })
        .needs(no_terminal),
        Scenario::reporting("ctrl_c_drains_workers_without_restarting_them", twenty_that_drain, |daemon| {
            daemon.workers(20);
            daemon.interrupt();
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained "), 20, "{}", daemon.transcript());
            assert_eq!(daemon.count("exited normally"), 20, "{}", daemon.transcript());
            assert!(daemon.said("report: stopped"));
        })
        .needs(no_terminal),
        Scenario::new("term_during_startup_cancels_the_remaining_starts", many_idle, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.count(" started, generation 0") < MANY, "all workers were started before the request");
        }),
        Scenario::new("second_term_kills_a_worker_stopped_by_sigstop", three_that_drain, |daemon| {
            let workers = daemon.workers(3);
            crate::daemon::kill(workers[0].pid, Signal::SIGSTOP);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 3 processes");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
    ]
}

/// The number of workers is so large that the first worker prints that it is up before the parent has started all of
/// them.
const MANY: usize = 2000;

pub fn three_that_drain() {
    fork_drained(3, || ());
}

pub fn drains_on(daemon: &mut Daemon, signal: Signal) {
    daemon.workers(3);
    daemon.signal(signal);
    daemon.ends_with(0);
    for id in 0..3 {
        assert!(daemon.said(&format!("drained {id}")), "{}", daemon.transcript());
    }
}

fn twenty_idle() {
    up(fork(20, 100));
    idle();
}

fn twenty_that_drain() -> Report {
    serve(Prefork::new().workers(20), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

fn many_idle() {
    up(fork(MANY, 100));
    idle();
}

pub fn three_that_ignore_term() {
    fork_unresponsive(3, Signal::SIGTERM);
}

fn three_that_ignore_quit() {
    fork_unresponsive(3, Signal::SIGQUIT);
}
