//! Services with several pools: their stop and their end.

use super::service_sim::{Input, ServiceSim, optional, pool};
use super::*;
use crate::report::Report;

const WEB: usize = 0;
const JOBS: usize = 1;
const MAIL: usize = 2;

/// Returns a pool that gives up at the first failure of a worker.
fn fragile(pool: PoolConfig) -> PoolConfig {
    PoolConfig { config: Config { max_restarts: Some(0), ..pool.config }, ..pool }
}

fn with_graceful_timeout(pool: PoolConfig, graceful_timeout: Duration) -> PoolConfig {
    PoolConfig { config: Config { graceful_timeout, ..pool.config }, ..pool }
}

fn with_ready_timeout(pool: PoolConfig) -> PoolConfig {
    PoolConfig { config: Config { ready_timeout: Some(SECOND), ..pool.config }, ..pool }
}

fn web_and_jobs() -> ServiceSim {
    ServiceSim::new(vec![pool("web", 2), pool("jobs", 1)])
}

/// Returns a service in which the pool `jobs` has finished.
fn with_finished_jobs() -> ServiceSim {
    let mut sim = web_and_jobs();
    sim.end(JOBS, 0, 0, Exit::Code(0));
    sim
}

fn end_all_stopped(sim: &mut ServiceSim) {
    (0..sim.pools.len()).for_each(|pool| sim.end_stopped(pool));
}

#[test]
fn a_stop_asks_all_pools() {
    let mut sim = web_and_jobs();
    sim.take_log("");
    sim.request(Request::Stop);
    assert_eq!(sim.log, ["web: Stopping 2 processes", "jobs: Stopping 1 processes"]);
    assert!(sim.service.is_stopping() && sim.service.is_closed(WEB) && sim.service.is_closed(JOBS));
    end_all_stopped(&mut sim);
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
    assert_eq!(sim.reasons(), [Reason::Stopped, Reason::Stopped]);
}

