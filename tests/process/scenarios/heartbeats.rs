//! Workers that are to give signs of life.

use std::time::Duration;

use taskfork::{Event, Prefork, Report, Worker};

use crate::Scenario;
use crate::daemon::{Daemon, kill};
use crate::os::{ABORTED, Gate, IS_ABORTED, KILLED, Signal};
use crate::program::{EVER, say, serve, up};

/// Beats come ten times as often, and the parent looks once in it.
pub const TIMEOUT: Duration = Duration::from_secs(1);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("who_hangs_is_ended_and_restarted_and_who_beats_is_not", second_hangs, |daemon| {
            let workers = daemon.workers(2);
            daemon.wait_for(&format!("{} gives no sign of life", workers[1]));
            daemon.wait_for(&format!("{} {}, restarting", workers[1], daemon.ended_by_parent(ABORTED)));
            assert_eq!(daemon.worker().id, 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("gives no sign of life"), 1, "the other one beats:\n{}", daemon.transcript());
            assert!(!daemon.said("out of memory"), "{}", daemon.transcript());
        }),
        Scenario::reporting("who_is_stopped_does_not_die_of_an_abort_and_is_killed", two_that_beat, |daemon| {
            let workers = daemon.workers(2);
            kill(workers[0].pid, Signal::SIGSTOP);
            for what in IS_ABORTED {
                daemon.wait_for(&format!("child 0 (pid {}) {what}", workers[0].pid));
            }
            daemon.wait_for(&format!("child 0 (pid {}) {KILLED}, restarting", workers[0].pid));
            assert_eq!(daemon.worker().id, 0);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::reporting(
            "nobody_is_killed_for_what_he_missed_while_the_parent_was_held_up",
            silent_at_first,
            |daemon| {
                daemon.workers(2);
                ticks(daemon, 30);
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(!daemon.said("no sign of life"), "{}", daemon.transcript());
            },
        ),
        Scenario::reporting("nobody_is_asked_for_signs_of_life_before_he_is_ready", beats_when_ready, |daemon| {
            daemon.worker();
            daemon.wait_for("is ready");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("no sign of life"), "{}", daemon.transcript());
        }),
    ]
}

pub fn ticks(daemon: &mut Daemon, n: usize) {
    for _ in 0..n {
        daemon.wait_for("tick");
    }
}

/// Of workers that say when they are ready, however late that is: from then on they are to beat.
pub fn service(workers: usize) -> Prefork {
    Prefork::new().workers(workers).ready_timeout(EVER).heartbeat_timeout(TIMEOUT)
}

/// Ten beats in each timeout, and a tick with each if it is the one that ticks, until asked to stop.
pub fn beat(worker: &Worker, ticks: bool) {
    while !worker.wait_for_stop(Some(TIMEOUT / 10)) {
        worker.heartbeat();
        if ticks {
            say("tick");
        }
    }
}

/// In its first life, once the other one is up.
pub fn second_hangs() -> Report {
    let gate = Gate::new();
    serve(service(2), move |worker| {
        assert!(!worker.stop_requested());
        if (worker.id(), worker.generation()) == (1, 0) {
            gate.pass();
            up(worker.id());
            worker.ready();
            loop {
                std::hint::spin_loop();
            }
        }
        worker.ready();
        up(worker.id());
        gate.open(1);
        beat(&worker, false);
    })
}

fn two_that_beat() -> Report {
    serve(service(2), |worker| {
        assert!(!worker.stop_requested());
        worker.ready();
        up(worker.id());
        beat(&worker, false);
    })
}

/// The second one, for as long as the parent is held up: three timeouts, by the beats of the first one.
fn silent_at_first() -> Report {
    let gate = Gate::new();
    let parents = Gate::new();
    let service = service(2).on_event(move |event| {
        if matches!(event, Event::Ready { process } if process.id == 1) {
            parents.pass();
        }
    });
    serve(service, move |worker| {
        assert!(!worker.stop_requested());
        worker.ready();
        up(worker.id());
        if worker.id() == 1 {
            gate.pass();
        } else {
            for _ in 0..30 {
                assert!(!worker.wait_for_stop(Some(TIMEOUT / 10)));
                worker.heartbeat();
            }
            gate.open(2);
        }
        beat(&worker, worker.id() == 1);
    })
}

fn beats_when_ready() -> Report {
    serve(service(1), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        assert!(!worker.wait_for_stop(Some(3 * TIMEOUT)), "it takes its time");
        worker.ready();
        beat(&worker, false);
    })
}
