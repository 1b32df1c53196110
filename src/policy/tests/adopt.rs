//! Upgrades after the execution of the new program.

use super::service_sim::{Input, ServiceSim, UPGRADE, optional, pool};
use super::*;

const WEB: usize = 0;
const JOBS: usize = 1;
const MAIL: usize = 2;

/// Upgrades a service to a program with these settings, until the new program has adopted the processes. The pools of
/// `trials` have trial workers.
fn upgrade(sim: &mut ServiceSim, trials: &[usize], pools: Vec<PoolConfig>) {
    sim.request(Request::Upgrade);
    let before: Vec<_> = (0..sim.pools.len()).map(|index| sim.alive(index)).collect();
    sim.pass_check(trials);
    for &index in trials {
        let is_new = |key: &(usize, u32)| !before[index].contains(key);
        let (id, generation) = sim.alive(index).into_iter().find(is_new).expect("a trial worker");
        sim.ready(index, id, generation);
    }
    assert!(sim.is_executing);
    sim.log.clear();
    sim.adopt(pools);
}

/// Returns a service with one pool that was upgraded.
fn upgraded(workers: usize, config: PoolConfig) -> ServiceSim {
    let mut sim = ServiceSim::new(vec![pool("", workers)]);
    upgrade(&mut sim, &[WEB], vec![config]);
    sim
}

fn removed(name: &'static str, workers: usize) -> PoolConfig {
    PoolConfig { removed: true, ..pool(name, workers) }
}

/// Lets time pass until the rolling restarts wait for nothing but time.
fn settle(sim: &mut ServiceSim) {
    for _ in 0..40 {
        sim.pass(SECOND / 2);
        (0..sim.pools.len()).for_each(|pool| sim.end_stopped(pool));
    }
}

fn position(sim: &ServiceSim, line: &str) -> usize {
    sim.log.iter().position(|logged| logged.contains(line)).unwrap_or_else(|| panic!("{line}: {:#?}", sim.log))
}

#[test]
fn the_trial_worker_takes_over_and_the_others_are_rolled() {
    let mut sim = upgraded(3, pool("", 3));
    assert_eq!(sim.sent(WEB, 0, 0), [WorkerSignal::Stop]);
    assert_eq!(sim.alive(WEB), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]);
    assert_eq!(sim.sent(WEB, 0, 1), []);
    settle(&mut sim);
    assert_eq!(sim.alive(WEB), [(0, 1), (1, 1), (2, 1)]);
    assert!(position(&sim, "Rolling restart done") < position(&sim, "Upgrade done"));
    assert!(!sim.service.is_upgrading() && !sim.service.is_rolling());
}

#[test]
fn an_upgrade_is_not_finished_before_every_old_process_has_exited() {
    let mut sim = upgraded(1, pool("", 1));
    sim.pass(5 * SECOND);
    assert!(sim.service.is_upgrading() && sim.service.is_rolling());
    sim.end_stopped(WEB);
    assert!(!sim.service.is_upgrading());
}

#[test]
fn a_process_started_after_the_adoption_is_not_replaced() {
    let mut sim = ServiceSim::new(vec![pool("web", 2), pool("jobs", 2)]);
    upgrade(&mut sim, &[WEB, JOBS], vec![pool("web", 2), pool("jobs", 2)]);
    sim.end(JOBS, 1, 0, Exit::Signal(9));
    settle(&mut sim);
    assert_eq!(sim.alive(JOBS), [(0, 1), (1, 1)]);
    assert!(sim.logged("Upgrade done") && sim.logged("jobs: Rolling restart done"));
}