#[test]
fn each_pool_has_its_own_graceful_timeout() {
    let mut sim =
        ServiceSim::new(vec![pool("web", 1), with_graceful_timeout(pool("jobs", 1), 5 * SECOND), pool("mail", 1)]);
    sim.request(Request::Stop);
    sim.pass(5 * SECOND);
    assert_eq!(sim.sent(JOBS, 0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    assert_eq!(sim.sent(WEB, 0, 0), [WorkerSignal::Stop]);
    sim.pass(GRACEFUL - 5 * SECOND);
    assert_eq!(sim.sent(WEB, 0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    assert_eq!(sim.sent(MAIL, 0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn a_pause_extends_the_deadlines_of_all_pools() {
    let mut sim = web_and_jobs();
    sim.request(Request::Stop);
    sim.now += Duration::from_nanos(1);
    sim.run(Input::Interruption);
    sim.wake_at(sim.now + GRACEFUL);
    assert_eq!(sim.sent(WEB, 0, 0), [WorkerSignal::Stop]);
    assert_eq!(sim.sent(JOBS, 0, 0), [WorkerSignal::Stop]);
}

#[test]
fn a_second_stop_kills_all_pools() {
    let mut sim = web_and_jobs();
    sim.run(Input::StopPool(sim.process(JOBS, 0, 0)));
    sim.request(Request::Stop);
    assert_eq!(sim.sent(JOBS, 0, 0), [WorkerSignal::Stop], "the first stop of an operator kills no pool");
    sim.request(Request::Stop);
    assert_eq!(sim.sent(WEB, 1, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    assert_eq!(sim.sent(JOBS, 0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn a_quick_stop_reaches_all_pools() {
    let mut sim = web_and_jobs();
    sim.request(Request::QuickStop);
    assert_eq!(sim.sent(WEB, 0, 0), [WorkerSignal::QuickStop]);
    assert_eq!(sim.sent(JOBS, 0, 0), [WorkerSignal::QuickStop]);
}

#[test]
fn a_stop_comes_before_the_first_starts_of_all_pools() {
    let mut sim = ServiceSim::before_start(vec![pool("web", 2), pool("jobs", 2)], 1);
    sim.actions_per_event = 3;
    sim.run_actions();
    assert_eq!(sim.log, ["web: Starting 2 processes", "jobs: Starting 2 processes"]);
    assert_eq!((sim.alive(WEB), sim.alive(JOBS)), (vec![(0, 0)], vec![]));
    sim.actions_per_event = usize::MAX;
    sim.request(Request::Stop);
    assert_eq!((sim.alive(WEB), sim.alive(JOBS)), (vec![(0, 0)], vec![]));
    sim.end_stopped(WEB);
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
}

#[test]
fn the_program_stops_the_service_once() {
    let mut sim = web_and_jobs();
    sim.run(Input::ProgramStop { to: None });
    sim.run(Input::ProgramStop { to: None });
    assert_eq!(sim.sent(JOBS, 0, 0), [WorkerSignal::Stop]);
    end_all_stopped(&mut sim);
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
}

#[test]
fn a_worker_stops_all_pools() {
    let mut sim = web_and_jobs();
    let process = sim.process(JOBS, 0, 0);
    sim.run(Input::StopAll(process));
    sim.run(Input::StopAll(sim.process(WEB, 0, 0)));
    end_all_stopped(&mut sim);
    let reason = Reason::StoppedByWorker { process };
    assert_eq!(sim.outcome().expect("an outcome"), reason, "the first reason counts");
    assert_eq!(sim.reasons(), [reason.clone(), reason]);
}

#[test]
fn a_worker_stops_only_its_pool() {
    let mut sim = web_and_jobs();
    let process = sim.process(JOBS, 0, 0);
    sim.run(Input::StopPool(process));
    assert_eq!(sim.sent(JOBS, 0, 0), [WorkerSignal::Stop]);
    assert!(sim.sent(WEB, 0, 0).is_empty());
    assert!(sim.service.is_closed(JOBS) && !sim.service.is_closed(WEB) && !sim.service.is_stopping());
    sim.take_log("");
    sim.end_stopped(JOBS);
    let end = format!("jobs: The pool has ended: stopped, as {process} requested");
    assert_eq!(sim.log, [format!("{process} exited normally"), end]);
    assert!(sim.service.poll_end().is_none());
    sim.request(Request::Stop);
    sim.end_stopped(WEB);
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
    assert_eq!(sim.reasons(), [Reason::Stopped, Reason::StoppedByWorker { process }]);
}

#[test]
fn the_program_stops_one_pool_without_killing_it() {
    let mut sim = web_and_jobs();
    for request in [Request::Stop, Request::QuickStop] {
        sim.run(Input::ProgramStop { to: Some(WEB) });
        sim.request_in(WEB, request);
    }
    assert_eq!(sim.sent(WEB, 0, 0), [WorkerSignal::Stop]);
    assert!(sim.sent(JOBS, 0, 0).is_empty());
    sim.end_stopped(WEB);
    sim.run(Input::ProgramStop { to: Some(WEB) });
    assert!(!sim.logged("no effect"), "the pool has stopped, as requested");
    assert_eq!(sim.reasons()[WEB], Reason::Stopped);
}

#[test]
fn a_service_finishes_after_the_stop_of_each_pool() {
    let mut sim = web_and_jobs();
    for pool in [JOBS, WEB] {
        assert!(!sim.service.is_stopping());
        sim.run(Input::StopPool(sim.process(pool, 0, 0)));
        sim.end_stopped(pool);
    }
    assert!(sim.service.is_stopping());
    assert!(matches!(sim.outcome(), Ok(Reason::Finished)));
}

#[test]
fn a_stop_during_the_stop_of_the_last_pool_is_the_reason() {
    let mut sim = with_finished_jobs();
    let process = sim.process(WEB, 0, 0);
    sim.run(Input::StopPool(process));
    sim.request(Request::Stop);
    sim.end_stopped(WEB);
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
    assert_eq!(sim.reasons(), [Reason::StoppedByWorker { process }, Reason::Finished]);
}

#[test]
fn a_pool_that_gives_up_stops_the_others() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), fragile(pool("jobs", 2)), optional("mail", 1)]);
    let process = sim.process(JOBS, 1, 0);
    sim.take_log("");
    sim.end(JOBS, 1, 0, Exit::Code(1));
    let exit = format!("{process} exited with status 1");
    let lines = ["jobs: Too many", "jobs: Stopping 1", "web: Stopping 1", "mail: Stopping 1"];
    assert_eq!(sim.log.len(), 1 + lines.len());
    assert_eq!(sim.log[0], exit);
    assert!(lines.iter().zip(&sim.log[1..]).all(|(line, logged)| logged.starts_with(line)), "{:?}", sim.log);
    sim.request(Request::Stop);
    end_all_stopped(&mut sim);
    let reason = Reason::RestartLimitReached { process, exit: Exit::Code(1), restarts: 0 };
    assert_eq!(sim.outcome().expect("an outcome"), reason);
    assert_eq!(sim.reasons(), [reason.clone(), reason.clone(), reason]);
    let ended = sim.take_log("The pool has ended");
    let with_other_cause = |line: &&String| line.contains("ended, because the service stops: gave up");
    assert_eq!(ended.iter().filter(with_other_cause).count(), 2, "{ended:?}");
    assert_eq!(
        ended.iter().filter(|line| line.starts_with("jobs: The pool has ended: gave up")).count(),
        1,
        "{ended:?}"
    );
}

#[test]
fn a_pool_that_cannot_start_stops_the_others() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), with_ready_timeout(pool("jobs", 1))]);
    sim.pass(SECOND);
    assert_eq!(sim.sent(WEB, 0, 0), [WorkerSignal::Stop]);
    end_all_stopped(&mut sim);
    assert!(matches!(sim.outcome(), Ok(Reason::StartupFailed { process, .. }) if process.pool == "jobs"));
}

#[test]
fn a_refused_first_start_ends_the_service_with_its_error() {
    for refusing in [WEB, JOBS] {
        let mut sim = ServiceSim::before_start(vec![pool("web", 1), pool("jobs", 1), optional("mail", 1)], 1);
        sim.pools[refusing].refuses_starts = true;
        sim.run_actions();
        assert!(sim.alive(MAIL).is_empty(), "the starts that were left are cancelled");
        end_all_stopped(&mut sim);
        assert!(sim.outcome().is_err());
        let reason = Reason::StartRefused { pool: ["web", "jobs"][refusing], id: 0 };
        assert_eq!(sim.reasons(), [reason.clone(), reason.clone(), reason]);
    }
}

#[test]
fn a_refused_later_start_is_tried_again() {
    let mut sim = web_and_jobs();
    sim.pools[JOBS].refuses_starts = true;
    sim.end(JOBS, 0, 0, Exit::Code(1));
    assert!(sim.logged("trying again"));
    sim.pools[JOBS].refuses_starts = false;
    sim.pass(SECOND);
    assert_eq!(sim.alive(JOBS), [(0, 1)]);
}

#[test]
fn the_end_of_an_optional_pool_ends_no_other() {
    let refusing = {
        let mut sim = ServiceSim::before_start(vec![pool("web", 2), optional("jobs", 1)], 1);
        sim.pools[JOBS].refuses_starts = true;
        sim.run_actions();
        assert!(sim.logged("fork"), "the log contains the error, because the call does not return it");
        sim
    };
    let mut late = ServiceSim::new(vec![pool("web", 2), with_ready_timeout(optional("jobs", 1))]);
    late.pass(SECOND);
    late.end_stopped(JOBS);
    let mut given_up = ServiceSim::new(vec![pool("web", 2), fragile(optional("jobs", 1))]);
    given_up.end(JOBS, 0, 0, Exit::Code(1));
    for (reason, mut sim) in [("failed to start", refusing), ("failed to start", late), ("gave up", given_up)] {
        assert_eq!(sim.take_log(&format!("jobs: The pool has ended: {reason}")).len(), 1);
        assert!(sim.service.is_closed(JOBS) && !sim.service.is_stopping());
        assert!(sim.sent(WEB, 0, 0).is_empty());
        assert_eq!(sim.service.up(), Some(2));
        sim.end(WEB, 0, 0, Exit::Code(1));
        sim.pass(SECOND);
        assert_eq!(sim.alive(WEB), [(0, 1), (1, 0)], "the other pool is supervised");
        sim.request(Request::Stop);
        sim.end_stopped(WEB);
        assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
        let reports = sim.service.reports();
        assert!(!reports[JOBS].is_success());
        assert!(Report::new(Reason::Stopped, reports).is_success());
    }
}

#[test]
fn the_only_pool_is_never_optional() {
    let mut sim = ServiceSim::new(vec![fragile(optional("", 2))]);
    sim.end(0, 0, 0, Exit::Code(1));
    sim.end_stopped(0);
    assert!(matches!(sim.outcome(), Ok(Reason::RestartLimitReached { .. })));
    let mut sim = ServiceSim::before_start(vec![optional("", 1)], 1);
    sim.pools[0].refuses_starts = true;
    sim.run_actions();
    assert!(sim.outcome().is_err());
    assert!(!sim.logged("The pool has ended"));
    assert_eq!(sim.reasons(), [Reason::StartRefused { pool: "", id: 0 }]);
}

#[test]
fn a_single_pool_keeps_its_reason_for_the_end() {
    let mut sim = ServiceSim::new(vec![pool("", 1)]);
    let process = sim.process(0, 0, 0);
    sim.run(Input::StopPool(process));
    sim.run(Input::ProgramStop { to: Some(0) });
    sim.end_stopped(0);
    let reason = Reason::StoppedByWorker { process };
    assert_eq!(sim.outcome().expect("an outcome"), reason);
    assert_eq!(sim.reasons(), [reason]);
}

#[test]
fn a_service_finishes_with_its_last_pool() {
    let mut sim = with_finished_jobs();
    assert_eq!(sim.log.last().expect("a line"), "jobs: The pool has ended: finished");
    assert!(sim.service.is_closed(JOBS));
    sim.end(WEB, 0, 0, Exit::Code(0));
    assert!(!sim.service.is_closed(WEB));
    sim.end(WEB, 1, 0, Exit::Code(0));
    assert!(matches!(sim.outcome(), Ok(Reason::Finished)));
    assert_eq!(sim.reasons(), [Reason::Finished, Reason::Finished]);
}

#[test]
fn a_service_does_not_end_before_its_events() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), pool("jobs", 1)]);
    for pool in [WEB, JOBS] {
        sim.tell(Input::Exited(exited(sim.process(pool, 0, 0), Exit::Code(0))));
    }
    let mut ends = 0;
    while sim.service.poll_end().is_none() {
        let (_, action) = sim.service.poll_action().expect("an action before the end");
        ends += usize::from(matches!(action, Action::Emit(Event::PoolEnded { .. })));
    }
    assert_eq!(ends, 2);
}

