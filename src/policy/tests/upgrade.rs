//! Upgrades until the execution of the new program.

use super::service_sim::{Input, ServiceSim, UPGRADE, pool};
use super::*;

const WEB: usize = 0;
const JOBS: usize = 1;

fn single(workers: usize) -> ServiceSim {
    ServiceSim::new(vec![pool("", workers)])
}

fn with_readiness(name: &'static str, workers: usize) -> PoolConfig {
    PoolConfig {
        config: Config { ready_timeout: Some(5 * SECOND), ..pool(name, workers).config },
        ..pool(name, workers)
    }
}

/// Returns a service with one pool, in which the trial worker is being started with worker 0.
fn trying(workers: usize) -> ServiceSim {
    let mut sim = single(workers);
    sim.request(Request::Upgrade);
    sim.pass_check(&[WEB]);
    assert_eq!(sim.alive(WEB)[..2], [(0, 0), (0, 1)]);
    sim
}

fn stopped(sim: &ServiceSim) -> Vec<(usize, u32)> {
    let is_stopped = |key: &(usize, u32)| sim.sent(WEB, key.0, key.1).contains(&WorkerSignal::Stop);
    sim.alive(WEB).into_iter().filter(is_stopped).collect()
}

#[test]
fn the_old_process_serves_until_the_execution() {
    let mut sim = single(2);
    sim.request(Request::Upgrade);
    assert!(sim.is_checking && sim.service.is_upgrading());
    assert_eq!(sim.alive(WEB), [(0, 0), (1, 0)]);
    sim.pass_check(&[WEB]);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1), (1, 0)]);
    assert!(!sim.is_executing);
    sim.ready(WEB, 0, 1);
    assert!(sim.is_executing && stopped(&sim).is_empty());
    assert!(sim.logged("child 0 (pid 3) is ready"), "{:?}", sim.log);
}

#[test]
fn without_readiness_a_trial_worker_must_live_for_a_second() {
    let mut sim = trying(1);
    sim.pass(SECOND - Duration::from_nanos(1));
    assert!(!sim.is_executing);
    sim.pass(SECOND);
    assert!(sim.is_executing);
}

#[test]
fn without_trial_workers_the_checks_suffice() {
    let mut sim = single(1);
    sim.request(Request::Upgrade);
    sim.pass_check(&[]);
    assert!(sim.is_executing);
}

#[test]
fn pools_without_surge_are_not_tried() {
    let mut config = pool("", 1);
    config.config.max_surge = 0;
    config.config.max_unavailable = 1;
    let mut sim = ServiceSim::new(vec![config]);
    sim.request(Request::Upgrade);
    sim.pass_check(&[WEB]);
    assert!(sim.is_executing);
    assert_eq!(sim.alive(WEB), [(0, 0)]);
}

#[test]
fn every_trial_must_succeed_before_the_execution() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 1), pool("mail", 1)]);
    sim.request(Request::Upgrade);
    sim.pass_check(&[WEB, JOBS]);
    assert_eq!((sim.alive(WEB).len(), sim.alive(JOBS).len(), sim.alive(2).len()), (2, 2, 1));
    sim.ready(JOBS, 0, 1);
    assert!(!sim.is_executing);
    sim.ready(WEB, 0, 1);
    assert!(sim.is_executing);
}

#[test]
fn an_upgrade_waits_for_replacements_under_way() {
    let mut sim = single(2);
    sim.request(Request::Roll);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1), (1, 0)]);
    sim.request(Request::Upgrade);
    assert!(!sim.is_checking);
    sim.ready(WEB, 0, 1);
    assert!(sim.is_checking);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1), (1, 0)], "the rolling restart is suspended");
    sim.pass_check(&[WEB]);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1), (1, 0), (1, 1)], "an old process of worker 0 drains");
    sim.end(WEB, 1, 1, Exit::Code(1));
    assert!(sim.logged("Upgrade aborted"), "{:?}", sim.log);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1), (1, 0), (1, 2)], "the rolling restart goes on");
    sim.ready(WEB, 1, 2);
    sim.end_stopped(WEB);
    assert!(sim.logged("Rolling restart done"));
}

