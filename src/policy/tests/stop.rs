//! Stopping the service, and requests that reach every worker.

use super::*;

/// A way in which the policy asks a process to exit: its name, the settings, the request, and the time until SIGKILL.
type KillCase = (&'static str, fn(Config) -> Config, fn(&mut Sim), Duration);

const REQUESTS: [KillCase; 5] = [
    ("a graceful stop", |config| config, |sim| sim.request(Request::Stop), GRACEFUL),
    ("a quick stop", |config| config, |sim| sim.request(Request::QuickStop), Duration::from_secs(2)),
    (
        "a rolling restart",
        |config| config,
        |sim| {
            sim.request(Request::Roll);
            sim.step();
        },
        GRACEFUL,
    ),
    (
        "an abort",
        |config| Config { heartbeat_timeout: Some(60 * SECOND), abort_timeout: 5 * SECOND, ..config },
        Sim::step,
        Duration::from_secs(5),
    ),
    (
        "a removed worker",
        |config| config,
        |sim| {
            sim.request(Request::ScaleUp);
            sim.request(Request::ScaleDown);
        },
        GRACEFUL,
    ),
];

#[test]
fn a_paused_parent_extends_kill_deadlines_once() {
    for (name, change, request, timeout) in REQUESTS {
        let begin = || {
            let mut sim = Sim::new(change(config(1)));
            request(&mut sim);
            let id = sim.alive().last().expect("a process").0;
            (sim, id)
        };
        let is_killed = |sim: &Sim, id| sim.sent(id, 0).contains(&WorkerSignal::Kill);
        let (mut sim, id) = begin();
        sim.wake_at(sim.now + timeout);
        assert!(is_killed(&sim, id), "{name}: the parent was not paused");
        let (mut sim, id) = begin();
        sim.wake_at(sim.now + timeout + 3 * SECOND);
        assert!(!is_killed(&sim, id), "{name}: the parent woke up late");
        let next = sim.now + timeout;
        sim.wake_at(next - Duration::from_nanos(1));
        assert!(!is_killed(&sim, id), "{name}: the process has the whole time once more");
        sim.wake_at(next + 3 * SECOND);
        assert!(is_killed(&sim, id), "{name}: the deadline is extended only once");
        let (mut sim, id) = begin();
        sim.policy.handle_interruption(sim.now);
        sim.wake_at(sim.now + timeout);
        assert!(is_killed(&sim, id), "{name}: the interruption came before the request");
        let (mut sim, id) = begin();
        sim.policy.handle_interruption(sim.now + Duration::from_nanos(1));
        sim.wake_at(sim.now + timeout);
        assert!(!is_killed(&sim, id), "{name}: the parent was interrupted");
    }
}

#[test]
fn a_second_stop_kills_after_an_extended_deadline() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Stop);
    sim.wake_at(sim.now + GRACEFUL + SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    sim.request(Request::Stop);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn a_paused_parent_abandons_no_killed_process() {
    let mut sim = Sim::new(config(1));
    sim.blocked.push((0, 0));
    sim.request(Request::Stop);
    sim.request(Request::Stop);
    sim.wake_at(sim.now + 12 * SECOND);
    assert!(sim.abandoned.is_empty());
    sim.wake_at(sim.now + 12 * SECOND);
    assert_eq!(sim.abandoned.len(), 1);
}

#[test]
fn a_paused_parent_extends_the_probation_of_a_replacement() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.wake_at(sim.now + 4 * SECOND);
    assert!(sim.sent(0, 0).is_empty(), "the replacement may have been paused too");
    sim.pass(SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
}

#[test]
fn an_idle_service_has_no_deadline() {
    let mut sim = Sim::new(config(4));
    assert_eq!(sim.policy.next_deadline(), None);
}

#[test]
fn a_stop_has_one_common_deadline() {
    let mut sim = Sim::new(config(3));
    sim.pass(SECOND);
    sim.request(Request::Stop);
    sim.end(1, 0, Exit::Code(0));
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + GRACEFUL));
    sim.step();
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    assert_eq!(sim.sent(2, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    sim.exit_killed();
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
}

#[test]
fn a_second_stop_kills_at_once() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Stop);
    sim.request(Request::Stop);
    sim.request(Request::Stop);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    sim.exit_killed();
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
}

#[test]
fn a_quick_stop_shortens_a_graceful_one() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Stop);
    sim.request(Request::QuickStop);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop, WorkerSignal::QuickStop]);
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + 2 * SECOND));
    sim.request(Request::QuickStop);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop, WorkerSignal::QuickStop, WorkerSignal::Kill]);
}

#[test]
fn the_first_stop_request_during_a_failure_kills_nothing() {
    let mut sim = Sim::new(Config { max_restarts: Some(0), ..config(2) });
    sim.end(0, 0, Exit::Code(1));
    sim.request(Request::Stop);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
    sim.request(Request::Stop);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    sim.exit_killed();
    assert!(matches!(sim.outcome(), Ok(Reason::RestartLimitReached { .. })));
}

