//! Requests to services with several pools, and the rolling restarts of these services.

use super::service_sim::{Input, ServiceSim, optional, pool};
use super::*;

const WEB: usize = 0;
const JOBS: usize = 1;
const MAIL: usize = 2;

fn three_pools() -> ServiceSim {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 2), optional("mail", 1)]);
    sim.log.clear();
    sim
}

/// Lets the rolling restart of this pool go on until its end, if one is in progress.
fn finish_roll(sim: &mut ServiceSim, pool: usize) {
    while sim.pools[pool].rolling {
        sim.pass(SECOND);
        sim.end_stopped(pool);
        if !sim.pools[pool].rolling || sim.pools.iter().filter(|pool| pool.rolling).count() > 1 {
            break;
        }
    }
}

fn pools_rolling(sim: &ServiceSim) -> Vec<usize> {
    (0..sim.pools.len()).filter(|&pool| sim.pools[pool].rolling).collect()
}

#[test]
fn pools_roll_one_after_another() {
    let mut sim = three_pools();
    sim.request(Request::Roll);
    for pool in [WEB, JOBS, MAIL] {
        assert_eq!(pools_rolling(&sim), [pool]);
        assert!(sim.service.is_rolling());
        finish_roll(&mut sim, pool);
    }
    assert!(pools_rolling(&sim).is_empty() && !sim.service.is_rolling());
    let lines = ["web", "jobs", "mail"]
        .map(|name| [format!("{name}: Rolling restart"), format!("{name}: Rolling restart done")]);
    assert_eq!(sim.take_log("Rolling"), lines.concat());
    assert_eq!((sim.alive(WEB), sim.alive(JOBS), sim.alive(MAIL)), (vec![(0, 1)], vec![(0, 1), (1, 1)], vec![(0, 1)]));
    assert!(!sim.service.has_requests());
}

#[test]
fn a_failed_roll_goes_on_with_the_next_pool() {
    let mut sim = three_pools();
    sim.request(Request::Roll);
    sim.end(WEB, 0, 1, Exit::Code(1));
    assert!(sim.logged("web: Rolling restart aborted"));
    assert_eq!(pools_rolling(&sim), [JOBS]);
    finish_roll(&mut sim, JOBS);
    sim.pools[MAIL].refuses_starts = true;
    sim.end_stopped(JOBS);
    assert_eq!(pools_rolling(&sim), [MAIL]);
    sim.end(MAIL, 0, 1, Exit::Code(1));
    assert!(!sim.service.is_rolling());
}

/// Executes one action after the other. Returns the lines about rolling restarts, each with the answer of `is_rolling`
/// at this moment.
fn poll_rolls(sim: &mut ServiceSim) -> Vec<(String, bool)> {
    let mut lines = Vec::new();
    sim.actions_per_event = 1;
    for _ in 0..100 {
        let before = sim.log.len();
        sim.run_actions();
        let new = sim.log[before..].iter().filter(|line| line.contains("Rolling") || line.contains("Stopping"));
        lines.extend(new.map(|line| (line.clone(), sim.service.is_rolling())));
    }
    sim.actions_per_event = usize::MAX;
    lines
}

fn line(line: &str, is_rolling: bool) -> (String, bool) {
    (line.to_owned(), is_rolling)
}

#[test]
fn is_rolling_is_exact_at_each_event() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 1)]);
    sim.log.clear();
    sim.tell(Input::Request { to: None, request: Request::Roll });
    assert!(!sim.service.is_rolling());
    assert_eq!(poll_rolls(&mut sim), [line("web: Rolling restart", true)]);
    sim.pass(SECOND);
    sim.actions_per_event = 0;
    sim.end_stopped(WEB);
    assert_eq!(poll_rolls(&mut sim), [line("web: Rolling restart done", true), line("jobs: Rolling restart", true)]);
    sim.request(Request::Roll);
    assert_eq!(poll_rolls(&mut sim), []);
    sim.pass(SECOND);
    sim.actions_per_event = 0;
    sim.end_stopped(JOBS);
    assert_eq!(poll_rolls(&mut sim), [line("jobs: Rolling restart done", false), line("web: Rolling restart", true)]);
}