#[test]
fn a_process_is_not_recycled_during_an_upgrade() {
    let mut sim = single(1);
    sim.pass(SECOND);
    sim.request(Request::Upgrade);
    sim.run(Input::Retire(sim.process(WEB, 0, 0)));
    sim.pass(10 * SECOND);
    assert_eq!(sim.alive(WEB), [(0, 0)]);
    sim.fail_upgrade("no");
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1)]);
}

#[test]
fn requests_wait_for_the_end_of_an_upgrade() {
    let mut sim = single(2);
    sim.request(Request::Upgrade);
    for request in [Request::ScaleUp, Request::Roll, Request::Replace(1), Request::Reopen] {
        sim.request(request);
    }
    assert!(!sim.service.has_requests(), "the supervisor would not wait");
    assert_eq!(sim.sent(WEB, 0, 0), [WorkerSignal::Reopen], "workers reopen their files at once");
    let requests = sim.service.snapshot(sim.now).pools[WEB].requests.clone();
    assert_eq!(requests, [Request::ScaleUp, Request::Roll, Request::Replace(1)]);
    assert_eq!(sim.alive(WEB), [(0, 0), (1, 0)]);
    sim.fail_upgrade("no");
    assert!(sim.logged("Scaled") && sim.logged("Rolling restart"));
}

#[test]
fn a_crashed_worker_is_restarted_during_an_upgrade() {
    let mut sim = trying(2);
    sim.end(WEB, 1, 0, Exit::Signal(9));
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1), (1, 1)]);
    sim.ready(WEB, 0, 1);
    assert!(sim.is_executing);
}

#[test]
fn a_stop_ends_the_checker() {
    for request in [Request::Stop, Request::QuickStop] {
        let mut sim = single(1);
        sim.request(Request::Upgrade);
        assert!(sim.is_checking);
        sim.request(request);
        assert!(!sim.is_checking && !sim.service.is_upgrading());
        assert!(sim.logged("Upgrade aborted"));
        sim.end(WEB, 0, 0, Exit::Signal(15));
        assert_eq!(sim.outcome().expect("no error"), Reason::Stopped);
    }
}

#[test]
fn a_stop_stops_trial_workers_with_the_others() {
    let mut sim = trying(1);
    sim.request(Request::Stop);
    assert_eq!(stopped(&sim), [(0, 0), (0, 1)]);
    sim.end_stopped(WEB);
    assert_eq!(sim.outcome().expect("no error"), Reason::Stopped);
}

#[test]
fn a_stop_by_a_worker_ends_the_upgrade() {
    let mut sim = trying(1);
    sim.run(Input::StopPool(sim.process(WEB, 0, 0)));
    assert!(sim.logged("Upgrade aborted") && !sim.service.is_upgrading());
    sim.end_stopped(WEB);
    sim.outcome().expect("no error");
}

#[test]
fn an_upgrade_ends_with_the_last_worker() {
    let mut sim = single(1);
    sim.request(Request::Upgrade);
    sim.end(WEB, 0, 0, Exit::Code(0));
    assert!(!sim.is_checking);
    assert_eq!(sim.outcome().expect("no error"), Reason::Finished);
}

#[test]
fn a_further_request_begins_a_new_trial() {
    let mut sim = trying(2);
    sim.request(Request::Upgrade);
    assert!(sim.logged("requested again"));
    assert_eq!(stopped(&sim), [(0, 1)]);
    assert!(sim.is_checking);
    sim.pass_check(&[WEB]);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1), (1, 0), (1, 1)], "the first trial worker of worker 0 still stops");
    sim.end_stopped(WEB);
    sim.ready(WEB, 1, 1);
    assert!(sim.is_executing);
}

#[test]
fn a_further_request_replaces_the_checker() {
    let mut sim = single(1);
    sim.request(Request::Upgrade);
    sim.request(Request::Upgrade);
    assert!(sim.is_checking);
    let lines = sim.take_log("pgrad");
    assert_eq!(lines.len(), 3, "{lines:?}");
}

#[test]
fn a_trial_waits_for_a_worker_without_draining_process() {
    let mut sim = trying(1);
    sim.request(Request::Upgrade);
    sim.pass_check(&[WEB]);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1)]);
    sim.end_stopped(WEB);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 2)]);
}