#[test]
fn pools_are_rolled_in_order_and_new_ones_start_last() {
    let mut sim = ServiceSim::new(vec![pool("web", 2), pool("jobs", 1)]);
    upgrade(&mut sim, &[WEB], vec![pool("web", 2), pool("jobs", 1), pool("mail", 2)]);
    assert_eq!((sim.alive(JOBS), sim.alive(MAIL)), (vec![(0, 0)], vec![]));
    settle(&mut sim);
    let lines = ["web: Rolling restart done", "jobs: Rolling restart", "jobs: Rolling restart done"];
    let lines = [&lines[..], &["mail: Starting 2 processes", "Upgrade done"]].concat();
    let positions: Vec<usize> = lines.iter().map(|line| position(&sim, line)).collect();
    assert!(positions.is_sorted(), "{positions:?}");
    assert_eq!(sim.alive(MAIL), [(0, 0), (1, 0)]);
    sim.request(Request::Roll);
    settle(&mut sim);
    assert_eq!(sim.alive(MAIL), [(0, 1), (1, 1)]);
}

#[test]
fn a_failing_worker_of_a_new_pool_is_dropped() {
    let mut sim = ServiceSim::new(vec![pool("web", 1)]);
    let mail =
        PoolConfig { config: Config { ready_timeout: Some(SECOND), ..pool("mail", 2).config }, ..pool("mail", 2) };
    upgrade(&mut sim, &[], vec![pool("web", 1), mail]);
    settle_pool(&mut sim, WEB);
    sim.ready(JOBS, 1, 0);
    sim.end(JOBS, 0, 0, Exit::Code(1));
    assert!(!sim.service.is_stopping());
    assert_eq!(sim.alive(JOBS), [(1, 0)]);
    assert!(sim.logged("Upgrade done"));
}

/// Lets a pool with one worker finish its rolling restart.
fn settle_pool(sim: &mut ServiceSim, pool: usize) {
    sim.pass(SECOND);
    sim.end_stopped(pool);
}

#[test]
fn requests_to_a_new_pool_wait_for_its_start() {
    let mut sim = ServiceSim::new(vec![pool("web", 1)]);
    upgrade(&mut sim, &[], vec![pool("web", 1), pool("jobs", 1)]);
    sim.request_in(JOBS, Request::Scale(3));
    assert!(sim.alive(JOBS).is_empty() && !sim.service.has_requests());
    settle_pool(&mut sim, WEB);
    assert_eq!(sim.alive(JOBS).len(), 3);
}

#[test]
fn a_removed_pool_stops_at_once() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 1)]);
    upgrade(&mut sim, &[], vec![pool("web", 1), removed("jobs", 1)]);
    assert_eq!(sim.sent(JOBS, 0, 0), [WorkerSignal::Stop]);
    settle_pool(&mut sim, WEB);
    assert!(sim.service.is_upgrading(), "a process of the old program is left");
    assert!(!sim.service.is_rolling());
    sim.end_stopped(JOBS);
    assert!(!sim.service.is_upgrading() && sim.logged("Upgrade done"));
    sim.request(Request::Stop);
    sim.end_stopped(WEB);
    assert_eq!(sim.outcome().expect("no error"), Reason::Stopped);
}

#[test]
fn another_number_of_workers_in_the_settings_counts() {
    let more = upgraded(1, pool("", 3));
    assert!(more.logged("Scaled") && more.alive(WEB).contains(&(2, 0)));
    let fewer = upgraded(3, pool("", 1));
    assert_eq!(fewer.sent(WEB, 2, 0), [WorkerSignal::Stop]);
    assert_eq!(fewer.service.pool(WEB).wanted(), 1);
}

#[test]
fn a_scaled_number_of_workers_stays() {
    let mut sim = ServiceSim::new(vec![pool("", 2)]);
    sim.request(Request::ScaleUp);
    upgrade(&mut sim, &[WEB], vec![pool("", 2)]);
    settle(&mut sim);
    assert_eq!(sim.alive(WEB), [(0, 1), (1, 1), (2, 1)]);
    let small = PoolConfig { config: Config { max_workers: 2, ..pool("", 2).config }, ..pool("", 2) };
    upgrade(&mut sim, &[WEB], vec![small]);
    settle(&mut sim);
    assert_eq!(sim.alive(WEB), [(0, 2), (1, 2)], "max_workers limits it");
}

