//! Scaling up and down, and draining queues.

use super::*;

#[test]
fn scaling_adds_the_lowest_id_and_removes_the_highest() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::ScaleUp);
    assert_eq!(sim.alive(), [(0, 0), (1, 0), (2, 0)]);
    sim.end(0, 0, Exit::Code(0));
    sim.request(Request::ScaleUp);
    assert!(sim.alive.contains_key(&(0, 1)), "id 0 was free");
    for _ in 0..5 {
        sim.request(Request::ScaleDown);
    }
    assert_eq!(sim.sent(2, 0), [WorkerSignal::Stop]);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
    assert!(sim.sent(0, 1).is_empty());
}

#[test]
fn a_readded_worker_serves_while_its_old_process_stops() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    assert_eq!(sim.alive(), [(0, 0), (1, 0), (1, 1)]);
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    assert_eq!(sim.alive(), [(0, 0), (1, 0), (1, 1)], "a worker has at most two processes");
    sim.end(1, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 0), (1, 1), (1, 2)]);
}

#[test]
fn a_removed_worker_stops_once_its_queue_is_empty() {
    let mut sim = Sim::new(with_queues(2));
    sim.request(Request::ScaleDown);
    assert_eq!((serving(&sim), sim.policy.wanted()), (vec![0], 1));
    assert!(sim.sent(1, 0).is_empty());
    sim.has_work = true;
    sim.pass(3 * SECOND);
    assert!(sim.sent(1, 0).is_empty(), "the queue is not empty");
    sim.has_work = false;
    sim.step();
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
    sim.pass(GRACEFUL);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn a_drain_lasts_no_longer_than_graceful_timeout() {
    let mut sim = Sim::new(with_queues(2));
    sim.has_work = true;
    sim.request(Request::ScaleDown);
    sim.pass(GRACEFUL - Duration::from_millis(1));
    assert!(sim.sent(1, 0).is_empty());
    sim.pass(Duration::from_millis(1));
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
}

#[test]
fn a_stop_does_not_wait_for_queues() {
    let mut sim = Sim::new(with_queues(2));
    sim.request(Request::ScaleDown);
    sim.request(Request::Stop);
    assert_eq!((sim.sent(0, 0), sim.sent(1, 0)), (&[WorkerSignal::Stop][..], &[WorkerSignal::Stop][..]));
}

#[test]
fn a_failed_drain_is_finished_by_another_process() {
    let mut sim = Sim::new(Config { max_restarts: Some(2), ..with_queues(2) });
    sim.has_work = true;
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(9));
    assert_eq!((sim.alive(), sim.policy.wanted(), serving(&sim)), (vec![(0, 0), (1, 1)], 1, vec![0]));
    sim.pass(2 * SECOND);
    assert!(sim.sent(1, 1).is_empty());
    sim.has_work = false;
    sim.pass(SECOND);
    assert_eq!(sim.sent(1, 1), [WorkerSignal::Stop]);
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!((sim.alive(), sim.policy.next_deadline()), (vec![(0, 0)], None), "a stopped process is not restarted");
    assert_eq!(sim.restarts, 1);
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    sim.end(1, 2, Exit::Code(1));
    sim.step();
    sim.end(1, 3, Exit::Code(1));
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 0)], 2), "no restart is left, but the service continues");
}

#[test]
fn a_finished_or_superseded_drain_starts_no_process() {
    let mut sim = Sim::new(with_queues(2));
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Code(0));
    assert_eq!((sim.alive(), sim.policy.next_deadline()), (vec![(0, 0)], None));
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 0), (1, 2)], 0));
}

#[test]
fn a_paused_parent_extends_the_drain_of_a_queue_once() {
    let begin = || {
        let mut sim = Sim::new(with_queues(2));
        sim.has_work = true;
        sim.request(Request::ScaleDown);
        sim
    };
    let mut sim = begin();
    sim.pass(GRACEFUL);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop], "the parent was not paused");
    let mut sim = begin();
    sim.wake_at(sim.now + GRACEFUL + 3 * SECOND);
    sim.pass(GRACEFUL - Duration::from_nanos(1));
    assert!(sim.sent(1, 0).is_empty(), "connections are left in the queue");
    sim.pass(Duration::from_nanos(1));
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
    sim.pass(GRACEFUL);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn a_process_started_to_drain_stays_after_scaling_up() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..with_queues(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(9));
    sim.request(Request::ScaleUp);
    assert_eq!((sim.alive(), sim.policy.wanted(), serving(&sim)), (vec![(0, 0), (1, 1)], 2, vec![0]));
    sim.ready(1, 1);
    sim.pass(10 * SECOND);
    assert_eq!((sim.sent(1, 1), serving(&sim)), (&[][..], vec![0, 1]));
    sim.request(Request::ScaleDown);
    sim.end(1, 1, Exit::Signal(9));
    sim.pass(SECOND);
    sim.ready(1, 2);
    assert!(sim.sent(1, 2).is_empty());
    sim.step();
    assert_eq!(sim.sent(1, 2), [WorkerSignal::Stop]);
}

