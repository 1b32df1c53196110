//! What the status shows.

use super::service_sim::UPGRADE;
use super::*;
use crate::status::{ServiceState, WorkerState};

/// Returns the id, the generation and the state of each entry.
fn states(sim: &Sim) -> Vec<(usize, u32, WorkerState)> {
    sim.policy.facts().map(|facts| (facts.id, facts.generation, facts.state)).collect()
}

fn fact(sim: &Sim, id: usize, generation: u32) -> WorkerFacts {
    let mut facts = sim.policy.facts();
    facts.find(|facts| (facts.id, facts.generation) == (id, generation)).expect("an entry")
}

fn with_readiness(workers: usize) -> Config {
    Config { ready_timeout: Some(60 * SECOND), ..config(workers) }
}

#[test]
fn a_process_starts_becomes_ready_and_stops() {
    let mut sim = Sim::new(with_readiness(1));
    let started = sim.now;
    assert_eq!(states(&sim), [(0, 0, WorkerState::Starting)]);
    assert_eq!((sim.policy.wanted(), sim.policy.ready()), (1, 0));
    assert_eq!(fact(&sim, 0, 0).ready_at, None);
    sim.pass(3 * SECOND);
    sim.ready(0, 0);
    let facts = fact(&sim, 0, 0);
    assert_eq!((facts.state, facts.since, facts.ready_at), (WorkerState::Ready, Some(started), Some(sim.now)));
    assert_eq!(sim.policy.ready(), 1);
    sim.pass(SECOND);
    sim.request(Request::Stop);
    assert_eq!(fact(&sim, 0, 0), WorkerFacts { state: WorkerState::Stopping, ..facts });
    assert_eq!((sim.policy.wanted(), sim.policy.ready()), (0, 0));
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(states(&sim), []);
}

#[test]
fn without_readiness_a_process_is_ready_at_its_start() {
    let sim = Sim::new(config(2));
    assert_eq!(states(&sim), [(0, 0, WorkerState::Ready), (1, 0, WorkerState::Ready)]);
    assert_eq!(fact(&sim, 1, 0).ready_at, Some(sim.now));
}

#[test]
fn a_worker_waits_during_its_backoff() {
    let mut sim = Sim::new(config(2));
    for generation in 0..2 {
        sim.end(0, generation, Exit::Code(3));
    }
    assert_eq!(states(&sim), [(0, 2, WorkerState::Waiting), (1, 0, WorkerState::Ready)]);
    assert_eq!((sim.policy.wanted(), sim.policy.ready(), sim.policy.restarts()), (2, 1, 1));
    let waiting = fact(&sim, 0, 2);
    assert_eq!((waiting.process, waiting.since, waiting.last_exit), (None, None, Some(Exit::Code(3))));
    sim.step();
    let facts = fact(&sim, 0, 2);
    assert_eq!((facts.state, facts.restarts, facts.last_exit), (WorkerState::Ready, 2, Some(Exit::Code(3))));
    assert_eq!(sim.policy.restarts(), 2);
}

#[test]
fn a_replaced_worker_has_two_entries() {
    let mut sim = Sim::new(with_readiness(1));
    sim.ready(0, 0);
    sim.request(Request::Roll);
    assert_eq!(states(&sim), [(0, 0, WorkerState::Ready), (0, 1, WorkerState::Starting)]);
    assert_eq!(sim.policy.ready(), 1);
    sim.ready(0, 1);
    assert_eq!(states(&sim), [(0, 0, WorkerState::Stopping), (0, 1, WorkerState::Ready)]);
}

#[test]
fn a_worker_with_max_surge_0_waits_for_its_old_process() {
    let mut sim = Sim::new(Config { max_surge: 0, max_unavailable: 1, ..config(1) });
    sim.request(Request::Roll);
    assert_eq!(states(&sim), [(0, 0, WorkerState::Stopping), (0, 1, WorkerState::Waiting)]);
    assert_eq!((sim.policy.wanted(), sim.policy.ready()), (1, 0));
}