#[test]
fn a_request_during_a_rolling_restart_repeats_it() {
    let mut sim = three_pools();
    sim.request(Request::Roll);
    finish_roll(&mut sim, WEB);
    sim.request(Request::Roll);
    sim.request(Request::Roll);
    assert_eq!(pools_rolling(&sim), [JOBS]);
    for pool in [JOBS, MAIL, WEB, JOBS, MAIL] {
        assert_eq!(pools_rolling(&sim), [pool]);
        finish_roll(&mut sim, pool);
    }
    assert!(!sim.service.is_rolling() && !sim.service.has_requests());
    assert_eq!((sim.alive(WEB), sim.alive(MAIL)), (vec![(0, 2)], vec![(0, 2)]));
}

#[test]
fn a_request_for_one_pool_rolls_only_this_pool() {
    let mut sim = three_pools();
    sim.request_in(JOBS, Request::Roll);
    assert_eq!(pools_rolling(&sim), [JOBS]);
    assert!(sim.service.is_rolling());
    finish_roll(&mut sim, JOBS);
    assert!(!sim.service.is_rolling());
    assert_eq!((sim.alive(WEB), sim.alive(MAIL)), (vec![(0, 0)], vec![(0, 0)]));
}

#[test]
fn a_rolling_restart_waits_for_that_of_a_single_pool() {
    let mut sim = three_pools();
    sim.request_in(WEB, Request::Roll);
    sim.request(Request::Roll);
    sim.pass(SECOND);
    sim.end_stopped(WEB);
    assert_eq!(pools_rolling(&sim), [WEB], "the pool rolls again, because the request came later");
    sim.pass(SECOND);
    sim.end_stopped(WEB);
    assert_eq!(pools_rolling(&sim), [JOBS]);
    assert_eq!(sim.alive(WEB), [(0, 2)]);
}

#[test]
fn a_pool_that_stops_loses_its_turn() {
    let mut sim = three_pools();
    sim.request(Request::Roll);
    sim.run(Input::StopPool(sim.process(WEB, 0, 0)));
    assert_eq!(pools_rolling(&sim), [JOBS], "the rolling restart does not wait for the end of the stop");
    sim.run(Input::StopPool(sim.process(MAIL, 0, 0)));
    assert!(sim.service.is_rolling());
    finish_roll(&mut sim, JOBS);
    assert!(!sim.service.is_rolling());
    sim.request(Request::Roll);
    assert_eq!(pools_rolling(&sim), [JOBS]);
}

#[test]
fn a_rolling_restart_begins_with_the_first_open_pool() {
    let mut sim = three_pools();
    sim.end(WEB, 0, 0, Exit::Code(0));
    sim.request(Request::Roll);
    for pool in [JOBS, MAIL] {
        assert_eq!(pools_rolling(&sim), [pool]);
        finish_roll(&mut sim, pool);
    }
    assert!(!sim.service.has_requests() && !sim.service.is_rolling());
}

#[test]
fn a_stop_of_the_last_pool_in_turn_ends_the_rolling_restart() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 1)]);
    sim.request(Request::Roll);
    finish_roll(&mut sim, WEB);
    sim.tell(Input::StopPool(sim.process(JOBS, 0, 0)));
    assert_eq!(poll_rolls(&mut sim), [line("jobs: Stopping 2 processes, as jobs child 0 (pid 1) requested", false)]);
    assert!(!sim.service.is_stopping());
}

#[test]
fn a_stop_of_the_service_ends_its_rolling_restart() {
    let mut sim = three_pools();
    sim.request(Request::Roll);
    sim.request(Request::Stop);
    assert!(!sim.service.is_rolling() && !sim.service.has_requests());
    sim.request(Request::Roll);
    assert!(!sim.service.has_requests());
}

