//! Restarts: limits, backoff, policies and reports.

use super::*;

#[test]
fn the_service_ends_once_all_workers_exited_normally() {
    let mut sim = Sim::new(config(3));
    assert_eq!(sim.alive(), [(0, 0), (1, 0), (2, 0)]);
    for id in 0..3 {
        assert!(sim.policy.poll_end().is_none());
        sim.end(id, 0, Exit::Code(0));
    }
    assert!(matches!(sim.outcome(), Ok(Reason::Finished)));
    assert_eq!(sim.log[0], "Starting 3 processes");
    assert!(sim.logged("child 1 (pid 2) exited normally"));
}

#[test]
fn a_restart_keeps_the_id_and_increments_the_generation() {
    let mut sim = Sim::new(config(2));
    sim.end(1, 0, Exit::Signal(9));
    sim.end(0, 0, Exit::Code(3));
    assert_eq!(sim.alive(), [(0, 1), (1, 1)]);
    assert!(sim.logged("child 1 (pid 2) killed by signal 9, restarting"));
    assert!(sim.logged("child 0 (pid 1) exited with status 3, restarting"));
}

#[test]
fn the_restart_limit_stops_the_other_workers() {
    let mut sim = Sim::new(Config { max_restarts: Some(2), ..config(2) });
    sim.end(0, 0, Exit::Code(1));
    sim.end(1, 0, Exit::Code(1));
    assert_eq!(sim.alive(), [(0, 1), (1, 1)]);
    sim.end(0, 1, Exit::Code(1));
    assert_eq!(sim.sent(1, 1), [WorkerSignal::Stop]);
    assert!(!sim.log.last().expect("a log").contains("restarting"));
    assert!(sim.policy.poll_end().is_none(), "the other worker still runs");
    sim.end(1, 1, Exit::Signal(15));
    assert!(matches!(
        sim.outcome(),
        Ok(Reason::RestartLimitReached {
            process: Process { id: 0, generation: 1, .. },
            exit: Exit::Code(1),
            restarts: 2
        })
    ));
}

#[test]
fn max_restarts_0_stops_at_the_first_abnormal_exit() {
    let mut sim = Sim::new(Config { max_restarts: Some(0), ..config(1) });
    sim.end(0, 0, Exit::Code(1));
    assert!(matches!(sim.outcome(), Ok(Reason::RestartLimitReached { restarts: 0, .. })));
    assert!(!sim.logged("restarting"));
}

#[test]
fn restart_window_counts_only_recent_restarts() {
    let mut sim = Sim::new(Config { max_restarts: Some(1), restart_window: Some(60 * SECOND), ..config(1) });
    for generation in 0..20 {
        sim.end(0, generation, Exit::Code(1));
        sim.pass(61 * SECOND);
    }
    sim.end(0, 20, Exit::Code(1));
    sim.end(0, 21, Exit::Code(1));
    assert!(matches!(sim.outcome(), Ok(Reason::RestartLimitReached { restarts: 21, .. })));
}

#[test]
fn a_crash_loop_backs_off_without_delaying_other_workers() {
    let mut sim = Sim::new(config(2));
    sim.end(0, 0, Exit::Code(1));
    assert!(sim.alive.contains_key(&(0, 1)), "the first failure restarts at once");
    sim.end(0, 1, Exit::Code(1));
    assert!(!sim.alive.contains_key(&(0, 2)), "the restart after the second failure waits");
    sim.end(1, 0, Exit::Code(1));
    assert!(sim.alive.contains_key(&(1, 1)));
    sim.pass(Duration::from_millis(10));
    assert!(sim.alive.contains_key(&(0, 2)));
}