#[test]
fn the_upgrade_timeout_covers_every_phase() {
    let timeout = UPGRADE.timeout;
    let mut waiting = ServiceSim::new(vec![PoolConfig {
        config: Config { ready_timeout: Some(2 * timeout), ..pool("", 1).config },
        ..pool("", 1)
    }]);
    waiting.ready(WEB, 0, 0);
    waiting.request(Request::Roll);
    waiting.request(Request::Upgrade);
    let mut checking = single(1);
    checking.request(Request::Upgrade);
    let mut trying = ServiceSim::new(vec![with_readiness("", 2)]);
    trying.ready(WEB, 0, 0);
    trying.ready(WEB, 1, 0);
    trying.request(Request::Upgrade);
    trying.pass_check_of(vec![TrialPool { index: WEB, ready_timeout: Some(2 * timeout), workers: 2 }]);
    let reason = "replacements under way have not ended";
    for (sim, reason) in
        [(&mut waiting, reason), (&mut checking, "not reached its call"), (&mut trying, "not ready within")]
    {
        sim.pass(timeout - Duration::from_nanos(1));
        assert!(sim.service.is_upgrading());
        sim.pass(Duration::from_nanos(1));
        assert!(!sim.service.is_upgrading() && !sim.is_checking);
        assert!(sim.logged(reason), "{:?}", sim.log);
    }
    assert_eq!(stopped(&trying), [(0, 1)]);
}

#[test]
fn a_failed_trial_changes_nothing() {
    let mut sim = trying(1);
    sim.end(WEB, 0, 1, Exit::Code(3));
    assert!(sim.logged("child 0 (pid 2) of the new program exited with status 3"), "{:?}", sim.log);
    assert!(!sim.service.is_upgrading() && stopped(&sim).is_empty());
    assert_eq!(sim.alive(WEB), [(0, 0)]);
    sim.pass(60 * SECOND);
    assert_eq!(sim.alive(WEB), [(0, 0)]);
    let report = &sim.service.reports()[WEB];
    assert_eq!((report.restarts(), report.workers()[0].exit()), (0, None));
}

#[test]
fn a_ready_trial_worker_must_not_exit_before_the_execution() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 1)]);
    sim.request(Request::Upgrade);
    sim.pass_check(&[WEB, JOBS]);
    sim.ready(WEB, 0, 1);
    sim.end(WEB, 0, 1, Exit::Signal(11));
    assert!(sim.logged("web child 0 (pid 2) of the new program was killed by signal 11"), "{:?}", sim.log);
    assert_eq!(sim.sent(JOBS, 0, 1), [WorkerSignal::Stop]);
}

#[test]
fn a_fatal_exit_of_a_trial_worker_stops_no_pool() {
    let mut config = pool("", 1);
    config.config.fatal_exit_codes = vec![78];
    config.config.max_restarts = Some(0);
    let mut sim = ServiceSim::new(vec![config]);
    sim.request(Request::Upgrade);
    sim.pass_check(&[WEB]);
    sim.end(WEB, 0, 1, Exit::Code(78));
    assert!(!sim.service.is_stopping());
}

#[test]
fn a_late_trial_worker_is_killed() {
    let mut sim = single(1);
    sim.request(Request::Upgrade);
    sim.pass_check_of(vec![TrialPool { index: WEB, ready_timeout: Some(2 * SECOND), workers: 1 }]);
    sim.pass(2 * SECOND);
    assert_eq!(sim.sent(WEB, 0, 1), [WorkerSignal::Kill]);
    assert!(sim.logged("of the new program was not ready in time"), "{:?}", sim.log);
    assert!(!sim.service.is_upgrading());
    sim.exit_killed();
    assert_eq!(sim.alive(WEB), [(0, 0)]);
}

#[test]
fn a_refused_start_of_a_trial_worker_is_the_reason() {
    let mut sim = single(1);
    sim.request(Request::Upgrade);
    sim.pools[WEB].refuses_starts = true;
    sim.pass_check(&[WEB]);
    assert!(sim.logged("Upgrade aborted") && sim.logged("fork"), "{:?}", sim.log);
    assert_eq!(sim.log.iter().filter(|line| line.contains("fork")).count(), 1, "one line has the reason");
    assert_eq!(sim.alive(WEB), [(0, 0)]);
}