#[test]
fn a_stop_cancels_starts_that_are_due() {
    let now = some_time();
    let mut policy = Policy::new(config(1000), 1, now);
    let first = std::iter::from_fn(|| policy.poll_action()).find(|action| matches!(action, Action::Start { .. }));
    assert!(matches!(first, Some(Action::Start { id: 0, .. })));
    policy.handle_started(now, Process { pool: "", id: 0, generation: 0, pid: Some(1) });
    policy.handle_request(now, Request::Stop);
    while let Some(action) = policy.poll_action() {
        assert!(!matches!(action, Action::Start { .. }), "{action:?}");
    }
    policy.handle_exited(now, exited(Process { pool: "", id: 0, generation: 0, pid: Some(1) }, Exit::Signal(15)));
    while policy.poll_action().is_some() {}
    assert!(matches!(policy.poll_end(), Some(Ok(Reason::Stopped))));
}

#[test]
fn a_process_started_after_the_stop_is_stopped() {
    let now = some_time();
    let mut policy = Policy::new(config(1), 1, now);
    while !matches!(policy.poll_action(), Some(Action::Start { .. })) {}
    policy.handle_request(now, Request::Stop);
    policy.handle_started(now, Process { pool: "", id: 0, generation: 0, pid: Some(1) });
    let was_stopped = std::iter::from_fn(|| policy.poll_action()).any(|action| {
        matches!(action, Action::Send { process: Process { pid: Some(1), .. }, message: WorkerSignal::Stop })
    });
    assert!(was_stopped);
}

#[test]
fn a_stop_overtakes_a_refused_restart() {
    let mut sim = Sim::new(config(1));
    sim.refuses_starts = true;
    sim.end(0, 0, Exit::Code(1));
    sim.request(Request::Stop);
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
}

#[test]
fn reopen_reaches_every_process() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Reopen);
    assert_eq!((sim.sent(0, 0), sim.sent(1, 0)), (&[WorkerSignal::Reopen][..], &[WorkerSignal::Reopen][..]));
}

#[test]
fn a_stop_cancels_all_other_deadlines() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(SECOND), max_lifetime: Some(SECOND), ..config(2) });
    sim.request(Request::Stop);
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + GRACEFUL));
}

#[test]
fn stop_all_stops_the_service_once() {
    let mut sim = Sim::new(config(3));
    for id in [1, 0, 1, 2] {
        sim.stop_all(id, 0);
    }
    for id in 0..3 {
        assert_eq!(sim.sent(id, 0), [WorkerSignal::Stop]);
    }
    assert!(sim.logged("Stopping 3 processes, as child 1 (pid 2) requested"));
    sim.request(Request::Stop);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop], "the first stop request after `stop_all` kills nothing");
    sim.request(Request::Stop);
    sim.exit_killed();
    assert!(matches!(sim.outcome(), Ok(Reason::StoppedByWorker { process: Process { id: 1, .. } })));
}

#[test]
fn events_of_unknown_processes_change_nothing() {
    let mut sim = Sim::new(config(1));
    let stranger = Process { pool: "", id: 7, generation: 7, pid: Some(7) };
    sim.policy.handle_exited(sim.now, exited(stranger, Exit::Code(1)));
    sim.policy.handle_exited(sim.now, exited(Process { id: 0, ..stranger }, Exit::Code(1)));
    sim.policy.handle_ready(sim.now, 7, 7);
    sim.policy.handle_beat(sim.now, 7, 7);
    sim.run_actions();
    assert_eq!((sim.alive(), sim.log.len()), (vec![(0, 0)], 1));
}

#[test]
fn a_stop_sends_nothing_to_a_killed_process() {
    let mut sim = Sim::new(Config { ready_timeout: Some(SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.end(0, 0, Exit::Code(1));
    sim.step();
    sim.request(Request::Stop);
    assert_eq!(sim.sent(0, 1), [WorkerSignal::Kill]);
}
#[test]
fn a_stop_request_after_a_quick_stop_kills() {
    let mut sim = Sim::new(config(1));
    sim.stop_all(0, 0);
    sim.request(Request::QuickStop);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop, WorkerSignal::QuickStop]);
    sim.request(Request::Stop);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop, WorkerSignal::QuickStop, WorkerSignal::Kill]);
}

#[test]
fn a_stop_abandons_processes_that_survive_sigkill() {
    let mut sim = Sim::new(config(2));
    sim.blocked.push((0, 0));
    sim.request(Request::Stop);
    sim.request(Request::Stop);
    sim.exit_killed();
    assert_eq!(sim.alive(), [(0, 0)]);
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + 10 * SECOND));
    sim.pass(10 * SECOND);
    assert_eq!(sim.log.iter().filter(|line| line.contains("did not exit within 10 s of SIGKILL")).count(), 1);
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
    assert_eq!(sim.policy.reports()[0].exit(), Some(Exit::Stale));
}

