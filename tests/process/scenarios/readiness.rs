//! `Worker::ready`, `ready_timeout`, and rolling restarts that wait until a replacement is ready.

use std::time::Duration;

use taskfork::{Event, Handle, Prefork, Report};

use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Gate, KILLED, SOON, Signal, idle, wait_for_end};
use crate::program::{EVER, drain, fail, say, serve, start_count, up, up_until_signal};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("old_process_stops_only_after_its_replacement_is_ready", ready_on_signal, |daemon| {
            let old = daemon.workers(2);
            for &worker in &old {
                daemon.send(worker, Signal::SIGUSR2);
            }
            daemon.wait_for("is ready");
            daemon.wait_for("is ready");
            daemon.signal(Signal::SIGHUP);
            for old in &old {
                let new = daemon.worker();
                assert_eq!(new.id, old.id);
                assert!(!daemon.said(&format!("drained {}", old.id)), "its replacement runs, but is not ready yet");
                daemon.send(new, Signal::SIGUSR2);
                daemon.wait_for(&format!("{new} is ready"));
            }
            for old in old {
                daemon.wait_for_times(&format!("drained {}", old.id), 1);
            }
            daemon.wait_for_times("log Rolling restart done", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped"));
        }),
        Scenario::reporting("hups_during_a_rolling_restart_coalesce_into_one_more", ready_on_signal, |daemon| {
            for worker in daemon.workers(2) {
                daemon.send(worker, Signal::SIGUSR2);
                daemon.wait_for("is ready");
            }
            daemon.signal(Signal::SIGHUP);
            let mut next = daemon.worker();
            daemon.signal(Signal::SIGHUP);
            // On Windows, the parent may notice the third request for a rolling restart only after the second rolling
            // restart has begun.
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
        Scenario::reporting("term_overtakes_a_rolling_restart_that_awaits_readiness", ready_on_signal, |daemon| {
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
        Scenario::reporting("ready_timeout_of_a_first_process_fails_the_startup", second_never_ready, |daemon| {
            daemon.ends_with(3);
            assert!(daemon.said("is not ready in time"));
            assert!(daemon.said("log Startup failed: child 1 ("), "{}", daemon.transcript());
            assert!(daemon.said("report: failed to start: child 1 ("), "{}", daemon.transcript());
            assert!(!daemon.said("restarting"));
        }),
        Scenario::reporting("exit_before_the_first_ready_fails_the_startup", second_exits_before_ready, |daemon| {
            daemon.ends_with(3);
            let panics = daemon.count("panicked: ");
            assert_eq!(daemon.count("log child 1") - panics, 2, "one line for its start and one for its exit");
            assert!(daemon.said(&format!(") {}", daemon.failed(7))));
            assert!(daemon.said("report: failed to start: child 1 ("), "{}", daemon.transcript());
            assert!(daemon.said("drained 0"), "the other worker drains, as in any stop");
        }),
        Scenario::reporting("added_worker_that_never_becomes_ready_is_removed", ready_on_signal, |daemon| {
            for worker in daemon.workers(2) {
                daemon.send(worker, Signal::SIGUSR2);
                daemon.wait_for("is ready");
            }
            daemon.signal(Signal::SIGTTIN);
            let third = daemon.worker();
            daemon.send(third, Signal::SIGKILL);
            daemon.wait_for("log Worker 2 could not start, removing it");
            daemon.wait_for("log Scaled to 2 workers");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("drained 0") && daemon.said("drained 1"), "{}", daemon.transcript());
        }),
        Scenario::reporting("exit_right_after_ready_is_not_a_startup_failure", exits_after_ready, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.count(&format!("{}, restarting", daemon.failed(7))), 20);
            assert!(daemon.said("report: gave up after 20 restarts"), "{}", daemon.transcript());
        }),
        Scenario::reporting("ready_while_the_parent_is_blocked_is_not_late", ready_while_parent_is_blocked, |daemon| {
            daemon.worker();
            daemon.wait_for("it is late by now");
            daemon.wait_for("is ready");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("not ready in time"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::new(
            "replacement_that_died_unnoticed_aborts_the_rolling_restart",
            replacement_dies_unnoticed,
            |daemon| {
                let old = daemon.worker();
                daemon.signal(Signal::SIGHUP);
                let new = daemon.worker();
                kill(new.pid, Signal::SIGUSR2);
                kill(old.pid, Signal::SIGUSR2);
                daemon.wait_for("a second later");
                daemon.wait_for("log Rolling restart aborted: the replacement of worker 0 failed");
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(daemon.said(&format!("child 0 (pid {}) exited normally", old.pid)), "{}", daemon.transcript());
                assert!(!daemon.said("restarting"), "{}", daemon.transcript());
            },
        ),
        Scenario::reporting(
            "restarted_process_that_misses_its_ready_timeout_is_restarted",
            second_process_is_late,
            |daemon| {
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
            },
        ),
        Scenario::reporting(
            "ready_timeout_of_a_replacement_aborts_the_rolling_restart",
            second_process_is_late,
            |daemon| {
                let old = daemon.worker();
                daemon.wait_for("is ready");
                daemon.signal(Signal::SIGHUP);
                let new = daemon.worker();
                daemon.wait_for("log Rolling restart aborted: the replacement of worker 0 failed");
                daemon.wait_for(&format!("{new} {}", daemon.ended_by_parent(KILLED)));
                daemon.signal(Signal::SIGTERM);
                daemon.wait_for(&format!("{old} exited normally"));
                daemon.ends_with(0);
                assert!(!daemon.said("restarting"));
            },
        ),
        Scenario::reporting("max_lifetime_replacement_is_ready_before_the_old_exits", short_lives, |daemon| {
            // One worker may already be replaced before the first process of the other worker is up.
            let mut lives = [vec![], vec![]];
            while lives.iter().any(|lives| lives.len() < 3) {
                let up = daemon.worker();
                lives[up.id].push(up);
            }
            for [old, new] in lives.iter().map(|lives| [lives[0], lives[1]]) {
                daemon.wait_for_times(&format!("{old} exited normally"), 1);
                assert!(
                    daemon.said_before(&format!("{old} has reached its maximum lifetime"), &format!("{new} is ready"))
                );
                assert!(daemon.said_before(&format!("{new} is ready"), &format!("{old} exited normally")));
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("restarting"), "{}", daemon.transcript());
        }),
    ]
}

/// The workers become ready when they get SIGUSR2, and then wait for a stop request.
fn ready_on_signal() -> Report {
    serve(Prefork::new().workers(2).ready_timeout(EVER), |worker| {
        assert!(!worker.stop_requested());
        up_until_signal(worker.id(), Signal::SIGUSR2);
        worker.ready();
        drain(&worker);
    })
}

/// Returns an event handler that blocks the parent when it has started worker 0's process of this generation. The
/// handler calls `first` with the pid of this process, and then waits until the gate opens.
fn block_on_start(generation: u32, first: fn(u32)) -> impl Fn(&Event, &Handle) {
    let gate = Gate::new();
    move |event, _| match event {
        Event::Started { process } if (process.id, process.generation) == (0, generation) => {
            first(process.pid.unwrap_or(0));
            gate.pass();
        }
        _ => {}
    }
}

/// The worker becomes ready while the parent is blocked. It opens the gate only after its `ready_timeout` is over.
fn ready_while_parent_is_blocked() -> Report {
    let gate = Gate::new();
    serve(Prefork::new().workers(1).ready_timeout(SOON).on_event(block_on_start(0, |_| ())), move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.ready();
        assert!(!worker.wait_for_stop(Some(2 * SOON)));
        say("it is late by now");
        gate.open(1);
        drain(&worker);
    })
}

/// The replacement exits while the parent is blocked. Without a `ready_timeout`, a replacement that has run for 1 s
/// counts as ready. So the old process opens the gate after 1.1 s.
fn replacement_dies_unnoticed() {
    let gate = Gate::new();
    let report = serve(Prefork::new().workers(1).on_event(block_on_start(1, wait_for_end)), move |worker| {
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

/// Worker 1 never becomes ready. Worker 0 becomes ready while the parent is blocked, so worker 0 cannot miss its
/// timeout on a slow machine.
fn second_never_ready() -> Report {
    let gate = Gate::new();
    let service = Prefork::new().workers(2).ready_timeout(SOON).graceful_timeout(SOON);
    serve(service.on_event(block_on_start(0, |_| ())), move |worker| {
        up(worker.id());
        if worker.id() == 0 {
            worker.ready();
            gate.open(1);
            return drain(&worker);
        }
        idle()
    })
}

fn second_exits_before_ready() -> Report {
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

fn exits_after_ready() -> Report {
    let service = Prefork::new().workers(1).max_restarts(20).ready_timeout(EVER);
    serve(service.restart_backoff(Duration::from_millis(1), Duration::from_millis(1)), |worker| {
        worker.ready();
        fail(7)
    })
}

/// The second process never becomes ready, and all other processes become ready at once. The first process does so
/// while the parent is blocked, so it cannot miss its timeout on a slow machine.
fn second_process_is_late() -> Report {
    let starts = start_count();
    let gate = Gate::new();
    let service = Prefork::new().workers(1).ready_timeout(SOON).on_event(block_on_start(0, |_| ()));
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