#[test]
fn a_worker_that_had_finished_stays_so() {
    let mut sim = ServiceSim::new(vec![pool("", 2)]);
    sim.end(WEB, 1, 0, Exit::Code(0));
    upgrade(&mut sim, &[WEB], vec![pool("", 2)]);
    settle(&mut sim);
    assert_eq!(sim.alive(WEB), [(0, 1)]);
}

#[test]
fn an_added_worker_that_cannot_start_is_dropped() {
    let config = Config { ready_timeout: Some(SECOND), ..pool("", 2).config };
    let mut sim = upgraded(1, PoolConfig { config, ..pool("", 2) });
    sim.end(WEB, 1, 0, Exit::Code(1));
    assert!(!sim.service.is_stopping());
    assert_eq!(sim.service.pool(WEB).wanted(), 1);
}

#[test]
fn a_failed_replacement_aborts_the_upgrade() {
    let mut sim = ServiceSim::new(vec![pool("web", 2), pool("jobs", 1)]);
    upgrade(&mut sim, &[WEB], vec![pool("web", 2), pool("jobs", 1), pool("mail", 1)]);
    sim.end(WEB, 1, 1, Exit::Code(1));
    assert!(
        sim.logged("Upgrade aborted: web: the replacement of worker 1 by the new program has failed"),
        "{:?}",
        sim.log
    );
    sim.end_stopped(WEB);
    sim.pass(60 * SECOND);
    assert_eq!((sim.alive(WEB), sim.alive(JOBS)), (vec![(0, 1), (1, 0)], vec![(0, 0)]));
    assert_eq!(sim.alive(MAIL), [(0, 0)], "a new pool starts nevertheless");
    assert!(!sim.service.is_rolling() && !sim.logged("Upgrade done"));
    sim.request(Request::Roll);
    settle(&mut sim);
    assert_eq!((sim.alive(WEB), sim.alive(JOBS)), (vec![(0, 2), (1, 2)], vec![(0, 1)]));
}

#[test]
fn requests_of_the_snapshot_are_executed_afterwards() {
    let mut sim = ServiceSim::new(vec![pool("", 1)]);
    sim.request(Request::Upgrade);
    sim.request(Request::ScaleUp);
    sim.request(Request::Roll);
    sim.pass_check(&[WEB]);
    sim.ready(WEB, 0, 1);
    assert!(sim.is_executing);
    sim.adopt(vec![pool("", 1)]);
    assert!(sim.logged("Scaled"));
    settle(&mut sim);
    let rolls = sim.log.iter().filter(|line| *line == "Rolling restart").count();
    assert_eq!((rolls, sim.alive(WEB)), (2, vec![(0, 2), (1, 1)]));
}

#[test]
fn a_requested_roll_of_all_pools_comes_after_the_upgrade() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 1)]);
    sim.request(Request::Upgrade);
    sim.request(Request::Roll);
    assert!(!sim.service.has_requests());
    sim.pass_check(&[]);
    sim.adopt(vec![pool("web", 1), pool("jobs", 1)]);
    settle(&mut sim);
    assert_eq!((sim.alive(WEB), sim.alive(JOBS)), (vec![(0, 2)], vec![(0, 2)]));
}

#[test]
fn a_further_upgrade_begins_after_the_current_one() {
    let mut sim = upgraded(2, pool("", 2));
    sim.request(Request::Upgrade);
    assert!(!sim.is_checking && !sim.service.has_requests());
    settle(&mut sim);
    assert!(sim.logged("Upgrade done") && sim.is_checking, "{:#?}", sim.log);
    sim.pass_check(&[WEB]);
    sim.ready(WEB, 0, 2);
    assert!(sim.is_executing);
    sim.service.handle_request(sim.now, None, Request::Upgrade);
    sim.adopt(vec![pool("", 2)]);
    settle(&mut sim);
    assert!(sim.is_checking, "the request was handed over");
}

