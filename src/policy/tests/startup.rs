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
                policy.handle_started(now, Process { id, generation, pid: Some(pid) });
            }
            Action::Send { process, message } => sent.push((process.id, message)),
            Action::Abandon { .. } | Action::Emit(_) => {}
        }
    }
    assert_eq!(sent, [(0, WorkerSignal::Stop), (1, WorkerSignal::Stop)]);
    for (id, pid) in [(0, 1), (1, 2)] {
        policy.handle_exited(now, exited(Process { id, generation: 0, pid: Some(pid) }, Exit::Signal(15)));
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
        Ok(Reason::StartupFailed { process: Process { id: 1, .. }, exit: Some(Exit::Code(1)) })
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
    assert!(sim.logged("Child 1 could not be brought up, giving it up"));
    assert_eq!(sim.log.last().expect("a log"), "Scaled to 1 processes");
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
            policy.handle_started(now, Process { id, generation, pid: Some(started) });
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
    assert!(sim.logged("Child 1 could not be brought up, giving it up"));
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