#[test]
fn a_long_uptime_resets_the_backoff_however_it_ends() {
    fn roll_to_worker_1(sim: &mut Sim) {
        sim.request(Request::Roll);
        sim.pass(SECOND);
        sim.end(0, 0, Exit::Code(0));
    }
    type HandOver = fn(&mut Sim);
    let ways: [(&str, HandOver); 4] = [
        ("replaced, and gone", |sim| {
            roll_to_worker_1(sim);
            sim.pass(SECOND);
            sim.end(1, 7, Exit::Code(0));
        }),
        ("replaced, and still draining", |sim| {
            roll_to_worker_1(sim);
            sim.pass(SECOND);
        }),
        ("failed while it was being replaced", |sim| {
            roll_to_worker_1(sim);
            sim.end(1, 7, Exit::Code(1));
        }),
        ("removed, and added again", |sim| {
            sim.request(Request::ScaleDown);
            sim.end(1, 7, Exit::Code(0));
            sim.request(Request::ScaleUp);
        }),
    ];
    for (way, hand_over) in ways {
        let mut sim = Sim::new(Config { delays: Delays { first: SECOND, max: 60 * SECOND }, ..config(2) });
        for generation in 0..7 {
            sim.end(1, generation, Exit::Code(1));
            while !sim.alive.contains_key(&(1, generation + 1)) {
                sim.step();
            }
        }
        sim.pass(3600 * SECOND);
        hand_over(&mut sim);
        sim.end(1, 8, Exit::Code(1));
        assert!(sim.alive.contains_key(&(1, 9)), "{way}: the first failure restarts at once");
        sim.end(1, 9, Exit::Code(1));
        sim.pass(SECOND);
        assert!(sim.alive.contains_key(&(1, 10)), "{way}: the second failure waits at most for the first delay");
    }
}

#[test]
fn refused_starts_do_not_count_towards_the_restart_limit() {
    let mut sim = Sim::new(Config { max_restarts: Some(1), ..config(2) });
    sim.refuses_starts = true;
    sim.end(0, 0, Exit::Code(1));
    for _ in 0..50 {
        sim.step();
    }
    assert_eq!(sim.alive(), [(1, 0)]);
    assert!(sim.logged("cannot start worker 0: fork"));
    sim.refuses_starts = false;
    sim.step();
    assert_eq!(sim.alive(), [(0, 1), (1, 0)]);
}

#[test]
fn a_later_normal_exit_clears_the_failure() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Never, ..config(3) });
    sim.request(Request::ScaleDown);
    sim.end(2, 0, Exit::Signal(15));
    sim.end(0, 0, Exit::Code(1));
    sim.request(Request::ScaleUp);
    sim.end(0, 1, Exit::Code(0));
    sim.end(1, 0, Exit::Code(0));
    let report = PoolReport::new("", sim.outcome().expect("an end"), sim.policy.reports(), false);
    assert!(report.is_success(), "a process that was asked to stop may exit in any way: {report:?}");
}

#[test]
fn a_restart_cancelled_by_a_stop_is_not_reported() {
    let mut sim = Sim::new(config(1));
    sim.end(0, 0, Exit::Code(1));
    sim.end(0, 1, Exit::Code(1));
    sim.request(Request::Stop);
    let report = PoolReport::new("", sim.outcome().expect("an end"), sim.policy.reports(), false);
    assert_eq!((report.restarts(), report.workers()[0].processes()), (1, 2));
}

#[test]
fn the_policy_knows_which_processes_it_has_killed() {
    let mut sim = Sim::new(config(2));
    sim.end_with(0, 0, Exit::Signal(9), OutOfMemory::Yes);
    assert!(sim.logged("killed by signal 9 (out of memory), restarting"));
    let ours = sim.alive[&(1, 0)].process;
    let other = sim.alive[&(0, 1)].process;
    sim.request(Request::Stop);
    assert!(!sim.policy.has_killed(ours));
    sim.request(Request::Stop);
    assert!(sim.policy.has_killed(ours) && sim.policy.has_killed(other));
    sim.end(1, 0, Exit::Signal(9));
    assert!(!sim.policy.has_killed(ours), "the policy forgets a process that has exited");
}