#[test]
fn other_requests_concern_the_first_pool() {
    let mut sim = three_pools();
    sim.request(Request::ScaleUp);
    assert_eq!((sim.alive(WEB).len(), sim.alive(JOBS).len()), (2, 2));
    sim.request(Request::ScaleDown);
    sim.end_stopped(WEB);
    sim.request(Request::Scale(3));
    assert_eq!((sim.alive(WEB).len(), sim.alive(JOBS).len()), (3, 2));
    sim.request(Request::Replace(0));
    assert_eq!((sim.alive(WEB).len(), sim.alive(JOBS).len()), (4, 2));
}

#[test]
fn requests_for_a_pool_concern_only_this_pool() {
    let mut sim = three_pools();
    sim.request_in(JOBS, Request::Scale(3));
    sim.request_in(MAIL, Request::Replace(0));
    assert_eq!((sim.alive(WEB).len(), sim.alive(JOBS).len(), sim.alive(MAIL).len()), (1, 3, 2));
    sim.run(Input::LimitWorkers { pool: JOBS, processes: 4 });
    sim.request_in(JOBS, Request::Scale(9));
    sim.request(Request::Scale(9));
    assert_eq!((sim.alive(WEB).len(), sim.alive(JOBS).len()), (9, 4));
}

#[test]
fn reopen_reaches_all_pools() {
    let mut sim = three_pools();
    sim.request(Request::Reopen);
    assert!([WEB, JOBS, MAIL].iter().all(|&pool| sim.sent(pool, 0, 0) == [WorkerSignal::Reopen]));
}

#[test]
fn requests_without_effect_are_reported_once_a_second() {
    let mut sim = three_pools();
    sim.end(WEB, 0, 0, Exit::Code(0));
    sim.run(Input::StopPool(sim.process(MAIL, 0, 0)));
    let report = |name, problem| format!("A request has no effect: it is for the pool {name:?}, which {problem}");
    let requests = [Request::ScaleUp, Request::ScaleDown];
    requests.into_iter().for_each(|request| sim.request(request));
    assert_eq!(sim.take_log("no effect"), [report("web", "is stopping or has ended")]);
    sim.now += SECOND;
    requests.into_iter().for_each(|request| sim.tell(Input::Request { to: Some(WEB), request }));
    sim.request_in(MAIL, Request::Roll);
    assert_eq!(
        sim.take_log("no effect"),
        [report("web", "is stopping or has ended"), report("mail", "is stopping or has ended")]
    );
    for name in ["cron", "cron", "other"] {
        sim.service.handle_ignored(name.to_owned());
        assert!(sim.service.has_requests());
    }
    sim.run_actions();
    assert_eq!(
        sim.take_log("no effect"),
        [report("cron", "does not exist")],
        "only the first unknown name is reported"
    );
    assert!(!sim.service.has_requests());
    sim.service.handle_ignored("cron".to_owned());
    sim.run_actions();
    assert!(sim.take_log("no effect").is_empty());
    sim.now += SECOND;
    sim.service.handle_ignored("cron".to_owned());
    sim.run_actions();
    assert_eq!(sim.take_log("no effect").len(), 1);
    assert_eq!((sim.alive(WEB).len(), sim.alive(JOBS).len()), (0, 2));
}

#[test]
fn a_stop_reports_no_ignored_requests() {
    let mut sim = three_pools();
    sim.end(WEB, 0, 0, Exit::Code(0));
    sim.tell(Input::Request { to: None, request: Request::ScaleUp });
    sim.service.handle_ignored("cron".to_owned());
    sim.request(Request::Stop);
    sim.request(Request::ScaleUp);
    sim.request_in(JOBS, Request::ScaleUp);
    sim.service.handle_ignored("cron".to_owned());
    sim.run_actions();
    assert!(!sim.logged("no effect") && !sim.service.has_requests());
}

#[test]
fn a_request_before_the_last_exit_keeps_a_pool() {
    let mut sim = three_pools();
    sim.tell(Input::Request { to: None, request: Request::ScaleUp });
    sim.actions_per_event = 0;
    sim.end(WEB, 0, 0, Exit::Code(0));
    sim.actions_per_event = usize::MAX;
    sim.run_actions();
    sim.run_actions();
    assert_eq!(sim.alive(WEB), [(0, 1)]);
    assert!(!sim.logged("ended"));
}
