//! Workers that say when they can do their work.

use std::time::Duration;

use taskfork::{Event, Prefork, Report};

use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Gate, KILLED, SOON, Signal, idle, wait_for_end};
use crate::program::{EVER, drain, fail, say, serve, start_count, up, up_until_signal};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting(
            "the_old_worker_goes_when_the_new_one_is_ready_and_not_before",
            ready_when_told,
            |daemon| {
                let old = daemon.workers(2);
                for &worker in &old {
                    daemon.send(worker, Signal::SIGUSR2);
                }
                daemon.wait_for("is ready");
                daemon.wait_for("is ready");
                daemon.signal(Signal::SIGHUP);
                for old in old {
                    let new = daemon.worker();
                    assert_eq!(new.id, old.id);
                    assert!(!daemon.said(&format!("drained {}", old.id)), "its replacement is up, but not ready");
                    daemon.send(new, Signal::SIGUSR2);
                    daemon.wait_for(&format!("{new} is ready"));
                    daemon.wait_for(&format!("drained {}", old.id));
                }
                daemon.wait_for("log Rolling restart done");
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(daemon.said("report: stopped"));
            },
        ),
        Scenario::reporting("a_second_hup_during_a_roll_is_one_more_roll_after_it", ready_when_told, |daemon| {
            for worker in daemon.workers(2) {
                daemon.send(worker, Signal::SIGUSR2);
                daemon.wait_for("is ready");
            }
            daemon.signal(Signal::SIGHUP);
            let mut next = daemon.worker();
            daemon.signal(Signal::SIGHUP);
            // Windows may tell of a third one late, when the next roll has begun.
            if cfg!(unix) {
                daemon.signal(Signal::SIGHUP);
            }
            for ups in 0..4 {
                assert_eq!(next.id, ups % 2);
                daemon.send(next, Signal::SIGUSR2);
                if ups < 3 {
                    next = daemon.worker();
                }
            }
            daemon.wait_for_times("log Rolling restart done", 2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("up "), 6);
        }),
        Scenario::reporting("a_term_overtakes_a_roll_whose_replacement_is_not_ready", ready_when_told, |daemon| {
            for worker in daemon.workers(2) {
                daemon.send(worker, Signal::SIGUSR2);
                daemon.wait_for("is ready");
            }
            daemon.signal(Signal::SIGHUP);
            let unready = daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 3 processes");
            daemon.send(unready, Signal::SIGUSR2);
            daemon.ends_with(0);
        }),
        Scenario::reporting("who_is_late_and_never_was_ready_is_a_startup_failure", never_ready, |daemon| {
            daemon.ends_with(3);
            assert!(daemon.said("is not ready in time"));
            assert!(daemon.said("log Startup failed: child 1 ("), "{}", daemon.transcript());
            assert!(daemon.said("report: failed to start: child 1 ("), "{}", daemon.transcript());
            assert!(!daemon.said("restarting"));
        }),
        Scenario::reporting("who_ends_and_never_was_ready_is_a_startup_failure", ends_unready, |daemon| {
            daemon.ends_with(3);
            let words = daemon.count("panicked: ");
            assert_eq!(daemon.count("log child 1") - words, 2, "it was started, and has ended");
            assert!(daemon.said(&format!(") {}", daemon.failed(7))));
            assert!(daemon.said("report: failed to start: child 1 ("), "{}", daemon.transcript());
            assert!(daemon.said("drained 0"), "the others are asked to go, as in any stop");
        }),
        Scenario::reporting("one_more_worker_that_cannot_be_brought_up_is_given_up_alone", ready_when_told, |daemon| {
            for worker in daemon.workers(2) {
                daemon.send(worker, Signal::SIGUSR2);
                daemon.wait_for("is ready");
            }
            daemon.signal(Signal::SIGTTIN);
            let third = daemon.worker();
            daemon.send(third, Signal::SIGKILL);
            daemon.wait_for("log Child 2 could not be brought up, giving it up");
            daemon.wait_for("log Scaled to 2 processes");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("drained 0") && daemon.said("drained 1"), "{}", daemon.transcript());
        }),
        Scenario::reporting("who_is_ready_and_ends_at_once_has_been_ready", ready_and_gone, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.count(&format!("{}, restarting", daemon.failed(7))), 20);
            assert!(daemon.said("report: gave up after 20 restarts"), "{}", daemon.transcript());
        }),
        Scenario::reporting(
            "who_became_ready_while_the_parent_was_held_up_is_not_late",
            ready_when_told_soon,
            |daemon| {
                daemon.worker();
                daemon.wait_for("it is late by now");
                daemon.wait_for("is ready");
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(!daemon.said("not ready in time"), "{}", daemon.transcript());
            },
        )
        .for_processes(),
        Scenario::new(
            "a_replacement_that_died_while_the_parent_was_held_up_takes_nobodys_place",
            dies_when_told,
            |daemon| {
                let old = daemon.worker();
                daemon.signal(Signal::SIGHUP);
                let new = daemon.worker();
                kill(new.pid, Signal::SIGUSR2);
                kill(old.pid, Signal::SIGUSR2);
                daemon.wait_for("a second later");
                daemon.wait_for("log Rolling restart aborted: the replacement of child 0 failed");
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(daemon.said(&format!("child 0 (pid {}) exited normally", old.pid)), "{}", daemon.transcript());
                assert!(!daemon.said("restarting"), "{}", daemon.transcript());
            },
        ),
        Scenario::reporting("who_is_late_in_a_later_life_is_killed_and_restarted", late_in_second_life, |daemon| {
            let first = daemon.worker();
            daemon.wait_for("is ready");
            daemon.send(first, Signal::SIGKILL);
            let second = daemon.worker();
            daemon.wait_for(&format!("{second} is not ready in time"));
            daemon.wait_for(&format!("{second} {}, restarting", daemon.ended_by_parent(KILLED)));
            daemon.worker();
            daemon.wait_for("is ready");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting(
            "a_replacement_that_is_late_is_killed_and_the_old_one_stays",
            late_in_second_life,
            |daemon| {
                let old = daemon.worker();
                daemon.wait_for("is ready");
                daemon.signal(Signal::SIGHUP);
                let new = daemon.worker();
                daemon.wait_for("log Rolling restart aborted: the replacement of child 0 failed");
                daemon.wait_for(&format!("{new} {}", daemon.ended_by_parent(KILLED)));
                daemon.signal(Signal::SIGTERM);
                daemon.wait_for(&format!("{old} exited normally"));
                daemon.ends_with(0);
                assert!(!daemon.said("restarting"));
            },
        ),
        Scenario::reporting("a_replacement_for_age_is_ready_before_the_old_one_goes", short_lives, |daemon| {
            // One may be replaced before the other is up for the first time.
            let mut lives = [vec![], vec![]];
            while lives.iter().any(|lives| lives.len() < 3) {
                let up = daemon.worker();
                lives[up.id].push(up);
            }
            for [old, new] in lives.iter().map(|lives| [lives[0], lives[1]]) {
                daemon.wait_for_times(&format!("{old} exited normally"), 1);
                assert!(daemon.said_before(&format!("{old} has served its time"), &format!("{new} is ready")));
                assert!(daemon.said_before(&format!("{new} is ready"), &format!("{old} exited normally")));
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("restarting"), "{}", daemon.transcript());
        }),
    ]
}