#[test]
fn restart_policy_decides_which_exits_lead_to_restarts() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Always, ..config(1) });
    sim.pass(SECOND);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 1)]);
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Never, ..config(1) });
    sim.end(0, 0, Exit::Code(1));
    let end = sim.outcome().expect("an end");
    assert_eq!(end, Reason::Finished);
    assert!(
        !PoolReport::new("", end, sim.policy.reports(), false).is_success(),
        "the service has finished, but not successfully"
    );
}

#[test]
fn a_normal_exit_under_always_costs_no_restart() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Always, max_restarts: Some(0), ..config(1) });
    for generation in 0..200 {
        sim.pass(SECOND);
        sim.end(0, generation, Exit::Code(0));
        assert_eq!(sim.alive(), [(0, generation + 1)], "a process that lived for a second is replaced at once");
    }
    assert_eq!(sim.policy.reports()[0].restarts(), 0);
    sim.end(0, 200, Exit::Code(1));
    assert!(matches!(sim.outcome(), Ok(Reason::RestartLimitReached { restarts: 0, .. })));
}

#[test]
fn normal_exits_after_a_short_life_back_off() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Always, ..config(1) });
    let begun = sim.now;
    for generation in 0..20 {
        sim.end(0, generation, Exit::Code(0));
        assert!(sim.alive().is_empty(), "the restart waits");
        sim.step();
        assert_eq!(sim.alive(), [(0, generation + 1)]);
    }
    assert!(sim.now - begun > 7 * SECOND, "the delay grows: {:?}", sim.now - begun);
}

#[test]
fn a_worker_that_obeys_a_stop_request_is_restarted() {
    for restart_policy in [RestartPolicy::OnFailure, RestartPolicy::Always] {
        let mut sim = Sim::new(Config { restart_policy, max_restarts: Some(0), ..config(4) });
        sim.pass(SECOND);
        for id in 0..4 {
            sim.end_on_request(id, 0);
        }
        assert_eq!(sim.alive(), [(0, 1), (1, 1), (2, 1), (3, 1)]);
        let line = "child 2 (pid 3) exited normally after a stop request from another process, restarting";
        assert!(sim.logged(line), "{:?}", sim.log);
        assert_eq!(sim.policy.reports()[2].restarts(), 0);
        sim.end_on_request(2, 1);
        assert!(!sim.alive.contains_key(&(2, 2)), "the restart after a short life waits");
        sim.step();
        assert!(sim.alive.contains_key(&(2, 2)));
    }
}

#[test]
fn a_stop_request_before_readiness_is_no_startup_failure() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.pass(SECOND);
    sim.end_on_request(0, 0);
    assert_eq!(sim.alive(), [(0, 1)]);
    assert!(!sim.stopping);
}

#[test]
fn with_never_a_stopped_worker_is_not_restarted() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Never, ..config(1) });
    sim.end_on_request(0, 0);
    assert!(matches!(sim.outcome(), Ok(Reason::Finished)));
}

#[test]
fn a_stop_request_of_the_parent_ends_the_worker() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::ScaleDown);
    sim.end_on_request(1, 0);
    sim.request(Request::Stop);
    sim.end_on_request(0, 0);
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)), "{:?}", sim.log);
}

#[test]
fn a_noted_stop_does_not_excuse_a_failure() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    let failed = |process, exit| ExitedProcess { stop_noted: true, ..exited(process, exit) };
    let process = sim.alive[&(0, 0)].process;
    sim.end_process(0, 0, failed(process, Exit::Code(1)));
    assert_eq!(sim.restarts, 1);
    sim.step();
    assert_eq!(sim.sent(0, 1), [WorkerSignal::Abort]);
    sim.end_on_request(0, 1);
    assert_eq!(sim.restarts, 2);
}

