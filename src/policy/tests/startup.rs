//! Starting up: readiness, startup failures and fatal exit codes.

use super::*;

#[test]
fn a_refused_first_start_stops_the_service() {
    let now = some_time();
    let mut policy = Policy::new(config(3), 1, now);
    let mut sent = Vec::new();
    let mut pid = 0;
    while let Some(action) = policy.poll_action() {
        match action {
            Action::Start { id: 2, .. } => {
                let refused = crate::sys::CallError { call: "fork", source: std::io::ErrorKind::WouldBlock.into() };
                policy.handle_start_failed(now, 2, Error::from(refused).starting(2));
            }
            Action::Start { id, generation } => {
                pid += 1;
                policy.handle_started(now, Process { pool: "", id, generation, pid: Some(pid) });
            }
            Action::Send { process, message } => sent.push((process.id, message)),
            _ => {}
        }
    }
    assert_eq!(sent, [(0, WorkerSignal::Stop), (1, WorkerSignal::Stop)]);
    for (id, pid) in [(0, 1), (1, 2)] {
        policy.handle_exited(now, exited(Process { pool: "", id, generation: 0, pid: Some(pid) }, Exit::Signal(15)));
    }
    while policy.poll_action().is_some() {}
    match policy.poll_end() {
        Some(Err(error)) => assert_eq!((error.call(), error.worker()), (Some("fork"), Some(2))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_exit_before_readiness_is_a_startup_failure() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(2) });
    sim.ready(0, 0);
    sim.end(1, 0, Exit::Code(1));
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    sim.end(0, 0, Exit::Code(0));
    assert!(matches!(
        sim.outcome(),
        Ok(Reason::StartupFailed { process: Process { id: 1, .. }, exit: Some(Exit::Code(1)), failures: None, .. })
    ));
}

#[test]
fn a_missed_ready_timeout_is_a_startup_failure() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.step();
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    sim.end(0, 0, Exit::Signal(15));
    assert!(matches!(sim.outcome(), Ok(Reason::StartupFailed { exit: None, .. })));
}

#[test]
fn a_late_restart_is_killed_and_restarted() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.end(0, 0, Exit::Code(1));
    sim.step();
    assert_eq!(sim.sent(0, 1), [WorkerSignal::Kill]);
    sim.exit_killed();
    sim.pass(SECOND);
    assert_eq!(sim.alive(), [(0, 2)]);
}

#[test]
fn fatal_exit_code_stops_the_service() {
    let mut sim = Sim::new(Config { fatal_exit_codes: vec![78], ..config(2) });
    sim.end(0, 0, Exit::Code(78));
    sim.end(1, 0, Exit::Signal(15));
    assert!(matches!(sim.outcome(), Ok(Reason::StartupFailed { exit: Some(Exit::Code(78)), .. })));
}

#[test]
fn fatal_exit_code_ignores_processes_killed_by_the_parent() {
    let timeouts = Config { heartbeat_timeout: Some(10 * SECOND), ready_timeout: Some(5 * SECOND), ..config(1) };
    let mut sim = Sim::new(Config { fatal_exit_codes: vec![1], ..timeouts });
    sim.ready(0, 0);
    while sim.sent(0, 0).is_empty() {
        sim.step();
    }
    // On Windows an abort kills the process at once, and the parent sets this exit status.
    sim.end(0, 0, Exit::Code(1));
    assert_eq!(sim.alive(), [(0, 1)], "a hung process is restarted");
    sim.step();
    assert_eq!(sim.sent(0, 1), [WorkerSignal::Kill]);
    sim.end(0, 1, Exit::Code(1));
    sim.pass(SECOND);
    assert_eq!(sim.alive(), [(0, 2)], "a late process is restarted");
    sim.ready(0, 2);
    sim.end(0, 2, Exit::Code(1));
    assert!(
        matches!(sim.outcome(), Ok(Reason::StartupFailed { exit: Some(Exit::Code(1)), .. })),
        "the process itself has exited with this status"
    );
}

