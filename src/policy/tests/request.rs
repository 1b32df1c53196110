//! Requests that arrive faster than the supervisor executes them.

use super::*;

const FLOOD: usize = 100_000;

/// Returns a service whose supervisor has not executed the actions of the last request yet.
fn busy(workers: usize) -> Sim {
    let mut sim = Sim::new(config(workers));
    sim.actions_per_event = 1;
    sim.request(Request::Reopen);
    assert!(!sim.policy.actions.is_empty());
    sim
}

#[test]
fn pending_requests_of_one_kind_count_as_one() {
    let mut sim = busy(3);
    sim.actions_per_event = 0;
    for _ in 0..FLOOD {
        for request in [Request::ScaleUp, Request::Reopen, Request::Roll, Request::ScaleDown] {
            sim.request(request);
        }
    }
    assert_eq!(sim.policy.actions.len(), 2, "the other two processes have not got the first request yet");
    sim.actions_per_event = usize::MAX;
    sim.run_actions();
    sim.run_actions();
    let reopens = |sent: &[WorkerSignal]| sent.iter().filter(|&&signal| signal == WorkerSignal::Reopen).count();
    let count: usize = sim.alive.values().map(|alive| reopens(&alive.sent)).sum();
    assert_eq!(count, 3 + 3, "the added process was not started yet");
    assert_eq!(sim.log.iter().filter(|line| line.starts_with("Scaled")).count(), 2);
    assert_eq!(sim.log.iter().filter(|line| *line == "Rolling restart").count(), 1);
}

#[test]
fn a_request_after_each_action_keeps_the_queue_short() {
    let mut sim = busy(16);
    for number in 0..FLOOD {
        sim.request([Request::Reopen, Request::Roll, Request::ScaleUp, Request::ScaleDown][number % 4]);
    }
    assert!(sim.policy.actions.len() <= 2 * 17 + 8);
}

#[test]
fn a_stop_overtakes_pending_requests() {
    let mut sim = busy(3);
    sim.request(Request::ScaleUp);
    sim.actions_per_event = usize::MAX;
    sim.request(Request::Stop);
    let reopens = sim.alive.values().filter(|alive| alive.sent[0] == WorkerSignal::Reopen).count();
    assert!(reopens <= 2, "the rest of the queued signals was dropped");
    assert!(sim.alive.values().all(|alive| alive.sent.last() == Some(&WorkerSignal::Stop)));
    assert!(!sim.policy.has_requests() && !sim.logged("Scaled"));
}

#[test]
fn requests_wait_until_they_are_executed() {
    let now = some_time();
    let mut policy = Policy::new(config(1), 1, now);
    assert!(!policy.has_requests());
    policy.handle_request(now, Request::Reopen);
    assert!(policy.has_requests());
    policy.execute_requests(now);
    assert!(!policy.has_requests());
}