#[test]
fn an_added_worker_gets_connections_only_once_it_serves() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..with_queues(1) });
    assert_eq!(serving(&sim), [0], "an initial worker gets connections from the beginning");
    sim.request(Request::ScaleUp);
    assert_eq!(serving(&sim), [0]);
    sim.ready(1, 0);
    assert_eq!(serving(&sim), [0, 1]);
    sim.end(1, 0, Exit::Signal(9));
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!(serving(&sim), [0, 1]);
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    sim.pass(SECOND);
    assert_eq!((sim.alive(), serving(&sim)), (vec![(0, 0), (1, 2)], vec![0]), "the new process is not ready yet");
    let mut sim = Sim::new(with_queues(1));
    sim.refuses_starts = true;
    sim.request(Request::ScaleUp);
    assert_eq!(serving(&sim), [0]);
    sim.refuses_starts = false;
    sim.step();
    assert_eq!(serving(&sim), [0, 1]);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(serving(&sim), [1], "worker 0 has finished");
}

#[test]
fn a_removed_worker_becomes_ready_before_it_drains() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..with_queues(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.has_work = true;
    sim.end(1, 0, Exit::Signal(9));
    assert_eq!(serving(&sim), [0, 1], "worker 1 still gets connections, for its next process");
    sim.request(Request::ScaleDown);
    assert_eq!((sim.policy.wanted(), serving(&sim)), (1, vec![0]));
    assert!(sim.sent(1, 1).is_empty());
    sim.ready(1, 1);
    sim.pass(2 * SECOND);
    assert!(sim.sent(1, 1).is_empty());
    sim.has_work = false;
    sim.pass(SECOND);
    assert_eq!(sim.sent(1, 1), [WorkerSignal::Stop]);
}

#[test]
fn a_removed_worker_in_backoff_is_restarted_to_drain() {
    let mut sim = Sim::new(with_queues(2));
    sim.has_work = true;
    sim.end(1, 0, Exit::Signal(9));
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!((sim.alive(), serving(&sim)), (vec![(0, 0)], vec![0, 1]), "worker 1 waits for its restart");
    sim.request(Request::ScaleDown);
    sim.pass(2 * SECOND);
    assert_eq!((sim.alive(), sim.policy.wanted()), (vec![(0, 0), (1, 2)], 1));
}

#[test]
fn scaling_up_and_down_does_not_end_a_drain() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..with_queues(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.has_work = true;
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(9));
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    assert!(sim.sent(1, 1).is_empty(), "got {:?}", sim.sent(1, 1));
}

#[test]
fn a_drain_without_restarts_left_is_abandoned() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), max_restarts: Some(1), ..with_queues(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(9));
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!((sim.alive(), sim.policy.next_deadline()), (vec![(0, 0)], None));
    assert!(sim.sent(0, 0).is_empty());
}

#[test]
fn an_initial_worker_counts_as_added_once_readded() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(2) });
    sim.ready(0, 0);
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(15));
    sim.request(Request::ScaleUp);
    sim.end(1, 1, Exit::Signal(9));
    assert!(sim.sent(0, 0).is_empty(), "{:?}", sim.log);
}

#[test]
fn a_failed_drain_without_restarts_counts_as_failed() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Never, ..with_queues(2) });
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(11));
    sim.end(0, 0, Exit::Code(0));
    let end = sim.outcome().expect("no error");
    assert!(!PoolReport::new("", end, sim.policy.reports(), false).is_success());
}

#[test]
fn a_fatal_exit_code_ends_a_drain() {
    let mut sim = Sim::new(Config { fatal_exit_codes: vec![78], ..with_queues(2) });
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Code(78));
    assert_eq!(sim.restarts, 0, "{:?}", sim.log);
}

#[test]
fn with_two_draining_processes_no_third_is_started() {
    let mut sim = Sim::new(with_queues(2));
    sim.has_work = true;
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(9));
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 0), (1, 1)], 0));
}

#[test]
fn scaling_up_stops_at_max_workers() {
    let mut sim = Sim::new(Config { max_workers: 2, ..config(1) });
    for _ in 0..5 {
        sim.request(Request::ScaleUp);
    }
    assert_eq!(sim.alive(), [(0, 0), (1, 0)]);
}