#[test]
fn a_stop_after_the_last_exit_is_not_the_reason() {
    let mut sim = with_finished_jobs();
    sim.end(WEB, 0, 0, Exit::Code(0));
    let process = sim.pools[WEB].exit(sim.now, 1, 0);
    sim.tell(Input::Exited(exited(process, Exit::Code(0))));
    sim.tell(Input::Request { to: None, request: Request::Stop });
    assert!(sim.service.poll_end().is_none(), "the last events come first");
    sim.run_actions();
    assert!(!sim.logged("Stopping"));
    assert!(matches!(sim.outcome(), Ok(Reason::Finished)));
}

#[test]
fn a_stop_drops_the_requests_of_finished_pools() {
    let mut sim = web_and_jobs();
    sim.tell(Input::Request { to: Some(JOBS), request: Request::ScaleUp });
    let process = sim.pools[JOBS].exit(sim.now, 0, 0);
    sim.tell(Input::Exited(exited(process, Exit::Code(0))));
    sim.request(Request::Stop);
    assert!(sim.ended[JOBS] && !sim.service.has_requests());
}

#[test]
fn a_finished_pool_is_not_stopped() {
    let mut sim = with_finished_jobs();
    sim.run(Input::ProgramStop { to: Some(JOBS) });
    assert!(!sim.logged("Stopping"));
    assert_eq!(sim.alive(WEB).len(), 2);
}

