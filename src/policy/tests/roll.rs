//! Rolling restarts and recycling.

use super::*;

#[test]
fn without_ready_timeout_replacements_are_ready_after_one_second() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    assert_eq!(sim.alive(), [(0, 0), (0, 1), (1, 0)]);
    sim.pass(Duration::from_millis(999));
    assert!(sim.sent(0, 0).is_empty());
    sim.pass(Duration::from_millis(1));
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    assert_eq!(sim.alive(), [(0, 0), (0, 1), (1, 0), (1, 1)], "worker 1 does not wait for the drain of worker 0");
    sim.pass(SECOND);
    sim.end(1, 0, Exit::Code(0));
    assert!(!sim.logged("Rolling restart done"));
    sim.end(0, 0, Exit::Code(0));
    assert!(sim.logged("Rolling restart done"));
    assert_eq!(sim.alive(), [(0, 1), (1, 1)]);
    assert_eq!(sim.policy.next_deadline(), None);
}

#[test]
fn a_rolling_restart_kills_old_processes_after_graceful_timeout() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.pass(SECOND + GRACEFUL);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    sim.exit_killed();
    assert!(sim.alive.contains_key(&(1, 1)));
}

#[test]
fn a_replacement_that_exits_aborts_the_rolling_restart() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.end(0, 1, Exit::Code(1));
    assert_eq!(sim.alive(), [(0, 0), (1, 0)]);
    assert!(sim.sent(0, 0).is_empty());
    assert!(sim.logged("Rolling restart aborted"));
    assert_eq!(sim.restarts, 0, "a failed replacement costs no restart");
}

#[test]
fn a_replacement_that_is_late_is_killed() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.request(Request::Roll);
    sim.pass(5 * SECOND);
    assert_eq!(sim.sent(0, 1), [WorkerSignal::Kill]);
    assert!(sim.sent(0, 0).is_empty());
    sim.exit_killed();
    assert_eq!(sim.alive(), [(0, 0)]);
}

#[test]
fn a_replacement_that_cannot_start_aborts_the_rolling_restart() {
    let mut sim = Sim::new(config(1));
    sim.refuses_starts = true;
    sim.request(Request::Roll);
    assert!(sim.logged("Rolling restart aborted"));
    assert_eq!((sim.alive(), sim.policy.next_deadline()), (vec![(0, 0)], None));
}

#[test]
fn requests_during_a_rolling_restart_coalesce_into_one() {
    let mut sim = Sim::new(config(1));
    for _ in 0..5 {
        sim.request(Request::Roll);
    }
    sim.pass(SECOND);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 1), (0, 2)]);
    sim.pass(SECOND);
    sim.end(0, 1, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 2)]);
    assert_eq!(sim.policy.next_deadline(), None);
}

#[test]
fn a_crash_of_the_old_process_causes_no_restart() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Signal(11));
    assert_eq!(sim.alive(), [(0, 1)]);
    sim.pass(SECOND);
    assert!(sim.logged("Rolling restart done"));
    assert_eq!(sim.restarts, 0);
}

#[test]
fn a_stop_cancels_a_rolling_restart() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.request(Request::Stop);
    for key in sim.alive() {
        assert_eq!(sim.alive[&key].sent, [WorkerSignal::Stop]);
        sim.end(key.0, key.1, Exit::Signal(15));
    }
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
}

#[test]
fn a_ready_replacement_that_exits_aborts_the_rolling_restart() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.request(Request::Roll);
    sim.ready(0, 1);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    sim.end(0, 1, Exit::Code(1));
    assert!(sim.logged("Rolling restart aborted"));
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 0), (0, 2), (1, 0), (1, 1)], 1));
    sim.ready(1, 1);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop], "the replacement that was under way continues");
    sim.ready(0, 2);
    sim.end(0, 0, Exit::Code(0));
    sim.end(1, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 2), (1, 1)]);
}

#[test]
fn the_exit_of_an_old_process_costs_no_restart() {
    for restart in [RestartPolicy::OnFailure, RestartPolicy::Always, RestartPolicy::Never] {
        let mut sim = Sim::new(Config { restart_policy: restart, max_restarts: Some(1), ..config(1) });
        sim.request(Request::Roll);
        sim.end(0, 0, Exit::Signal(11));
        assert_eq!((sim.alive(), sim.sent(0, 1)), (vec![(0, 1)], &[][..]), "{restart:?}");
        sim.pass(SECOND);
        assert!(sim.logged("Rolling restart done"), "{restart:?}");
        if restart != RestartPolicy::Never {
            sim.end(0, 1, Exit::Code(1));
            assert_eq!(sim.alive(), [(0, 2)], "{restart:?}");
        }
    }
}