#[test]
fn requests_beyond_a_limit_are_reported_once_a_second() {
    let mut sim = Sim::new(Config { max_workers: 2, ..config(2) });
    let mut reports_of = |requests: &[Request]| {
        sim.log.clear();
        requests.iter().for_each(|&request| sim.request(request));
        sim.pass(SECOND);
        sim.log.clone()
    };
    let above = "Not scaled to 3 workers, because at most 2 are allowed";
    let below = "Not scaled to 0 workers, because one worker always stays";
    assert_eq!(reports_of(&[Request::ScaleUp, Request::ScaleUp]), [above]);
    assert_eq!(reports_of(&[Request::ScaleUp]), [above], "a second has passed");
    assert_eq!(reports_of(&[Request::ScaleUp, Request::ScaleDown]), [above, "Scaled to 1 workers"]);
    assert_eq!(reports_of(&[Request::ScaleDown, Request::ScaleDown]), [below]);
    assert_eq!(
        reports_of(&[Request::ScaleDown, Request::ScaleUp, Request::ScaleUp]),
        [below, "Scaled to 2 workers", above]
    );
}

#[test]
fn a_cancelled_start_starts_no_second_process() {
    let mut sim = Sim::new(config(2));
    sim.actions_per_event = 0;
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    sim.request_now(Request::ScaleUp);
    sim.actions_per_event = usize::MAX;
    sim.run_actions();
    assert_eq!(sim.alive(), [(0, 1), (1, 0), (1, 1)]);
}

#[test]
fn a_cancelled_initial_start_is_not_initial_later() {
    let now = some_time();
    let mut policy = Policy::new(config(2), 1, now);
    policy.handle_request(now, Request::ScaleDown);
    policy.execute_requests(now);
    let mut started = 0;
    let mut drain = |policy: &mut Policy, refuses_starts: bool| {
        while let Some(action) = policy.poll_action() {
            match action {
                Action::Start { id, .. } if refuses_starts => {
                    let refused = crate::sys::CallError { call: "fork", source: std::io::ErrorKind::WouldBlock.into() };
                    policy.handle_start_failed(now, id, refused.into());
                }
                Action::Start { id, generation } => {
                    started += 1;
                    policy.handle_started(now, Process { pool: "", id, generation, pid: Some(started) });
                }
                Action::Send { message, .. } => panic!("{message:?}"),
                _ => {}
            }
        }
    };
    drain(&mut policy, false);
    policy.handle_request(now, Request::ScaleUp);
    policy.execute_requests(now);
    drain(&mut policy, true);
    assert_eq!((policy.wanted(), policy.poll_end().is_none()), (2, true), "the start is tried again");
}

#[test]
fn a_removed_worker_that_never_started_does_not_drain() {
    let now = some_time();
    let mut policy = Policy::new(with_queues(2), 1, now);
    policy.handle_request(now, Request::ScaleDown);
    policy.execute_requests(now);
    let mut starts = Vec::new();
    while let Some(action) = policy.poll_action() {
        if let Action::Start { id, generation } = action {
            starts.push(id);
            policy.handle_started(now, Process { pool: "", id, generation, pid: Some(id as u32 + 1) });
        }
    }
    assert_eq!(starts, [0]);
}

#[test]
fn a_readded_worker_gets_connections_once_ready() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..with_queues(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Code(0));
    sim.request(Request::ScaleUp);
    assert_eq!(serving(&sim), [0]);
    sim.ready(1, 1);
    assert_eq!(serving(&sim), [0, 1]);
}

/// Begins a rolling restart, and continues it until the replacement of worker 1 has been started.
fn roll_to_worker_1(sim: &mut Sim) {
    sim.request(Request::Roll);
    sim.pass(SECOND);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 1), (1, 0), (1, 1)]);
}

#[test]
fn scaling_down_during_a_replacement_drains_the_old_process() {
    let mut sim = Sim::new(with_queues(2));
    roll_to_worker_1(&mut sim);
    sim.request(Request::ScaleDown);
    assert_eq!(sim.sent(1, 0), []);
    assert_eq!(sim.sent(1, 1), [WorkerSignal::Stop]);
    sim.pass(SECOND);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
}