#[test]
fn a_stopped_parent_extends_ready_timeout_once() {
    let config = Config { ready_timeout: Some(5 * SECOND), ..config(1) };
    let mut sim = Sim::new(config.clone());
    sim.wake_at(sim.now + 6 * SECOND);
    assert!(sim.sent(0, 0).is_empty());
    sim.wake_at(sim.now + 6 * SECOND);
    assert!(sim.logged("Startup failed"));
    let mut sim = Sim::new(config.clone());
    sim.policy.handle_interruption(sim.now + SECOND);
    sim.step();
    assert!(sim.sent(0, 0).is_empty());
    sim.ready(0, 0);
    sim.policy.handle_interruption(sim.now);
    sim.now += SECOND;
    sim.end(0, 0, Exit::Code(1));
    sim.step();
    assert_eq!(sim.sent(0, 1), [WorkerSignal::Kill], "the interruption came before this process started");
}

#[test]
fn with_always_an_exit_before_readiness_is_startup_failure() {
    let ready_timeout = Some(5 * SECOND);
    let mut sim = Sim::new(Config { ready_timeout, restart_policy: RestartPolicy::Always, ..config(1) });
    sim.end(0, 0, Exit::Code(0));
    assert!(matches!(sim.outcome(), Ok(Reason::StartupFailed { exit: Some(Exit::Code(0)), .. })));
    let mut sim = Sim::new(Config { ready_timeout, ..config(1) });
    sim.end(0, 0, Exit::Code(0));
    assert!(matches!(sim.outcome(), Ok(Reason::Finished)), "an exit with status 0 is no failure");
}

#[test]
fn an_added_worker_that_never_becomes_ready_is_dropped() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.request(Request::ScaleUp);
    sim.end(1, 0, Exit::Signal(9));
    assert!(sim.logged("Worker 1 could not start, removing it"));
    assert_eq!(sim.log.last().expect("a log"), "Scaled to 1 workers");
    sim.request(Request::ScaleUp);
    sim.pass(5 * SECOND);
    assert_eq!(sim.sent(1, 1), [WorkerSignal::Kill], "the added process was not ready in time");
    sim.exit_killed();
    assert_eq!((sim.alive(), sim.policy.wanted(), sim.policy.next_deadline()), (vec![(0, 0)], 1, None));
    sim.request(Request::ScaleUp);
    sim.ready(1, 2);
    sim.end(1, 2, Exit::Code(1));
    assert_eq!(sim.alive(), [(0, 0), (1, 3)], "a worker that has been ready is restarted");
}

#[test]
fn readiness_of_a_stopping_process_counts_for_its_id() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    sim.ready(1, 0);
    sim.end(1, 0, Exit::Signal(15));
    sim.request(Request::ScaleUp);
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!(sim.alive(), [(0, 0), (1, 2)], "the id is restarted, and not dropped");
}

/// Ends each process of this worker with a failure, right after its start, until the worker has failed `times` times.
fn crash_loop(sim: &mut Sim, id: usize, times: u32) {
    for _ in 0..times {
        while !sim.alive.keys().any(|&(alive, _)| alive == id) {
            sim.step();
        }
        let generation = sim.alive.keys().filter(|&&(alive, _)| alive == id).map(|&(_, generation)| generation).max();
        sim.end(id, generation.expect("a process"), Exit::Code(1));
    }
}

fn without_limit(workers: usize) -> Config {
    Config { max_restarts: None, startup_failures: Some(10), ..config(workers) }
}

#[test]
fn ten_failures_in_a_row_are_a_startup_failure() {
    let mut sim = Sim::new(without_limit(2));
    crash_loop(&mut sim, 1, 9);
    assert!(!sim.stopping);
    crash_loop(&mut sim, 1, 1);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    let line = "Startup failed: child 1 (pid 11) exited with status 1, 10 failures in a row";
    assert!(sim.logged(line), "{:?}", sim.log);
    sim.end(0, 0, Exit::Signal(15));
    let reason = sim.outcome().expect("a reason");
    assert!(matches!(reason, Reason::StartupFailed { exit: Some(Exit::Code(1)), failures: Some(10), .. }));
    assert_eq!(reason.to_string(), "failed to start: child 1 (pid 11) exited with status 1, 10 failures in a row");
}

