//! Heartbeats.

use super::*;

#[test]
fn a_worker_without_heartbeats_is_aborted_killed_and_restarted() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(2) });
    sim.now += 5 * SECOND;
    sim.policy.handle_beat(sim.now, 0, 0);
    sim.step();
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Abort]);
    assert!(sim.sent(0, 0).is_empty());
    sim.pass(SECOND);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Abort, WorkerSignal::Kill]);
    sim.exit_killed();
    assert_eq!(sim.alive(), [(0, 0), (1, 1)]);
    sim.step();
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort], "no heartbeat for 15 s");
}

#[test]
fn heartbeats_are_checked_once_per_timeout() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(50) });
    let first = sim.policy.next_deadline();
    for id in 0..50 {
        sim.now += Duration::from_millis(10);
        sim.policy.handle_beat(sim.now, id, 0);
    }
    assert_eq!(sim.policy.next_deadline(), first);
    sim.step();
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + 10 * SECOND));
}

#[test]
fn a_parent_that_was_suspended_aborts_no_worker() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    sim.wake_at(sim.now + 3600 * SECOND);
    assert!(sim.sent(0, 0).is_empty());
    sim.step();
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort], "no heartbeat came in the period after the suspension");
}

#[test]
fn a_slightly_late_parent_allows_one_more_heartbeat_period() {
    let timeout = 10 * SECOND;
    let late = |by| {
        let mut sim = Sim::new(Config { heartbeat_timeout: Some(timeout), ..config(1) });
        sim.wake_at(sim.now + timeout + by);
        sim
    };
    assert_eq!(late(SECOND - Duration::from_millis(1)).sent(0, 0), [WorkerSignal::Abort]);
    let mut sim = late(SECOND);
    assert!(sim.sent(0, 0).is_empty());
    let next = sim.now + timeout;
    sim.wake_at(next + 2 * SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort], "the second doubtful check aborts");
    let mut sim = late(5 * SECOND);
    let next = sim.now + timeout;
    sim.wake_at(next + 2 * SECOND);
    assert!(sim.sent(0, 0).is_empty(), "after a forgiven check, a first doubtful check does not abort");
}

#[test]
fn an_interrupted_parent_allows_one_more_heartbeat_period() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(2) });
    sim.now += 4 * SECOND;
    sim.policy.handle_interruption(sim.now);
    sim.step();
    assert!(sim.sent(0, 0).is_empty() && sim.sent(1, 0).is_empty());
    sim.now += 4 * SECOND;
    sim.policy.handle_beat(sim.now, 0, 0);
    sim.step();
    assert!(sim.sent(0, 0).is_empty());
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Abort]);
    sim.policy.handle_interruption(sim.now);
    sim.step();
    assert!(sim.sent(0, 0).is_empty(), "the heartbeat has reset the count of doubtful checks");
}

#[test]
fn heartbeats_of_a_replacement_are_checked() {
    let timeout = Some(Duration::from_millis(300));
    let mut sim = Sim::new(Config { heartbeat_timeout: timeout, ..config(2) });
    let beat = |sim: &mut Sim| {
        sim.now += Duration::from_millis(100);
        for (id, generation) in sim.alive().into_iter().filter(|&one| one != (0, 1)) {
            sim.policy.handle_beat(sim.now, id, generation);
        }
    };
    sim.request(Request::Roll);
    while sim.sent(0, 1).is_empty() {
        beat(&mut sim);
        sim.step();
    }
    assert_eq!(sim.sent(0, 1), [WorkerSignal::Abort]);
    let aborted = sim.now;
    while sim.sent(0, 1).len() < 2 {
        beat(&mut sim);
        sim.step();
    }
    assert_eq!((sim.sent(0, 1), sim.now - aborted), (&[WorkerSignal::Abort, WorkerSignal::Kill][..], SECOND));
    sim.exit_killed();
    assert!(sim.sent(0, 0).is_empty() && sim.sent(1, 0).is_empty());
    assert!(sim.logged("Rolling restart aborted"));
}

#[test]
fn a_replacement_with_heartbeats_takes_over() {
    let timeout = Some(Duration::from_millis(300));
    let mut sim = Sim::new(Config { heartbeat_timeout: timeout, ..config(1) });
    sim.request(Request::Roll);
    while sim.sent(0, 0).is_empty() {
        sim.now += Duration::from_millis(100);
        sim.policy.handle_beat(sim.now, 0, 0);
        sim.policy.handle_beat(sim.now, 0, 1);
        sim.step();
    }
    assert!(sim.sent(0, 1).is_empty());
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    sim.now += Duration::from_millis(9_500);
    sim.policy.handle_beat(sim.now, 0, 0);
    sim.request(Request::Roll);
    sim.wake_at(sim.now + 10 * SECOND);
    assert!(sim.sent(0, 1).is_empty());
}