#[test]
fn an_old_process_that_finishes_ends_its_worker() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.sent(0, 1), [WorkerSignal::Stop]);
}

#[test]
fn rolling_restarts_requested_during_recycling_follow_it() {
    let mut sim = Sim::new(Config { max_lifetime: Some(100 * SECOND), ..config(1) });
    sim.step();
    sim.request(Request::Roll);
    sim.request(Request::Roll);
    sim.end(0, 1, Exit::Code(1));
    sim.pass(SECOND);
    sim.end(0, 0, Exit::Code(0));
    sim.pass(SECOND);
    sim.end(0, 2, Exit::Code(0));
    assert_eq!(sim.log.iter().filter(|line| *line == "Rolling restart done").count(), 2);
}

#[test]
fn a_worker_that_finishes_during_its_replacement_stays_stopped() {
    let mut sim = Sim::new(config(2));
    sim.actions_per_event = 0;
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    sim.actions_per_event = usize::MAX;
    sim.run_actions();
    assert_eq!(sim.alive(), [(1, 0), (1, 1)], "the rolling restart continues with worker 1");
}

#[test]
fn a_cancelled_replacement_starts_no_second_process() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.pass(SECOND);
    sim.actions_per_event = 0;
    sim.end(0, 0, Exit::Code(0));
    sim.request_now(Request::ScaleDown);
    sim.request_now(Request::ScaleUp);
    sim.actions_per_event = usize::MAX;
    sim.run_actions();
    assert_eq!(sim.alive(), [(0, 1), (1, 0), (1, 1)]);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
}

#[test]
fn max_lifetime_replaces_one_worker_at_a_time() {
    let lifetime = 100 * SECOND;
    let ready_timeout = Some(1000 * SECOND);
    let mut sim = Sim::new(Config { max_lifetime: Some(lifetime), ready_timeout, ..config(3) });
    (0..3).for_each(|id| sim.ready(id, 0));
    sim.pass(74 * SECOND);
    assert_eq!(sim.alive(), [(0, 0), (1, 0), (2, 0)], "a lifetime is at least three quarters of `max_lifetime`");
    // The other processes become too old as well, but none of them is replaced before the first replacement is ready.
    sim.pass(26 * SECOND);
    assert_eq!(sim.alive.len(), 4);
    assert!(sim.logged("has reached its maximum lifetime, replacing it"));
    for count in [5, 6, 6] {
        let [id] = sim.trials()[..] else { panic!("{:?}", sim.trials()) };
        sim.ready(id, 1);
        assert_eq!(sim.sent(id, 0), [WorkerSignal::Stop]);
        assert_eq!(sim.alive.len(), count, "the next replacement does not wait for the drain");
    }
    (0..3).for_each(|id| sim.end(id, 0, Exit::Code(0)));
    assert_eq!(sim.alive(), [(0, 1), (1, 1), (2, 1)]);
    assert_eq!(sim.restarts, 0, "recycling costs no restart");
}

#[test]
fn lifetimes_of_workers_differ() {
    let sim = Sim::new(Config { max_lifetime: Some(100 * SECOND), ..config(50) });
    let mut ages: Vec<u64> = sim.recycle_times().into_iter().map(|at| (at.unwrap() - sim.now).as_secs()).collect();
    ages.sort();
    assert!(ages[0] >= 75 && ages[49] <= 100 && ages[49] - ages[0] > 20, "{ages:?}");
}

#[test]
fn a_failed_recycling_renews_the_lifetime() {
    let mut sim = Sim::new(Config { max_lifetime: Some(100 * SECOND), ..config(1) });
    sim.step();
    assert_eq!(sim.alive(), [(0, 0), (0, 1)]);
    sim.end(0, 1, Exit::Code(1));
    assert!(sim.logged("The replacement of worker 0 failed, the old one stays"));
    assert!(sim.sent(0, 0).is_empty());
    let again = sim.policy.next_deadline().expect("a second try") - sim.now;
    assert!(again >= 75 * SECOND && again <= 100 * SECOND, "{again:?}");
    sim.refuses_starts = true;
    sim.step();
    assert_eq!(sim.alive(), [(0, 0)], "the old process stays if the system refuses the replacement");
    sim.refuses_starts = false;
    sim.step();
    sim.pass(SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
}

#[test]
fn a_rolling_restart_waits_for_a_recycling() {
    let mut sim = Sim::new(Config { max_lifetime: Some(100 * SECOND), ..config(2) });
    sim.step();
    let trial = sim.trials();
    sim.request(Request::Roll);
    assert_eq!(sim.trials(), trial);
    assert_eq!(sim.alive.len(), 3);
    sim.end(trial[0], 1, Exit::Code(1));
    assert!(!sim.logged("Rolling restart aborted"), "the failed process was a replacement because of age");
    assert_eq!(sim.trials(), [0], "now the rolling restart begins");
}

#[test]
fn ready_ends_the_probation_of_a_replacement() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.ready(0, 1);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
}

