//! How the whole service is asked to stop.

use nix::sys::signal::Signal;

use super::ends::three_idle;
use crate::Scenario;
use crate::daemon::Daemon;
use crate::program::{drained, fork, idle, ignore, say, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("term_lets_the_workers_drain_and_the_parent_exits_0", three_that_drain, |daemon| {
            drains_on(daemon, Signal::SIGTERM);
        }),
        Scenario::new("int_to_the_parent_lets_the_workers_drain_too", three_that_drain, |daemon| {
            drains_on(daemon, Signal::SIGINT);
        }),
        Scenario::new("quit_is_passed_on_as_quit", three_idle, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGQUIT);
            daemon.ends_with(0);
            assert_eq!(daemon.count("killed by signal 3"), 3);
        }),
        Scenario::new("quit_kills_who_does_not_listen_after_two_seconds", deaf_to_quit, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGQUIT);
            daemon.ends_with(0);
            assert_eq!(daemon.count("did not stop in time, killing it"), 3);
            assert_eq!(daemon.count("killed by signal 9"), 3);
        }),
        Scenario::new("a_second_term_kills_who_does_not_listen", deaf_to_term, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 3 processes");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("log Asked to stop once more, killing 3 processes"));
            assert_eq!(daemon.count("killed by signal 9"), 3);
        }),
        Scenario::new("a_second_int_after_a_term_kills_who_does_not_listen", deaf_to_term, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 3 processes");
            daemon.signal(Signal::SIGINT);
            daemon.ends_with(0);
        }),
        Scenario::new("ctrl_c_is_a_stop_and_not_a_round_of_restarts", twenty_idle, |daemon| {
            daemon.workers(20);
            daemon.signal_group(Signal::SIGINT);
            daemon.ends_with(0);
            assert!(!daemon.said("restarting"), "{}", daemon.transcript());
        }),
        Scenario::new("a_term_while_it_is_still_forking_overtakes_the_rest", many_idle, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.count(" started, generation 0") < MANY, "it had started all of them by then");
        }),
        Scenario::new("whatever_comes_after_the_stop_the_parent_exits_0", signals_itself_at_exit, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("at exit"));
        }),
        Scenario::new("a_worker_that_is_stopped_is_killed_by_a_second_term", three_idle, |daemon| {
            let workers = daemon.workers(3);
            crate::daemon::kill(workers[0].pid, Signal::SIGSTOP);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 3 processes");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
    ]
}

/// More than can be started before the first of them is heard of.
const MANY: usize = 2000;

pub fn three_that_drain() {
    let id = fork(3, 100);
    drained(id)
}

fn drains_on(daemon: &mut Daemon, signal: Signal) {
    daemon.workers(3);
    daemon.signal(signal);
    daemon.ends_with(0);
    for id in 0..3 {
        assert!(daemon.said(&format!("drained {id}")), "{}", daemon.transcript());
    }
}

fn signals_itself_at_exit() {
    extern "C" fn at_exit() {
        say("at exit");
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGTTIN] {
            let _ = nix::sys::signal::raise(signal);
        }
    }
    // SAFETY: the function is there until the end.
    assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
    up(fork(1, 100));
    idle();
}

fn twenty_idle() {
    up(fork(20, 100));
    idle();
}

fn many_idle() {
    up(fork(MANY, 100));
    idle();
}

fn deaf_to_term() {
    let id = fork(3, 100);
    ignore(Signal::SIGTERM);
    up(id);
    idle();
}

fn deaf_to_quit() {
    let id = fork(3, 100);
    ignore(Signal::SIGQUIT);
    up(id);
    idle();
}
