//! Heartbeats, and workers that do not send them.

use std::time::Duration;

use taskfork::{Event, Prefork, Report, Worker};

use crate::Scenario;
use crate::daemon::{Daemon, kill};
use crate::os::{ABORTED, Gate, IS_ABORTED, KILLED, Signal};
use crate::program::{EVER, say, serve, up};

/// The heartbeat timeout. Workers send ten heartbeats in this time, and the parent checks them once.
pub const TIMEOUT: Duration = Duration::from_secs(1);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("only_a_worker_without_heartbeats_is_restarted", second_hangs, |daemon| {
            let workers = daemon.workers(2);
            daemon.wait_for(&format!("{} has sent no heartbeat in time", workers[1]));
            daemon.wait_for(&format!("{} {}, restarting", workers[1], daemon.ended_by_parent(ABORTED)));
            assert_eq!(daemon.worker().id, 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(
                daemon.count("has sent no heartbeat in time"),
                1,
                "the other worker sends heartbeats:\n{}",
                daemon.transcript()
            );
            assert!(!daemon.said("out of memory"), "{}", daemon.transcript());
        }),
        Scenario::reporting("a_worker_stopped_by_sigstop_is_killed", two_with_heartbeats, |daemon| {
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
        Scenario::reporting("heartbeats_missed_while_the_parent_is_blocked_are_forgiven", blocked_parent, |daemon| {
            daemon.workers(2);
            ticks(daemon, 30);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("no heartbeat in time"), "{}", daemon.transcript());
        }),
        Scenario::reporting("heartbeats_are_due_only_after_ready", ready_after_three_timeouts, |daemon| {
            daemon.worker();
            daemon.wait_for("is ready");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("no heartbeat in time"), "{}", daemon.transcript());
        }),
    ]
}

pub fn ticks(daemon: &mut Daemon, n: usize) {
    for _ in 0..n {
        daemon.wait_for("tick");
    }
}

/// Returns a service whose ready timeout never expires. A worker must send heartbeats once it is ready.
pub fn service(workers: usize) -> Prefork {
    Prefork::new().workers(workers).ready_timeout(EVER).heartbeat_timeout(TIMEOUT)
}

/// Sends ten heartbeats per timeout until a stop request. With `ticks`, prints `tick` after each.
pub fn send_heartbeats(worker: &Worker, ticks: bool) {
    while !worker.wait_for_stop(Some(TIMEOUT / 10)) {
        worker.heartbeat();
        if ticks {
            say("tick");
        }
    }
}

/// The first process of worker 1 hangs once worker 0 is up.
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
        send_heartbeats(&worker, false);
    })
}

fn two_with_heartbeats() -> Report {
    serve(service(2), |worker| {
        assert!(!worker.stop_requested());
        worker.ready();
        up(worker.id());
        send_heartbeats(&worker, false);
    })
}

/// The parent blocks in `on_event` when worker 1 is ready. Worker 1 sends no heartbeats while the parent is blocked.
/// Worker 0 releases the parent and worker 1 after 30 heartbeats, which take three heartbeat timeouts.
fn blocked_parent() -> Report {
    let gate = Gate::new();
    let parent_gate = Gate::new();
    let service = service(2).on_event(move |event, _| {
        if matches!(event, Event::Ready { process } if process.id == 1) {
            parent_gate.pass();
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
        send_heartbeats(&worker, worker.id() == 1);
    })
}

fn ready_after_three_timeouts() -> Report {
    serve(service(1), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        assert!(!worker.wait_for_stop(Some(3 * TIMEOUT)), "no stop request comes before the worker is ready");
        worker.ready();
        send_heartbeats(&worker, false);
    })
}