#[test]
fn a_stop_overtakes_the_rolling_restarts() {
    let mut sim = upgraded(2, pool("", 2));
    sim.request(Request::Stop);
    assert!(sim.logged("Upgrade aborted") && !sim.service.is_upgrading());
    sim.end_stopped(WEB);
    assert_eq!(sim.outcome().expect("no error"), Reason::Stopped);
}

#[test]
fn the_restart_budget_begins_afresh() {
    let limited = || PoolConfig { config: Config { max_restarts: Some(1), ..pool("", 2).config }, ..pool("", 2) };
    let mut sim = ServiceSim::new(vec![limited()]);
    sim.end(WEB, 1, 0, Exit::Signal(9));
    upgrade(&mut sim, &[WEB], vec![limited()]);
    sim.end(WEB, 1, 2, Exit::Signal(9));
    sim.end(WEB, 1, 1, Exit::Signal(9));
    assert!(!sim.service.is_stopping());
    assert_eq!(sim.service.reports()[WEB].restarts(), 2);
}

#[test]
fn deadlines_go_on_in_the_new_program() {
    let mut sim = ServiceSim::new(vec![pool("", 3)]);
    sim.request(Request::ScaleDown);
    sim.pass(10 * SECOND);
    upgrade(&mut sim, &[WEB], vec![pool("", 3)]);
    sim.pass(20 * SECOND - Duration::from_nanos(1));
    assert_eq!(sim.sent(WEB, 2, 0), [WorkerSignal::Stop]);
    sim.pass(Duration::from_nanos(1));
    assert_eq!(sim.sent(WEB, 2, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn a_long_window_extends_the_deadlines_once() {
    let mut sim = ServiceSim::new(vec![pool("", 2)]);
    sim.request(Request::ScaleDown);
    sim.request(Request::Upgrade);
    sim.pass_check(&[]);
    let snapshot = sim.service.snapshot(sim.now);
    let late = sim.now + 40 * SECOND;
    sim.service = Service::adopt(vec![pool("", 2)], UPGRADE, snapshot, 1, sim.now, late);
    sim.pools[WEB].adopt(false);
    sim.wake_at(late);
    assert_eq!(sim.sent(WEB, 1, 0), [WorkerSignal::Stop]);
    sim.pass(GRACEFUL);
    assert_eq!(sim.sent(WEB, 1, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn old_processes_keep_their_heartbeat_timeout() {
    let beating = |timeout| {
        let config = Config { heartbeat_timeout: timeout, max_surge: 1, ..pool("", 2).config };
        PoolConfig { config, ..pool("", 2) }
    };
    let mut silent = ServiceSim::new(vec![beating(None)]);
    upgrade(&mut silent, &[], vec![beating(Some(2 * SECOND))]);
    silent.end(WEB, 0, 1, Exit::Code(1));
    silent.pass(20 * SECOND);
    assert_eq!(silent.sent(WEB, 0, 0), [], "the old program sends no heartbeats");
    let mut sim = ServiceSim::new(vec![beating(Some(4 * SECOND))]);
    upgrade(&mut sim, &[], vec![beating(None)]);
    sim.end(WEB, 0, 1, Exit::Code(1));
    sim.pass(9 * SECOND);
    assert!(sim.sent(WEB, 0, 0).contains(&WorkerSignal::Abort), "{:?}", sim.log);
}

#[test]
fn a_process_that_is_not_ready_yet_does_not_stop_the_service() {
    let config = || PoolConfig { config: Config { ready_timeout: Some(SECOND), ..pool("", 2).config }, ..pool("", 2) };
    let mut sim = ServiceSim::new(vec![config()]);
    sim.ready(WEB, 0, 0);
    upgrade(&mut sim, &[WEB], vec![config()]);
    sim.pass(SECOND);
    assert_eq!(sim.sent(WEB, 1, 0), [WorkerSignal::Kill]);
    sim.exit_killed();
    assert!(!sim.service.is_stopping());
    assert!(sim.alive(WEB).contains(&(1, 1)));
}

#[test]
fn a_stopped_pool_stays_stopped() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 1)]);
    sim.run(Input::StopPool(sim.process(JOBS, 0, 0)));
    upgrade(&mut sim, &[], vec![pool("web", 1), pool("jobs", 2)]);
    assert_eq!(sim.sent(JOBS, 0, 0), [WorkerSignal::Stop]);
    sim.end_stopped(JOBS);
    assert!(sim.ended[JOBS]);
    settle(&mut sim);
    upgrade(&mut sim, &[], vec![pool("web", 1), pool("jobs", 2)]);
    settle(&mut sim);
    assert!(sim.alive(JOBS).is_empty() && sim.logged("Upgrade done"));
}

#[test]
fn a_failed_optional_pool_is_started_again() {
    let fragile =
        || PoolConfig { config: Config { max_restarts: Some(0), ..pool("jobs", 1).config }, ..optional("jobs", 1) };
    let mut sim = ServiceSim::new(vec![pool("web", 1), fragile()]);
    sim.end(JOBS, 0, 0, Exit::Code(1));
    assert!(sim.ended[JOBS]);
    upgrade(&mut sim, &[], vec![pool("web", 1), fragile()]);
    settle(&mut sim);
    assert_eq!(sim.alive(JOBS), [(0, 1)]);
    assert!(sim.logged("Upgrade done"));
}

#[test]
fn the_new_program_stops_old_workers_one_after_another() {
    let stopping = |unavailable| {
        let config = Config { max_surge: 0, max_unavailable: unavailable, ..pool("", 3).config };
        PoolConfig { config, ..pool("", 3) }
    };
    let mut sim = ServiceSim::new(vec![stopping(1)]);
    upgrade(&mut sim, &[WEB; 0], vec![stopping(1)]);
    assert_eq!(sim.sent(WEB, 0, 0), [WorkerSignal::Stop]);
    assert_eq!(sim.sent(WEB, 1, 0), []);
    settle(&mut sim);
    assert_eq!(sim.alive(WEB), [(0, 1), (1, 1), (2, 1)]);
}

#[test]
fn failures_in_a_row_do_not_stop_an_upgraded_service() {
    let config = || {
        let config = Config { startup_failures: Some(2), restart_window: None, ..pool("", 2).config };
        PoolConfig { config, ..pool("", 2) }
    };
    let mut sim = ServiceSim::new(vec![config()]);
    upgrade(&mut sim, &[WEB], vec![config()]);
    for _ in 0..4 {
        let newest = sim.alive(WEB).into_iter().rfind(|key| key.0 == 1);
        if let Some((id, generation)) = newest {
            sim.end(WEB, id, generation, Exit::Code(1));
        }
        sim.pass(SECOND / 10);
    }
    assert!(!sim.service.is_stopping(), "{:?}", sim.log);
}

#[test]
fn an_exit_before_the_call_restarts_an_adopted_worker() {
    let mut sim = ServiceSim::new(vec![pool("", 2)]);
    sim.end(WEB, 1, 0, Exit::Code(1));
    sim.end(WEB, 1, 1, Exit::Code(1));
    assert_eq!(sim.alive(WEB), [(0, 0)], "worker 1 waits");
    upgrade(&mut sim, &[], vec![pool("", 2)]);
    let early = |process| ExitedProcess { reached_call: false, ..exited(process, Exit::Code(1)) };
    sim.end_with(WEB, 1, 2, early);
    assert!(!sim.service.is_stopping(), "{:?}", sim.log);
    sim.pass(SECOND);
    assert!(sim.alive(WEB).contains(&(1, 3)), "{:?}", sim.log);
}