#[test]
fn a_rolling_restart_does_not_replace_an_aborting_process() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(SECOND), ..config(1) });
    sim.pass(SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort]);
    sim.request(Request::Roll);
    assert_eq!(sim.alive(), [(0, 0)], "the process is restarted after its exit anyway");
    sim.end(0, 0, Exit::Signal(6));
    assert_eq!(sim.alive(), [(0, 1)]);
    assert!(sim.logged("Rolling restart done"));
}

#[test]
fn an_outdated_process_may_exit_during_a_rolling_restart() {
    let mut sim = Sim::new(Config { ready_timeout: Some(10 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.end(0, 0, Exit::Code(1));
    sim.request(Request::Roll);
    assert_eq!(sim.alive(), [(0, 1)], "the rolling restart waits for the starting process");
    sim.end(0, 1, Exit::Code(1));
    sim.pass(SECOND);
    sim.ready(0, 2);
    assert!(sim.logged("Rolling restart done"), "{:?}", sim.log);
    assert!(!sim.logged("Rolling restart aborted"), "{:?}", sim.log);
}

#[test]
fn with_always_replaced_processes_exit_without_a_restart() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Always, ..config(1) });
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 1)]);
    assert_eq!(sim.sent(0, 1), []);
    assert_eq!(sim.restarts, 0);
}

#[test]
fn a_crash_before_the_replacement_starts_costs_no_restart() {
    let mut sim = Sim::new(config(1));
    sim.actions_per_event = 0;
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Signal(9));
    sim.actions_per_event = usize::MAX;
    sim.run_actions();
    assert_eq!(sim.alive(), [(0, 1)]);
    assert_eq!(sim.policy.reports()[0].restarts(), 0);
}

#[test]
fn recycling_waits_until_the_replaced_process_has_exited() {
    let mut sim = Sim::new(Config { max_lifetime: Some(SECOND), ..config(1) });
    sim.step();
    sim.pass(3 * SECOND);
    assert_eq!(sim.alive(), [(0, 0), (0, 1)]);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 1), (0, 2)]);
}
#[test]
fn a_failed_recycling_successor_aborts_no_rolling_restart() {
    let mut sim = Sim::new(Config { max_lifetime: Some(100 * SECOND), ready_timeout: Some(SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.step();
    sim.ready(0, 1);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    sim.end(0, 1, Exit::Code(1));
    assert!(!sim.logged("Rolling restart aborted"), "{:?}", sim.log);
}

#[test]
fn a_stop_by_a_worker_cancels_a_rolling_restart() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.stop_all(1, 0);
    for (id, generation) in sim.alive() {
        sim.end(id, generation, Exit::Code(0));
    }
    assert!(!sim.logged("Rolling restart done"), "{:?}", sim.log);
    assert!(matches!(sim.outcome(), Ok(Reason::StoppedByWorker { .. })));
}

#[test]
fn processes_of_a_worker_include_replacements_and_stopping_ones() {
    let mut sim = Sim::new(config(2));
    let generations = |sim: &Sim, id| {
        let mut generations: Vec<u32> = sim.policy.processes_of(id).iter().map(|one| one.generation).collect();
        generations.sort();
        generations
    };
    assert_eq!(generations(&sim, 0), [0]);
    sim.request(Request::Roll);
    assert_eq!((generations(&sim, 0), generations(&sim, 1)), (vec![0, 1], vec![0]));
    sim.pass(SECOND);
    assert_eq!(generations(&sim, 0), [0, 1], "the old process is stopping");
    sim.end(0, 0, Exit::Code(0));
    assert_eq!((generations(&sim, 0), generations(&sim, 7)), (vec![1], vec![]));
}

#[test]
fn a_worker_with_two_abandoned_processes_is_not_replaced() {
    let mut sim = Sim::new(Config { max_lifetime: Some(100_000 * SECOND), ..config(1) });
    for count in 1..=2 {
        sim.request(Request::Roll);
        sim.pass(GRACEFUL + 60 * SECOND);
        assert_eq!(sim.abandoned.len(), count);
    }
    assert_eq!((sim.alive(), sim.recycle_times()), (vec![(0, 2)], vec![None]));
    sim.request(Request::Roll);
    assert_eq!(sim.alive(), [(0, 2)], "a further process could be abandoned as well");
    sim.end_abandoned(0);
    assert!(sim.recycle_times()[0].is_some());
    sim.request(Request::Roll);
    assert_eq!(sim.alive(), [(0, 2), (0, 3)]);
}

#[test]
fn a_request_replaces_only_the_named_worker() {
    let mut sim = Sim::new(config(3));
    for _ in 0..3 {
        sim.request(Request::Replace(1));
    }
    assert_eq!(sim.alive(), [(0, 0), (1, 0), (1, 1), (2, 0)]);
    assert!(sim.logged("child 1 (pid 2) was requested to be replaced, replacing it"), "{:?}", sim.log);
    sim.pass(SECOND);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
    sim.end(1, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 0), (1, 1), (1, 2), (2, 0)], "two requests came after the start of process 1");
    sim.pass(SECOND);
    sim.end(1, 1, Exit::Code(0));
    sim.pass(100 * SECOND);
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 0), (1, 2), (2, 0)], 0));
}