#[test]
fn a_stop_does_not_stop_a_pool_without_processes() {
    let mut sim = web_and_jobs();
    sim.tell(Input::Request { to: Some(JOBS), request: Request::ScaleUp });
    let process = sim.pools[JOBS].exit(sim.now, 0, 0);
    sim.tell(Input::Exited(exited(process, Exit::Code(0))));
    sim.request(Request::Stop);
    assert!(!sim.logged("jobs: Stopping"));
    assert!(!sim.service.has_requests());
    sim.end_stopped(WEB);
    assert_eq!(sim.reasons(), [Reason::Stopped, Reason::Finished]);
}

#[test]
fn a_finished_pool_is_idle() {
    let beating =
        PoolConfig { config: Config { heartbeat_timeout: Some(SECOND), ..pool("jobs", 1).config }, ..pool("", 1) };
    let mut sim = ServiceSim::new(vec![pool("web", 1), beating]);
    assert_eq!(sim.service.next_deadline(), Some(sim.now + SECOND));
    sim.end(JOBS, 0, 0, Exit::Code(0));
    assert_eq!(sim.service.next_deadline(), None);
    sim.wake_at(sim.now + 2 * SECOND);
    assert_eq!(sim.service.next_deadline(), None);
}

#[test]
fn all_pools_have_to_be_up() {
    let mut sim = ServiceSim::new(vec![pool("web", 2), with_ready_timeout(pool("jobs", 1)), optional("mail", 3)]);
    assert_eq!(sim.service.up(), None);
    sim.ready(JOBS, 0, 0);
    assert_eq!(sim.service.up(), Some(6));
    sim.run(Input::StopPool(sim.process(MAIL, 0, 0)));
    assert_eq!(sim.service.up(), Some(3), "an optional pool that stops does not count");
    sim.run(Input::StopPool(sim.process(JOBS, 0, 0)));
    assert_eq!(sim.service.up(), None, "another pool is stopping");
    sim.end_stopped(JOBS);
    assert_eq!(sim.service.up(), Some(2), "a pool that has ended does not count");
    sim.request(Request::Stop);
    assert_eq!(sim.service.up(), None);
}