#[test]
fn scaling_down_does_not_drain_an_aborted_process() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..with_queues(2) });
    sim.now += 5 * SECOND;
    sim.policy.handle_beat(sim.now, 0, 0);
    sim.policy.handle_beat(sim.now, 1, 0);
    sim.pass(Duration::from_millis(13_500));
    roll_to_worker_1(&mut sim);
    sim.step();
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Abort], "the old process is aborted during its replacement");
    sim.request(Request::ScaleDown);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Abort, WorkerSignal::Stop]);
    sim.pass(SECOND);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Abort, WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn a_worker_scaled_down_during_its_probation_drains_afterwards() {
    let mut sim = Sim::new(with_queues(2));
    roll_to_worker_1(&mut sim);
    sim.end(1, 0, Exit::Signal(9));
    sim.request(Request::ScaleDown);
    assert_eq!(sim.policy.wanted(), 1);
    sim.pass(2 * SECOND - Duration::from_millis(1));
    assert_eq!(sim.sent(1, 1), []);
    sim.pass(Duration::from_millis(1));
    assert_eq!(sim.sent(1, 1), [WorkerSignal::Stop], "one second of probation and one second of draining are over");
}
#[test]
fn a_drain_is_not_extended_beyond_graceful_timeout() {
    let mut sim = Sim::new(Config { drain: Some(7 * SECOND), ..with_queues(2) });
    sim.has_work = true;
    let begun = sim.now;
    sim.request(Request::ScaleDown);
    sim.pass(7 * SECOND - Duration::from_millis(1));
    assert_eq!(sim.policy.draining(sim.now + Duration::from_millis(1)), [1]);
    sim.pass(GRACEFUL - 7 * SECOND);
    assert_eq!(sim.policy.next_deadline(), Some(begun + GRACEFUL));
    let left = sim.policy.draining(sim.now + Duration::from_millis(1));
    assert!(left.is_empty(), "remaining connections cannot extend the drain: {left:?}");
}

#[test]
fn work_left_before_the_check_changes_nothing() {
    let mut sim = Sim::new(with_queues(2));
    sim.request(Request::ScaleDown);
    let check_at = sim.now + SECOND;
    assert_eq!(sim.policy.next_deadline(), Some(check_at));
    sim.policy.handle_work_left(sim.now + SECOND / 2, 1);
    assert_eq!(sim.policy.next_deadline(), Some(check_at));
}

#[test]
fn a_drain_that_fails_before_the_call_may_be_finished() {
    for reached in [true, false] {
        let mut sim = Sim::new(with_queues(2));
        if reached {
            sim.policy.handle_reached_call(1);
        }
        sim.request(Request::ScaleDown);
        sim.end_before_call(1, 0, Exit::Signal(9));
        let expected = if reached { vec![(0, 0), (1, 1)] } else { vec![(0, 0)] };
        assert_eq!(sim.alive(), expected, "an earlier process has reached the call: {reached}");
    }
}

#[test]
fn of_several_numbers_of_workers_the_last_counts() {
    let mut sim = Sim::new(config(2));
    for workers in [9, 1, 5] {
        sim.policy.handle_request(sim.now, Request::Scale(workers));
        sim.policy.handle_request(sim.now, Request::ScaleUp);
    }
    sim.run_actions();
    assert_eq!(sim.alive(), (0..6).map(|id| (id, 0)).collect::<Vec<_>>(), "five, and one more");
    assert_eq!(sim.log.iter().filter(|line| line.starts_with("Scaled")).count(), 2, "{:?}", sim.log);
    sim.request(Request::Scale(2));
    assert_eq!((0..6).map(|id| sim.sent(id, 0).len()).collect::<Vec<_>>(), [0, 0, 1, 1, 1, 1]);
    assert_eq!(sim.log.last().map(String::as_str), Some("Scaled to 2 workers"));
    sim.request(Request::Scale(2));
    assert_eq!(sim.log.iter().filter(|line| line.starts_with("Scaled")).count(), 3, "nothing has changed");
}

#[test]
fn the_number_of_workers_stays_within_its_limits() {
    let mut sim = Sim::new(Config { max_workers: 3, ..config(2) });
    sim.request(Request::Scale(usize::MAX));
    assert_eq!(sim.policy.wanted(), 3);
    sim.request(Request::Scale(0));
    assert_eq!(sim.policy.wanted(), 1);
}

#[test]
fn the_systems_number_of_processes_limits_the_workers() {
    let mut sim = Sim::new(Config { max_workers: usize::MAX, ..config(2) });
    sim.policy.limit_workers(5);
    sim.request(Request::Scale(usize::MAX));
    assert_eq!(sim.policy.wanted(), 5);
    assert!(
        sim.logged(&format!("{}", Event::ScalingLimited { pool: "", asked: usize::MAX, limit: 5 })),
        "{:?}",
        sim.log
    );
    sim.policy.limit_workers(3);
    assert_eq!(sim.max_workers(), 5, "running workers stay");
}

#[test]
fn workers_are_added_in_the_gaps_that_finished_workers_leave() {
    let mut sim = Sim::new(config(5));
    sim.end(1, 0, Exit::Code(0));
    sim.end(3, 0, Exit::Code(0));
    sim.request(Request::Scale(6));
    assert_eq!(sim.alive(), [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0), (5, 0)]);
    sim.end(4, 0, Exit::Code(0));
    sim.request(Request::Scale(2));
    let alive = [(0, 0), (1, 1), (2, 0), (3, 1), (5, 0)];
    assert_eq!(alive.map(|(id, generation)| sim.sent(id, generation).len()), [0, 0, 1, 1, 1]);
}