#[test]
fn a_request_to_replace_an_unknown_worker_is_logged() {
    let mut sim = Sim::new(config(2));
    sim.end(1, 0, Exit::Code(0));
    sim.actions_per_event = 0;
    (1..100_000).for_each(|id| sim.request(Request::Replace(id)));
    sim.actions_per_event = usize::MAX;
    sim.run_actions();
    sim.run_actions();
    let refused = sim.log.iter().filter(|line| line.ends_with("is not replaced, because there is no such worker"));
    assert_eq!(refused.count(), 2, "{:?}", sim.log);
}

#[test]
fn a_worker_that_retires_is_replaced() {
    let mut sim = Sim::new(Config { max_lifetime: Some(100_000 * SECOND), ..config(2) });
    sim.pass(SECOND);
    sim.retire(1, 0);
    sim.retire(1, 0);
    assert_eq!(sim.alive(), [(0, 0), (1, 0), (1, 1)]);
    assert!(sim.logged("child 1 (pid 2) has retired, replacing it"), "{:?}", sim.log);
    sim.pass(SECOND);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
    sim.retire(1, 0);
    sim.end(1, 0, Exit::Code(0));
    sim.pass(100 * SECOND);
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 0), (1, 1)], 0));
}

#[test]
fn a_process_that_retires_before_it_is_ready_is_replaced_later() {
    let mut sim = Sim::new(Config { ready_timeout: Some(10 * SECOND), ..config(1) });
    sim.retire(0, 0);
    sim.pass(SECOND);
    assert_eq!(sim.alive(), [(0, 0)]);
    sim.ready(0, 0);
    assert_eq!(sim.alive(), [(0, 0), (0, 1)]);
    sim.retire(0, 1);
    sim.pass(SECOND);
    sim.ready(0, 1);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 1), (0, 2)]);
}

#[test]
fn a_failed_replacement_of_a_retired_process_is_repeated() {
    let mut sim = Sim::new(Config { max_lifetime: Some(100_000 * SECOND), ..config(1) });
    sim.pass(SECOND);
    sim.retire(0, 0);
    sim.end(0, 1, Exit::Code(1));
    assert!(sim.logged("The replacement of worker 0 failed, the old one stays"));
    sim.pass(9 * SECOND);
    assert_eq!(sim.alive(), [(0, 0)]);
    sim.pass(SECOND);
    assert_eq!(sim.alive(), [(0, 0), (0, 2)]);
    assert_eq!(sim.restarts, 0);
}

#[test]
fn a_failed_replacement_that_was_requested_is_not_repeated() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Replace(0));
    sim.end(0, 1, Exit::Code(1));
    assert_eq!((sim.alive(), sim.policy.next_deadline()), (vec![(0, 0)], None));
}

#[test]
fn nothing_is_replaced_alone_during_a_stop() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Replace(0));
    sim.end(0, 1, Exit::Code(1));
    sim.request(Request::Stop);
    sim.request(Request::Replace(0));
    sim.retire(0, 0);
    assert_eq!(sim.alive(), [(0, 0)]);
}