#[test]
fn a_failed_execution_changes_nothing() {
    let mut sim = trying(1);
    sim.ready(WEB, 0, 1);
    assert!(sim.is_executing);
    sim.fail_upgrade("execve failed");
    assert!(sim.logged("execve failed") && !sim.service.is_upgrading());
    assert_eq!(stopped(&sim), [(0, 1)]);
    sim.end_stopped(WEB);
    sim.request(Request::Upgrade);
    assert!(sim.is_checking);
}

#[test]
fn the_trial_worker_takes_over_from_a_dead_process() {
    let mut sim = trying(1);
    sim.end(WEB, 0, 0, Exit::Signal(9));
    assert_eq!(sim.alive(WEB), [(0, 1)]);
    sim.ready(WEB, 0, 1);
    assert!(sim.is_executing);
}

#[test]
fn the_old_program_restarts_after_both_have_failed() {
    let mut sim = trying(1);
    sim.end(WEB, 0, 0, Exit::Signal(9));
    sim.end(WEB, 0, 1, Exit::Signal(9));
    assert_eq!(sim.alive(WEB), [(0, 2)]);
    assert!(sim.logged("Upgrade aborted"));
    let mut late = single(1);
    late.request(Request::Upgrade);
    late.pass_check_of(vec![TrialPool { index: WEB, ready_timeout: Some(SECOND), workers: 1 }]);
    late.end(WEB, 0, 0, Exit::Signal(9));
    late.pass(SECOND);
    assert_eq!(late.alive(WEB), [(0, 1), (0, 2)]);
}

#[test]
fn a_successor_from_an_aborted_upgrade_is_replaced() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 1)]);
    sim.request(Request::Upgrade);
    sim.pass_check(&[WEB, JOBS]);
    sim.ready(WEB, 0, 1);
    sim.end(WEB, 0, 0, Exit::Signal(9));
    sim.pass(SECOND / 2);
    sim.end(JOBS, 0, 1, Exit::Signal(9));
    sim.pass(SECOND / 2);
    assert!(sim.logged("runs the program of an aborted upgrade"), "{:?}", sim.log);
    assert_eq!(sim.alive(WEB), [(0, 1), (0, 2)]);
    sim.ready(WEB, 0, 2);
    assert_eq!(sim.sent(WEB, 0, 1), [WorkerSignal::Stop]);
}

#[test]
fn a_starting_successor_from_an_aborted_upgrade_is_stopped() {
    let mut sim = trying(1);
    sim.end(WEB, 0, 0, Exit::Signal(9));
    sim.fail_upgrade("no");
    assert_eq!(sim.alive(WEB), [(0, 1), (0, 2)]);
    assert_eq!(stopped(&sim), [(0, 1)]);
}

#[test]
fn a_crash_looping_worker_gets_the_trial_worker() {
    let mut sim = single(1);
    for generation in 0..3 {
        sim.end(WEB, 0, generation, Exit::Code(1));
        if sim.alive(WEB).is_empty() {
            break;
        }
    }
    assert!(sim.alive(WEB).is_empty(), "the worker waits");
    sim.request(Request::Upgrade);
    sim.pass_check(&[WEB]);
    let alive = sim.alive(WEB);
    assert_eq!(alive.len(), 1);
    sim.ready(WEB, 0, alive[0].1);
    assert!(sim.is_executing);
}

#[test]
fn a_smaller_new_program_tries_a_worker_that_stays() {
    let mut sim = trying(2);
    sim.request(Request::Upgrade);
    sim.pass_check_of(vec![TrialPool { index: WEB, ready_timeout: None, workers: 1 }]);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1), (1, 0)], "worker 1 would be removed");
    sim.end_stopped(WEB);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 2), (1, 0)]);
}

#[test]
fn the_trial_goes_on_with_another_worker_if_its_own_finishes() {
    let mut sim = trying(2);
    sim.end(WEB, 0, 0, Exit::Code(0));
    assert_eq!(stopped(&sim), [(0, 1)]);
    assert_eq!(sim.alive(WEB), [(0, 1), (1, 0), (1, 1)]);
    assert!(sim.service.is_upgrading());
}