#[test]
fn a_normal_exit_of_a_successor_does_not_abort_the_roll() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Always, ..config(2) });
    sim.request(Request::Roll);
    sim.pass(SECOND);
    sim.end(0, 1, Exit::Code(0));
    assert!(!sim.logged("Rolling restart aborted"));
    sim.end(0, 0, Exit::Code(0));
    sim.pass(SECOND);
    sim.end(1, 0, Exit::Code(0));
    assert!(sim.logged("Rolling restart done"), "{:?}", sim.log);
}

#[test]
fn reports_hold_restarts_and_the_last_exit() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::OnFailure, ..config(3) });
    sim.end(0, 0, Exit::Signal(9));
    sim.end(0, 1, Exit::Code(0));
    sim.request(Request::Roll);
    sim.pass(SECOND);
    sim.end(1, 0, Exit::Code(0));
    sim.request(Request::Stop);
    for (id, generation) in sim.alive() {
        sim.end(id, generation, Exit::Signal(15));
    }
    let report = PoolReport::new("", sim.outcome().expect("an end"), sim.policy.reports(), false);
    let summary = |worker: &WorkerReport| (worker.id(), worker.processes(), worker.restarts(), worker.exit());
    assert_eq!(summary(&report.workers()[0]), (0, 2, 1, Some(Exit::Code(0))));
    assert_eq!(summary(&report.workers()[1]), (1, 2, 0, Some(Exit::Signal(15))));
    assert_eq!(summary(&report.workers()[2]), (2, 2, 0, Some(Exit::Signal(15))));
    assert_eq!((report.restarts(), report.reason()), (1, &Reason::Stopped));
    assert!(report.is_success());
}

#[test]
fn reports_hold_the_exit_of_the_newest_process() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.pass(SECOND);
    sim.request(Request::Stop);
    sim.end(0, 1, Exit::Code(0));
    sim.end(0, 0, Exit::Signal(9));
    assert_eq!(sim.policy.reports()[0].exit(), Some(Exit::Code(0)));
}

#[test]
fn reports_ignore_replacements_that_never_served() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.end(0, 1, Exit::Code(7));
    sim.request(Request::Stop);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.policy.reports()[0].exit(), Some(Exit::Code(0)));
}

#[test]
fn the_generation_wraps_around_without_an_overflow() {
    let now = some_time();
    let mut policy = Policy::new(config(1), 1, now);
    let mut generation = u32::MAX - 1;
    for exit in [Exit::Code(1), Exit::Code(2), Exit::Code(3), Exit::Code(4)] {
        policy.handle_timeout(now + SECOND);
        let started = std::iter::from_fn(|| policy.poll_action()).any(|action| matches!(action, Action::Start { .. }));
        assert!(started);
        let process = Process { pool: "", id: 0, generation, pid: Some(71) };
        policy.handle_started(now, process);
        policy.handle_exited(now, exited(process, exit));
        assert_eq!(policy.reports()[0].exit(), Some(exit), "generation {generation}");
        generation = generation.wrapping_add(1);
    }
}

/// Returns `asked` and `restarting` of the event about the exit of worker 0.
fn exit_of(policy: &mut Policy, now: Instant, generation: u32) -> (bool, bool) {
    while policy.poll_action().is_some() {}
    let process = Process { pool: "", id: 0, generation, pid: Some(1) };
    policy.handle_started(now, process);
    policy.handle_exited(now, exited(process, Exit::Code(1)));
    let exited = std::iter::from_fn(|| policy.poll_action()).find_map(|action| match action {
        Action::Emit(Event::Exited { asked, restarting, .. }) => Some((asked, restarting)),
        _ => None,
    });
    exited.expect("an exit")
}

#[test]
fn exits_are_reported_as_requested_or_restarting() {
    let now = some_time();
    let mut policy = Policy::new(config(1), 1, now);
    assert_eq!(exit_of(&mut policy, now, 0), (false, true));
    policy.handle_timeout(now);
    while policy.poll_action().is_some() {}
    policy.handle_request(now, Request::Stop);
    assert_eq!(exit_of(&mut policy, now, 1), (true, false));
}