#[test]
fn a_service_that_stops_is_not_up() {
    let mut sim = ServiceSim::new(vec![pool("web", 1), optional("jobs", 1)]);
    sim.end(WEB, 0, 0, Exit::Code(0));
    assert_eq!(sim.service.up(), Some(1));
    sim.request(Request::Stop);
    assert_eq!(sim.service.up(), None);
}

#[test]
fn processes_belong_to_the_pool_that_they_name() {
    let sim = web_and_jobs();
    assert_eq!(sim.service.index_of(sim.process(WEB, 0, 0)), Some(WEB));
    assert_eq!(sim.service.index_of(sim.process(JOBS, 0, 0)), Some(JOBS));
    assert_eq!(sim.service.index_of(Process { pool: "mail", ..sim.process(WEB, 0, 0) }), None);
}

#[test]
fn messages_reach_the_process_of_their_pool() {
    let ready = |name| with_ready_timeout(pool(name, 1));
    let mut sim = ServiceSim::new(vec![ready("web"), ready("jobs")]);
    sim.ready(JOBS, 0, 0);
    sim.ready(WEB, 0, 0);
    sim.run(Input::Retire(sim.process(JOBS, 0, 0)));
    let due = sim.service.next_deadline().expect("the replacement is due");
    sim.wake_at(due);
    assert_eq!((sim.alive(WEB), sim.alive(JOBS)), (vec![(0, 0)], vec![(0, 0), (0, 1)]));
    sim.end(JOBS, 0, 1, Exit::Code(1));
    assert!(sim.logged("jobs: The replacement of worker 0 failed"));
}