/// Ready on SIGUSR2, and then drains.
fn ready_when_told() -> Report {
    serve(Prefork::new().workers(2).ready_timeout(EVER), |worker| {
        assert!(!worker.stop_requested());
        up_until_signal(worker.id(), Signal::SIGUSR2);
        worker.ready();
        drain(&worker);
    })
}

/// Once the first worker's process of this generation is started, the parent hears of nothing until it has done this with
/// its pid, and the gate is open.
fn held_up(generation: u32, first: fn(u32)) -> impl Fn(&Event) {
    let gate = Gate::new();
    move |event| match event {
        Event::Started { process } if (process.id, process.generation) == (0, generation) => {
            first(process.pid.unwrap_or(0));
            gate.pass();
        }
        _ => {}
    }
}

/// Says so when the parent is to find it late.
fn ready_when_told_soon() -> Report {
    let gate = Gate::new();
    serve(Prefork::new().workers(1).ready_timeout(SOON).on_event(held_up(0, |_| ())), move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.ready();
        assert!(!worker.wait_for_stop(Some(2 * SOON)));
        say("it is late by now");
        gate.open(1);
        drain(&worker);
    })
}

/// The second one. The first one says when the second would have taken its place.
fn dies_when_told() {
    let gate = Gate::new();
    let report = serve(Prefork::new().workers(1).on_event(held_up(1, wait_for_end)), move |worker| {
        assert!(!worker.stop_requested());
        up_until_signal(worker.id(), Signal::SIGUSR2);
        if worker.generation() == 1 {
            std::process::exit(7);
        }
        assert!(!worker.wait_for_stop(Some(Duration::from_millis(1100))));
        say("a second later");
        gate.open(1);
        drain(&worker);
    });
    assert!(report.is_success());
}

/// The second one. The first one is, while nobody looks at the time.
fn never_ready() -> Report {
    let gate = Gate::new();
    let service = Prefork::new().workers(2).ready_timeout(SOON).graceful_timeout(SOON);
    serve(service.on_event(held_up(0, |_| ())), move |worker| {
        up(worker.id());
        if worker.id() == 0 {
            worker.ready();
            gate.open(1);
            return drain(&worker);
        }
        idle()
    })
}

fn ends_unready() -> Report {
    let gate = Gate::new();
    serve(Prefork::new().workers(2).ready_timeout(EVER), move |worker| {
        assert!(!worker.stop_requested());
        if worker.id() == 1 {
            gate.pass();
            fail(7);
        }
        worker.ready();
        gate.open(1);
        drain(&worker);
    })
}

fn ready_and_gone() -> Report {
    let service = Prefork::new().workers(1).max_restarts(20).ready_timeout(EVER);
    serve(service.restart_backoff(Duration::from_millis(1), Duration::from_millis(1)), |worker| {
        worker.ready();
        fail(7)
    })
}

/// The second process is late, all others are ready at once; the first one while nobody looks at the time.
fn late_in_second_life() -> Report {
    let (starts, gate) = (start_count(), Gate::new());
    let service = Prefork::new().workers(1).ready_timeout(SOON).on_event(held_up(0, |_| ()));
    serve(service, move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        let start = starts();
        if start == 2 {
            idle();
        }
        worker.ready();
        if start == 1 {
            gate.open(1);
        }
        drain(&worker);
    })
}

fn short_lives() -> Report {
    serve(Prefork::new().workers(2).ready_timeout(EVER).max_lifetime(Duration::from_millis(100)), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.ready();
        drain(&worker);
    })
}