#[test]
fn no_heartbeats_are_expected_from_trial_workers() {
    let mut config = pool("", 1);
    config.config.heartbeat_timeout = Some(2 * SECOND);
    let mut sim = ServiceSim::new(vec![config]);
    sim.request(Request::Upgrade);
    sim.pass_check_of(vec![TrialPool { index: WEB, ready_timeout: Some(30 * SECOND), workers: 1 }]);
    for _ in 0..10 {
        sim.pass(SECOND);
        sim.run(Input::Beat(sim.process(WEB, 0, 0)));
    }
    assert_eq!(sim.sent(WEB, 0, 1), []);
    sim.ready(WEB, 0, 1);
    assert!(sim.is_executing);
}

#[test]
fn a_refusal_is_reported_once_per_second() {
    let now = some_time();
    let refusing = UpgradeConfig { refusal: Some("worker threads"), ..UPGRADE };
    let mut service = Service::new(vec![pool("", 1)], refusing, 1, now);
    let mut refusals = |now| {
        service.handle_request(now, None, Request::Upgrade);
        service.execute_requests(now);
        let is_refusal = |(_, action): &(usize, Action)| matches!(action, Action::Emit(Event::UpgradeAborted { .. }));
        std::iter::from_fn(|| service.poll_action()).filter(is_refusal).count()
    };
    assert_eq!([refusals(now), refusals(now), refusals(now + SECOND)], [1, 0, 1]);
}

#[test]
fn an_upgrade_waits_for_the_initial_starts() {
    let mut sim = ServiceSim::before_start(vec![pool("", 3)], 1);
    sim.actions_per_event = 2;
    sim.request(Request::Upgrade);
    assert!(!sim.is_checking);
    sim.actions_per_event = usize::MAX;
    sim.run_actions();
    assert_eq!(sim.alive(WEB).len(), 3);
    assert!(sim.is_checking);
}

#[test]
fn a_paused_parent_extends_the_upgrade_timeout() {
    let mut sim = single(1);
    sim.request(Request::Upgrade);
    sim.wake_at(sim.now + 2 * UPGRADE.timeout);
    assert!(sim.service.is_upgrading());
    sim.pass(UPGRADE.timeout);
    assert!(!sim.service.is_upgrading());
}

#[test]
fn late_results_of_an_earlier_upgrade_are_ignored() {
    let mut sim = single(1);
    let trial = TrialPool { index: WEB, ready_timeout: None, workers: 1 };
    sim.service.handle_check_passed(sim.now, vec![trial]);
    sim.fail_upgrade("late");
    assert!(!sim.logged("late") && !sim.service.is_upgrading());
    assert_eq!(sim.alive(WEB), [(0, 0)]);
}

#[test]
fn a_suspended_roll_ends_with_its_last_process() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 1)]);
    sim.service.policy_mut(JOBS).config = Config { restart_policy: RestartPolicy::Never, ..pool("jobs", 1).config };
    sim.request(Request::Upgrade);
    sim.service.policy_mut(JOBS).request_roll();
    sim.run_actions();
    sim.end(JOBS, 0, 0, Exit::Code(0));
    assert!(sim.logged("jobs: Rolling restart done"), "{:?}", sim.log);
    assert!(sim.ended[JOBS] && sim.service.is_upgrading());
}

#[test]
fn the_end_of_an_upgrade_comes_before_the_stop() {
    let mut sim = single(1);
    sim.request(Request::Upgrade);
    sim.log.clear();
    sim.request(Request::Stop);
    assert!(sim.log[0].starts_with("Upgrade aborted") && sim.log[1].starts_with("Stopping"), "{:?}", sim.log);
}

#[test]
fn the_execution_waits_until_a_removed_queue_is_served() {
    let config = Config { ready_timeout: Some(5 * SECOND), pool: "", ..with_queues(2) };
    let mut sim = ServiceSim::new(vec![PoolConfig { config, ..pool("", 2) }]);
    sim.ready(WEB, 0, 0);
    sim.ready(WEB, 1, 0);
    sim.request(Request::ScaleDown);
    sim.request(Request::Upgrade);
    sim.pass_check(&[WEB]);
    sim.end(WEB, 1, 0, Exit::Signal(9));
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1), (1, 1)], "a process is started for the queue");
    sim.ready(WEB, 0, 1);
    assert!(!sim.is_executing);
    sim.ready(WEB, 1, 1);
    assert!(sim.is_executing);
}