#[test]
fn failures_of_different_workers_are_not_in_a_row() {
    let mut sim = Sim::new(without_limit(3));
    for id in [0, 1, 2] {
        crash_loop(&mut sim, id, 9);
    }
    assert!(!sim.stopping);
}

#[test]
fn after_ten_seconds_failures_in_a_row_restart() {
    type Life = fn(&mut Sim);
    let lives: [(&str, Life); 4] = [
        ("a process that runs", |sim| sim.pass(10 * SECOND)),
        ("a process that drains", |sim| {
            sim.pass(9 * SECOND);
            sim.request(Request::ScaleDown);
            sim.pass(SECOND);
        }),
        ("a process that has exited", |sim| {
            sim.pass(10 * SECOND);
            sim.end(1, 0, Exit::Code(0));
        }),
        ("a process that has failed", |sim| {
            sim.pass(10 * SECOND);
            sim.end(0, 0, Exit::Code(1));
        }),
    ];
    for (name, life) in lives {
        let mut sim = Sim::new(without_limit(2));
        life(&mut sim);
        crash_loop(&mut sim, 0, 500);
        assert!(!sim.stopping, "{name}");
    }
    let mut sim = Sim::new(without_limit(2));
    sim.pass(10 * SECOND - Duration::from_nanos(1) - 9 * SECOND);
    crash_loop(&mut sim, 0, 10);
    assert!(sim.stopping, "no process has lived for 10 s");
}

#[test]
fn the_restart_limit_comes_before_a_startup_failure() {
    for max in [0, 5, 9] {
        let mut sim = Sim::new(Config { max_restarts: Some(max), ..without_limit(1) });
        crash_loop(&mut sim, 0, max + 1);
        assert!(matches!(sim.outcome(), Ok(Reason::RestartLimitReached { .. })), "limit {max}");
    }
    let mut sim = Sim::new(Config { max_restarts: Some(10), ..without_limit(1) });
    crash_loop(&mut sim, 0, 10);
    assert!(matches!(sim.outcome(), Ok(Reason::StartupFailed { .. })));
}

#[test]
fn an_added_worker_that_fails_ten_times_is_dropped() {
    let mut sim = Sim::new(without_limit(1));
    sim.request(Request::ScaleUp);
    crash_loop(&mut sim, 1, 10);
    assert!(sim.logged("Worker 1 could not start, removing it") && !sim.stopping);
    assert_eq!(sim.alive(), [(0, 0)]);
    sim.request(Request::ScaleUp);
    crash_loop(&mut sim, 1, 9);
    assert!(sim.policy.wanted() == 2, "a worker that is added again begins a new row");
}

#[test]
fn normal_exits_are_not_failures_in_a_row() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Always, ..without_limit(1) });
    for generation in 0..50 {
        sim.end(0, generation, Exit::Code(i32::from(generation % 9 > 0)));
        sim.pass(SECOND);
    }
    assert_eq!(sim.alive(), [(0, 50)]);
}

#[test]
fn refused_starts_are_not_failures_in_a_row() {
    let mut sim = Sim::new(without_limit(1));
    crash_loop(&mut sim, 0, 1);
    sim.refuses_starts = true;
    sim.end(0, 1, Exit::Code(1));
    for _ in 0..50 {
        sim.step();
    }
    sim.refuses_starts = false;
    crash_loop(&mut sim, 0, 7);
    assert!(!sim.stopping);
    crash_loop(&mut sim, 0, 1);
    assert!(sim.stopping);
}

#[test]
fn with_readiness_failures_in_a_row_are_no_startup_failure() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..without_limit(1) });
    sim.ready(0, 0);
    crash_loop(&mut sim, 0, 500);
    assert!(!sim.stopping);
}