#[test]
fn ready_counts_as_a_heartbeat() {
    let config = Config { ready_timeout: Some(60 * SECOND), heartbeat_timeout: Some(10 * SECOND), ..config(1) };
    let mut sim = Sim::new(config);
    sim.pass(15 * SECOND);
    sim.ready(0, 0);
    sim.pass(5 * SECOND);
    assert!(sim.sent(0, 0).is_empty());
    sim.pass(10 * SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort]);
}

#[test]
fn a_stop_does_not_postpone_the_kill_after_abort() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    sim.step();
    sim.request(Request::Stop);
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + SECOND), "the only deadline is that of the abort");
    sim.step();
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort, WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn heartbeats_are_not_checked_before_readiness() {
    let ready_timeout = Some(60 * SECOND);
    let mut sim = Sim::new(Config { ready_timeout, heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    sim.pass(59 * SECOND);
    assert!(sim.sent(0, 0).is_empty());
}

#[test]
fn an_aborted_process_has_failed_even_with_status_0() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    sim.step();
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort]);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 1)], 1));
}

#[test]
fn a_process_that_survives_sigkill_is_replaced() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(SECOND), ..config(1) });
    sim.blocked = vec![(0, 0), (0, 1)];
    sim.pass(2 * SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort, WorkerSignal::Kill]);
    sim.pass(9 * SECOND);
    assert_eq!(sim.alive(), [(0, 0)]);
    sim.pass(SECOND);
    assert_eq!(sim.alive(), [(0, 1)]);
    assert!(sim.logged("child 0 (pid 1) is stale, restarting"));
    sim.pass(14 * SECOND);
    assert_eq!(sim.abandoned.len(), 2);
    assert!(sim.alive().is_empty(), "two abandoned processes are the limit");
    sim.end_abandoned(0);
    assert_eq!(sim.alive(), [(0, 2)]);
    assert!(!sim.policy.has_killed(sim.abandoned[0]));
}

#[test]
fn abort_timeout_is_the_time_from_sigabrt_to_sigkill() {
    let config = Config { heartbeat_timeout: Some(SECOND), abort_timeout: 5 * SECOND, ..config(1) };
    let mut sim = Sim::new(config);
    sim.pass(SECOND + 5 * SECOND - Duration::from_millis(1));
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort]);
    sim.pass(Duration::from_millis(1));
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort, WorkerSignal::Kill]);
}

#[test]
fn a_core_dump_delays_sigkill() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(SECOND), ..config(1) });
    sim.dumping.push((0, 0));
    sim.pass(50 * SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort]);
    sim.end(0, 0, Exit::Signal(6));
    assert!(sim.logged("killed by signal 6, restarting"));
    assert!(!sim.logged("did not stop in time"));
}

#[test]
fn sigkill_follows_soon_after_a_core_dump() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(SECOND), ..config(1) });
    sim.dumping.push((0, 0));
    sim.pass(10 * SECOND);
    sim.dumping.clear();
    sim.pass(SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort, WorkerSignal::Kill]);
}

#[test]
fn a_core_dump_delays_sigkill_by_a_minute_at_most() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(SECOND), ..config(1) });
    sim.dumping.push((0, 0));
    sim.pass(2 * SECOND + 60 * SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort, WorkerSignal::Kill]);
}

#[test]
fn only_the_first_stop_waits_for_core_dumps() {
    let mut sim = Sim::new(config(2));
    sim.dumping = vec![(0, 0), (1, 0)];
    sim.request(Request::Stop);
    sim.pass(GRACEFUL + 10 * SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    sim.end(0, 0, Exit::Signal(6));
    sim.request(Request::Stop);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn a_very_late_check_forgives_an_earlier_doubtful_one() {
    let timeout = 10 * SECOND;
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(timeout), ..config(1) });
    for late in [SECOND, 5 * SECOND, SECOND] {
        sim.wake_at(sim.now + timeout + late);
        assert!(sim.sent(0, 0).is_empty(), "late by {late:?}");
    }
    sim.wake_at(sim.now + timeout + SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort]);
}