#[test]
fn the_service_has_not_ended_while_actions_are_queued() {
    let mut sim = Sim::new(config(1));
    sim.actions_per_event = 0;
    sim.end(0, 0, Exit::Code(0));
    assert!(sim.policy.poll_end().is_none(), "the event of the exit is still queued");
    sim.actions_per_event = usize::MAX;
    sim.run_actions();
    assert!(matches!(sim.outcome(), Ok(Reason::Finished)));
}

#[test]
fn the_service_has_not_ended_before_the_first_start() {
    let mut policy = Policy::new(config(2), 1, some_time());
    assert!(matches!(policy.poll_action(), Some(Action::Emit(Event::Starting { workers: 2, .. }))));
    assert!(policy.poll_end().is_none(), "no process runs, but two starts follow");
    assert_eq!(policy.wanted(), 2);
}

#[test]
fn during_a_stop_other_requests_change_nothing() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Stop);
    let log = sim.log.clone();
    for request in [Request::Roll, Request::ScaleUp, Request::ScaleDown, Request::Reopen] {
        sim.request(request);
    }
    assert_eq!((sim.sent(0, 0), sim.sent(1, 0)), (&[WorkerSignal::Stop][..], &[WorkerSignal::Stop][..]));
    assert_eq!(sim.log, log);
}

#[test]
fn a_process_started_after_the_stop_has_the_graceful_timeout() {
    let now = some_time();
    let mut policy = Policy::new(config(1), 1, now);
    while !matches!(policy.poll_action(), Some(Action::Start { .. })) {}
    policy.handle_request(now, Request::Stop);
    policy.handle_started(now + SECOND, Process { pool: "", id: 0, generation: 0, pid: Some(1) });
    assert_eq!(policy.next_deadline(), Some(now + SECOND + GRACEFUL));
}

#[test]
fn has_killed_is_true_only_after_sigkill() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    let killed = |sim: &Sim| sim.alive.values().map(|one| sim.policy.has_killed(one.process)).collect::<Vec<_>>();
    sim.ready(0, 0);
    sim.end(0, 0, Exit::Code(1));
    assert_eq!(killed(&sim), [false]);
    let process = sim.alive[&(0, 1)].process;
    sim.step();
    assert_eq!((sim.sent(0, 1), killed(&sim)), (&[WorkerSignal::Kill][..], vec![true]));
    sim.end(0, 1, Exit::Signal(9));
    assert!(!sim.policy.has_killed(process), "the policy knows only living processes");
    assert!(!sim.policy.has_killed(Process { id: 7, ..process }));
    sim.pass(SECOND);
    sim.request(Request::Stop);
    assert_eq!(killed(&sim), [false]);
    sim.pass(GRACEFUL);
    assert_eq!(killed(&sim), [true]);
}

#[test]
fn a_second_stop_counts_only_processes_not_killed_before() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.end(0, 0, Exit::Code(1));
    sim.step();
    assert_eq!(sim.sent(0, 1), [WorkerSignal::Kill]);
    sim.request(Request::Stop);
    sim.request(Request::Stop);
    assert!(sim.logged("Second stop request, killing 1 processes"), "{:?}", sim.log);
    sim.request(Request::Stop);
    assert_eq!(sim.log.iter().filter(|line| line.contains("Second stop request")).count(), 1, "no process is left");
}

#[test]
fn a_killed_process_is_not_abandoned_early() {
    let mut sim = Sim::new(config(1));
    sim.blocked.push((0, 0));
    sim.request(Request::Stop);
    sim.request(Request::Stop);
    sim.wake_at(sim.now + 9 * SECOND);
    assert!(sim.abandoned.is_empty());
    sim.wake_at(sim.now + SECOND);
    assert_eq!(sim.abandoned.len(), 1);
}

#[test]
fn kills_are_due_after_the_graceful_timeout() {
    let mut sim = Sim::new(config(2));
    assert!(sim.policy.kills_due(sim.now).is_empty());
    sim.request(Request::Stop);
    assert!(sim.policy.kills_due(sim.now).is_empty());
    assert_eq!(sim.policy.kills_due(sim.now + GRACEFUL).len(), 2);
}

#[test]
fn an_unknown_exit_during_a_replacement_changes_nothing() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    let log = sim.log.clone();
    let stranger = Process { pool: "", id: 0, generation: 7, pid: Some(7) };
    sim.policy.handle_exited(sim.now, exited(stranger, Exit::Code(0)));
    sim.run_actions();
    assert_eq!((sim.alive(), &sim.log), (vec![(0, 0), (0, 1)], &log));
    sim.pass(SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop], "the replacement continues");
}