#[test]
fn several_late_workers_cause_one_startup_failure() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(3) });
    sim.step();
    assert_eq!(sim.log.iter().filter(|line| line.contains("Startup failed")).count(), 1);
}

#[test]
fn the_service_is_up_once_every_worker_was_ready() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(2) });
    sim.ready(0, 0);
    assert_eq!(sim.policy.up(), None);
    sim.ready(1, 0);
    assert_eq!(sim.policy.up(), Some(2));
    sim.end(1, 0, Exit::Code(1));
    assert_eq!(sim.policy.up(), Some(2), "a worker that restarts still counts as up");
    sim.request(Request::Stop);
    assert_eq!(sim.policy.up(), None);
}

#[test]
fn without_readiness_up_waits_for_every_start() {
    let now = some_time();
    let mut policy = Policy::new(config(2), 1, now);
    let mut started = 0;
    while let Some(action) = policy.poll_action() {
        if let Action::Start { id, generation } = action {
            assert_eq!(policy.up(), None);
            started += 1;
            policy.handle_started(now, Process { pool: "", id, generation, pid: Some(started) });
        }
    }
    assert_eq!(policy.up(), Some(2));
}

#[test]
fn an_exit_before_the_call_stops_the_service() {
    for restart_policy in [RestartPolicy::OnFailure, RestartPolicy::Always, RestartPolicy::Never] {
        for exit in [Exit::Code(0), Exit::Code(1), Exit::Signal(9)] {
            let mut sim = Sim::new(Config { restart_policy, ..config(2) });
            sim.end_before_call(1, 0, exit);
            assert!(sim.logged(&format!("child 1 (pid 2) {exit} before it reached the call")));
            assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
            sim.end(0, 0, Exit::Signal(15));
            let outcome = sim.outcome().expect("a reason");
            assert!(matches!(outcome, Reason::StartupFailed { process: Process { id: 1, .. }, .. }), "{outcome}");
            assert!(!outcome.to_string().ends_with("exited normally"), "{outcome}");
        }
    }
}

#[test]
fn an_added_worker_that_exits_before_the_call_is_dropped() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::ScaleUp);
    sim.end_before_call(1, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 0)]);
    assert!(sim.logged("Worker 1 could not start, removing it"));
}

#[test]
fn a_later_exit_before_the_call_is_a_failure() {
    let mut sim = Sim::new(config(1));
    sim.end(0, 0, Exit::Code(1));
    for generation in 1..4 {
        sim.end_before_call(0, generation, Exit::Code(0));
        let expected =
            format!("child 0 (pid {}) exited normally before it reached the call, restarting", generation + 1);
        assert!(sim.logged(&expected), "{:?}", sim.log);
        assert!(sim.alive().is_empty(), "the backoff delays the restart");
        sim.step();
    }
    assert_eq!(sim.policy.reports()[0].restarts(), 4);
}

#[test]
fn a_replacement_exit_before_the_call_aborts_the_roll() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.end_before_call(0, 1, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 0)]);
    assert!(sim.sent(0, 0).is_empty());
    assert!(sim.logged("Rolling restart aborted"));
}

#[test]
fn an_older_process_in_the_call_prevents_startup_failure() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.pass(SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    sim.policy.handle_reached_call(0);
    sim.end_before_call(0, 1, Exit::Code(0));
    assert!(sim.logged("restarting") && sim.logged("Rolling restart aborted"));
    assert!(!sim.stopping);
}

#[test]
fn ready_of_an_earlier_process_does_not_count_for_the_newest() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.ready(0, 0);
    assert_eq!(sim.log.iter().filter(|line| line.contains("is ready")).count(), 1);
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    assert_eq!(sim.alive(), [(0, 0), (1, 0), (1, 1)]);
    sim.ready(1, 0);
    assert!(!sim.logged("child 1 (pid 3) is ready"), "{:?}", sim.log);
    sim.ready(1, 1);
    assert!(sim.logged("child 1 (pid 3) is ready"), "{:?}", sim.log);
}