#[test]
fn a_removed_worker_drains_and_disappears() {
    let mut sim = Sim::new(with_queues(2));
    sim.has_work = true;
    sim.request(Request::ScaleDown);
    assert_eq!(states(&sim), [(0, 0, WorkerState::Ready), (1, 0, WorkerState::Draining)]);
    assert_eq!((sim.policy.wanted(), sim.policy.ready()), (1, 1));
    sim.end(1, 0, Exit::Code(0));
    assert_eq!(states(&sim), [(0, 0, WorkerState::Ready)]);
}

#[test]
fn an_aborted_process_stops() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(2) });
    let started = sim.now;
    sim.pass(4 * SECOND);
    sim.policy.handle_beat(sim.now, 0, 0);
    assert_eq!(fact(&sim, 0, 0).last_beat, Some(sim.now));
    assert_eq!(fact(&sim, 1, 0).last_beat, Some(started));
    sim.pass(6 * SECOND);
    assert_eq!(states(&sim), [(0, 0, WorkerState::Ready), (1, 0, WorkerState::Stopping)]);
}

#[test]
fn workers_that_have_not_been_started_wait() {
    let now = some_time();
    let mut policy = Policy::new(config(3), 1, now);
    while let Some(Action::Emit(_)) = policy.poll_action() {}
    let states: Vec<_> = policy.facts().map(|facts| (facts.id, facts.state)).collect();
    assert_eq!(states, [0, 1, 2].map(|id| (id, WorkerState::Waiting)));
}

fn service(configs: Vec<Config>) -> Service {
    let pools = configs.into_iter().map(|config| PoolConfig { config, optional: false, removed: false });
    Service::new(pools.collect(), UPGRADE, 1, some_time())
}

/// Starts every process that the service asks for.
fn start_all(service: &mut Service, now: Instant) {
    const NAMES: [&str; 2] = ["web", "jobs"];
    while let Some((pool, action)) = service.poll_action() {
        if let Action::Start { id, generation } = action {
            service.handle_started(now, Process { pool: NAMES[pool], id, generation, pid: Some(71) });
        }
    }
}

#[test]
fn a_service_starts_until_all_pools_have_come_up() {
    let now = some_time();
    let web = Config { pool: "web", ..with_readiness(1) };
    let mut service = service(vec![web, Config { pool: "jobs", ..config(1) }]);
    assert_eq!(service.state(), ServiceState::Starting);
    start_all(&mut service, now);
    assert_eq!(service.state(), ServiceState::Starting, "worker 0 of web is not ready");
    let process = Process { pool: "web", id: 0, generation: 0, pid: Some(71) };
    service.handle_ready(now, process);
    start_all(&mut service, now);
    assert_eq!(service.state(), ServiceState::Running);
    service.handle_request(now, None, Request::ScaleUp);
    service.execute_requests(now);
    start_all(&mut service, now);
    assert_eq!(service.state(), ServiceState::Running, "an added worker does not count");
    service.handle_request(now, Some(1), Request::Roll);
    service.execute_requests(now);
    start_all(&mut service, now);
    assert_eq!(service.state(), ServiceState::RollingRestart);
    service.handle_request(now, None, Request::Stop);
    assert_eq!(service.state(), ServiceState::Stopping);
}

#[test]
fn a_removed_worker_does_not_keep_the_service_starting() {
    let now = some_time();
    let mut service = service(vec![Config { pool: "web", ..with_readiness(2) }]);
    start_all(&mut service, now);
    service.handle_ready(now, Process { pool: "web", id: 0, generation: 0, pid: Some(71) });
    assert_eq!(service.state(), ServiceState::Starting, "worker 1 is not ready");
    service.handle_request(now, None, Request::ScaleDown);
    service.execute_requests(now);
    start_all(&mut service, now);
    assert_eq!(service.state(), ServiceState::Running);
}
