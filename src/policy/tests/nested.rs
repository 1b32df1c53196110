//! Workers that call a function that starts workers.

use super::*;

fn is_nested(outcome: &Outcome) -> bool {
    matches!(outcome, Ok(Reason::StartupFailed { nested_call: true, failures: None, .. }))
}

#[test]
fn a_failure_after_a_nested_call_is_not_retried() {
    // Without a restart left, the reason is still the nested call.
    for max_restarts in [None, Some(0)] {
        let mut sim = Sim::new(Config { max_restarts, ..config(2) });
        sim.end_after_nested_call(1, 0, Exit::Code(1));
        assert_eq!((sim.alive(), sim.sent(0, 0)), (vec![(0, 0)], &[WorkerSignal::Stop][..]));
        sim.end(0, 0, Exit::Code(0));
        let line =
            "Startup failed: child 1 (pid 2) exited with status 1 after it had called a function that starts workers";
        assert!(sim.logged(line), "{:?}", sim.log);
        assert!(is_nested(&sim.outcome()));
    }
}

#[test]
fn a_late_nested_call_is_not_retried_either() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.pass(60 * SECOND);
    sim.end_after_nested_call(0, 0, Exit::Signal(6));
    assert!(is_nested(&sim.outcome()));
}

#[test]
fn only_an_exit_that_needs_a_restart_counts_nested_calls() {
    for (restart_policy, exit) in [
        (RestartPolicy::OnFailure, Exit::Code(0)),
        (RestartPolicy::Never, Exit::Code(0)),
        (RestartPolicy::Never, Exit::Code(1)),
    ] {
        let mut sim = Sim::new(Config { restart_policy, ..config(1) });
        sim.end_after_nested_call(0, 0, exit);
        assert!(matches!(sim.outcome(), Ok(Reason::Finished)), "{restart_policy:?} {exit}");
    }
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Always, ..config(1) });
    sim.end_after_nested_call(0, 0, Exit::Code(0));
    assert!(is_nested(&sim.outcome()));
}

#[test]
fn requested_exits_do_not_count_nested_calls() {
    let mut sim = Sim::new(config(1));
    let process = sim.alive[&(0, 0)].process;
    let on_request = ExitedProcess { nested_call: true, stop_noted: true, ..exited(process, Exit::Code(0)) };
    sim.end_process(0, 0, on_request);
    sim.step();
    assert_eq!(sim.alive(), [(0, 1)], "replaced after a stop request from another process");
    sim.retire(0, 1);
    sim.end_after_nested_call(0, 1, Exit::Code(0));
    sim.step();
    assert_eq!(sim.alive(), [(0, 2)], "replaced after it has retired");
    sim.request(Request::Stop);
    sim.end_after_nested_call(0, 2, Exit::Code(1));
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
}

#[test]
fn an_added_worker_with_a_nested_call_is_dropped() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::ScaleUp);
    sim.end_after_nested_call(1, 0, Exit::Code(1));
    assert!(sim.logged("Worker 1 could not start, removing it"), "{:?}", sim.log);
    sim.pass(10 * SECOND);
    assert_eq!((sim.alive(), sim.stopping), (vec![(0, 0)], false));
}

#[test]
fn a_replacement_with_a_nested_call_has_failed() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.end_after_nested_call(0, 1, Exit::Code(1));
    assert!(sim.logged("Rolling restart aborted: the replacement of worker 0 failed"), "{:?}", sim.log);
    assert_eq!((sim.alive(), sim.stopping), (vec![(0, 0), (1, 0)], false));
}

#[test]
fn a_replaced_process_with_a_nested_call_is_no_failure() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.end_after_nested_call(0, 0, Exit::Code(1));
    sim.pass(SECOND);
    assert_eq!((sim.alive(), sim.stopping), (vec![(0, 1)], false));
}

#[test]
fn a_nested_call_of_a_removed_worker_ends_its_drain() {
    let mut sim = Sim::new(with_queues(2));
    sim.has_work = true;
    sim.request(Request::ScaleDown);
    sim.end_after_nested_call(1, 0, Exit::Code(1));
    assert_eq!((sim.alive(), sim.policy.next_deadline(), sim.stopping), (vec![(0, 0)], None, false));
    // The next process of a removed worker serves only the queue.
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!(sim.alive(), [(0, 0), (1, 2)]);
    sim.end_after_nested_call(1, 2, Exit::Code(1));
    assert_eq!((sim.alive(), sim.policy.next_deadline(), sim.stopping), (vec![(0, 0)], None, false));
}

#[test]
fn a_removed_worker_in_backoff_nests_once() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..with_queues(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.has_work = true;
    sim.end(1, 0, Exit::Signal(9));
    sim.request(Request::ScaleDown);
    assert_eq!(sim.alive(), [(0, 0), (1, 1)]);
    sim.end_after_nested_call(1, 1, Exit::Code(1));
    assert_eq!((sim.alive(), sim.policy.next_deadline(), sim.stopping), (vec![(0, 0)], None, false));
}
