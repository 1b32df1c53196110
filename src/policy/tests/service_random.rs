//! Simulations of services with several pools, with random settings and random events. They check the invariants of
//! each pool and those of [`ServiceSim`].

use std::panic::{self, AssertUnwindSafe};

use rand::RngExt;

use super::random::random_config;
use super::service_sim::{Input, ServiceSim};
use super::*;

const NAMES: [&str; 3] = ["web", "jobs", "mail"];

fn random_pool(rng: &mut SmallRng, name: &'static str) -> PoolConfig {
    let graceful_timeout = [GRACEFUL, 5 * SECOND, SECOND][rng.random_range(0..3)];
    let config = Config { pool: name, graceful_timeout, ..random_config(rng) };
    PoolConfig { config, optional: rng.random_bool(0.5), removed: false }
}

/// Simulates one service with random settings and random events, until it ends.
fn script(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let pools = NAMES[..rng.random_range(2..=3)].iter().map(|name| random_pool(&mut rng, name)).collect();
    let mut sim = ServiceSim::before_start(pools, seed);
    run_script(&mut sim, &mut rng, true);
}

/// Simulates a service with one pool, and a policy that is used alone, and checks that both do the same.
fn script_with_twin(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let pool = random_pool(&mut rng, "");
    let mut sim = ServiceSim::with_twin(pool, seed);
    run_script(&mut sim, &mut rng, false);
}

fn run_script(sim: &mut ServiceSim, rng: &mut SmallRng, with_unknown: bool) {
    let refusing = rng.random_range(0..20);
    if let Some(observed) = sim.pools.get_mut(refusing) {
        observed.refuses_starts = true;
    }
    if rng.random_bool(0.3) {
        disturb_startup(sim, rng);
    }
    sim.run_actions();
    if rng.random_bool(0.5) {
        sim.actions_per_event = rng.random_range(0..4);
    }
    let is_calm = rng.random_bool(0.5);
    for _ in 0..rng.random_range(1..60) {
        // The check compares the text of whole policies, which takes long.
        sim.checks_isolation = rng.random_bool(0.1);
        let pool = rng.random_range(0..sim.pools.len());
        if rng.random_bool(0.8) {
            random_event_in(sim, rng, pool, is_calm)
        } else {
            random_event(sim, rng, with_unknown)
        }
        sim.exit_killed();
    }
    sim.checks_isolation = false;
    finish_script(sim, rng, &[]);
}

/// Checks that the rolling restarts and the upgrade end, and that a stop ends the service. A further upgrade leads to a
/// program with the settings `upgraded`.
pub fn finish_script(sim: &mut ServiceSim, rng: &mut SmallRng, upgraded: &[PoolConfig]) {
    rolling_restarts_always_end(sim, upgraded);
    stop_always_ends(sim, rng);
}

/// Makes an event before all workers have been started.
fn disturb_startup(sim: &mut ServiceSim, rng: &mut SmallRng) {
    sim.actions_per_event = rng.random_range(0..12);
    sim.run_actions();
    let pool = rng.random_range(0..sim.pools.len());
    match (rng.random_range(0..4), sim.alive(pool).first()) {
        (0, _) => sim.tell(Input::Request { to: None, request: Request::Stop }),
        (1, Some(&(id, generation))) => sim.tell(Input::StopPool(sim.process(pool, id, generation))),
        (2, _) => sim.tell(Input::Request { to: None, request: Request::Roll }),
        (_, Some(&(id, generation))) => {
            let process = sim.pools[pool].exit(sim.now, id, generation);
            sim.tell(Input::Exited(random_exit(rng, process)));
        }
        (_, None) => sim.pools[pool].refuses_starts = true,
    }
    sim.actions_per_event = usize::MAX;
}

fn random_exit(rng: &mut SmallRng, process: Process) -> ExitedProcess {
    let exits = [Exit::Code(0), Exit::Code(1), Exit::Code(78), Exit::Signal(9), Exit::Signal(11)];
    let facts = exited(process, exits[rng.random_range(0..exits.len())]);
    match rng.random_range(0..100) {
        0..10 => ExitedProcess { reached_call: false, ..facts },
        10..20 => ExitedProcess { stop_noted: true, ..exited(process, Exit::Code(0)) },
        20 => ExitedProcess { nested_call: true, ..facts },
        _ => facts,
    }
}

/// Makes an event of one pool. In a calm service, almost no process exits before the policy has asked it to stop.
pub fn random_event_in(sim: &mut ServiceSim, rng: &mut SmallRng, pool: usize, is_calm: bool) {
    let living = sim.alive(pool);
    let someone = (!living.is_empty()).then(|| living[rng.random_range(0..living.len())]);
    match (rng.random_range(0..11), someone) {
        (0..3, Some((id, generation)))
            if is_calm && sim.sent(pool, id, generation).is_empty() && rng.random_bool(0.95) =>
        {
            sim.ready(pool, id, generation);
        }
        (0..3, Some((id, generation))) => {
            let process = sim.process(pool, id, generation);
            let facts = random_exit(rng, process);
            sim.end_with(pool, id, generation, |_| facts);
        }
        (3..6, Some((id, generation))) => sim.ready(pool, id, generation),
        (6, Some((id, generation))) => {
            let process = sim.process(pool, id, generation);
            let inputs = [Input::Retire(process), Input::Beat(process), Input::ReachedCall(process)];
            sim.run(inputs[rng.random_range(0..inputs.len())]);
        }
        (7, Some((id, generation))) if rng.random_bool(0.2) => {
            let process = sim.process(pool, id, generation);
            sim.run(if rng.random_bool(0.5) {
                Input::StopPool(process)
            } else {
                Input::ProgramStop { to: Some(pool) }
            });
        }
        (8, _) if rng.random_bool(0.5) => sim.pools[pool].refuses_starts = !sim.pools[pool].refuses_starts,
        (8, _) => sim.pools[pool].has_work = !sim.pools[pool].has_work,
        (9, Some(key)) if rng.random_bool(0.1) => sim.pools[pool].blocked.push(key),
        (9, _) if rng.random_bool(0.1) => sim.run(Input::LimitWorkers { pool, processes: rng.random_range(1..9) }),
        (9, _) => {
            if let Some(process) = sim.pools[pool].abandoned.pop() {
                sim.run(Input::AbandonedExited(process));
            }
        }
        _ => {
            let request = random_request(rng);
            sim.request_in(pool, request);
        }
    }
}

fn random_request(rng: &mut SmallRng) -> Request {
    let numbered = [Request::Scale(rng.random_range(0..12)), Request::Replace(rng.random_range(0..12))];
    let requests = [Request::Roll, Request::ScaleUp, Request::ScaleDown, Request::Reopen, numbered[0], numbered[1]];
    requests[rng.random_range(0..requests.len())]
}

/// Makes an event of the service, or lets time pass.
pub fn random_event(sim: &mut ServiceSim, rng: &mut SmallRng, with_unknown: bool) {
    match rng.random_range(0..12) {
        0..3 => sim.request(Request::Roll),
        3..5 => {
            let request = random_request(rng);
            sim.request(request);
        }
        5 if with_unknown => {
            sim.service.handle_ignored("unknown".to_owned());
            sim.run_actions();
        }
        6 if rng.random_bool(0.1) => sim.request([Request::Stop, Request::QuickStop][rng.random_range(0..2)]),
        7 if rng.random_bool(0.05) => sim.run(Input::ProgramStop { to: None }),
        7 if rng.random_bool(0.05) => {
            let alive = sim.pools.iter().find_map(|pool| pool.alive.values().next());
            if let Some(process) = alive.map(|alive| alive.process) {
                sim.run(Input::StopAll(process));
            }
        }
        8 => sim.run(Input::Interruption),
        9 => sim.now += rng.random_range(0..5000) * Duration::from_millis(1),
        _ => sim.pass(rng.random_range(0..3000) * Duration::from_millis(1)),
    }
}

/// Lets all processes do at once what is expected of them. Checks that the rolling restarts of all pools end then.
fn rolling_restarts_always_end(sim: &mut ServiceSim, upgraded: &[PoolConfig]) {
    // Executes the delayed actions.
    sim.actions_per_event = usize::MAX - 1;
    sim.run_actions();
    sim.actions_per_event = usize::MAX;
    for pool in &mut sim.pools {
        pool.refuses_starts = false;
        pool.has_work = false;
        pool.blocked.clear();
    }
    sim.run_actions();
    for _ in 0..600 {
        if sim.is_checking {
            sim.pass_check(&(0..sim.pools.len()).collect::<Vec<_>>());
        }
        if sim.is_executing {
            sim.adopt(upgraded.to_vec());
        }
        let is_upgrading = sim.service.is_upgrading();
        if !is_upgrading && !sim.service.is_rolling() && sim.pools.iter().all(|pool| !pool.rolling) {
            return;
        }
        (0..sim.pools.len()).for_each(|pool| behave_well(sim, pool));
        sim.pass(SECOND / 2);
    }
    panic!("a rolling restart does not end: {:?} {:?}", sim.service, sim.log);
}

fn behave_well(sim: &mut ServiceSim, pool: usize) {
    while let Some(process) = sim.pools[pool].abandoned.pop() {
        sim.run(Input::AbandonedExited(process));
    }
    for (id, generation) in sim.alive(pool) {
        let Some(alive) = sim.pools[pool].alive.get(&(id, generation)) else { continue };
        let process = alive.process;
        if alive.sent.iter().any(|&sent| sent != WorkerSignal::Reopen) {
            sim.end(pool, id, generation, Exit::Code(0));
        } else if !alive.ready {
            sim.ready(pool, id, generation);
        }
        sim.tell(Input::Beat(process));
    }
}

/// Stops the service, and checks that all pools end within their graceful timeouts. See `stop_always_ends` in
/// `random.rs`.
fn stop_always_ends(sim: &mut ServiceSim, rng: &mut SmallRng) {
    let has_ended = sim.ended.clone();
    let is_stopping = sim.service.is_stopping();
    sim.request(Request::Stop);
    for pool in 0..sim.pools.len() {
        for (id, generation) in sim.alive(pool) {
            if rng.random_bool(0.5) {
                sim.end(pool, id, generation, Exit::Signal(15));
            }
        }
    }
    sim.pass(2 * GRACEFUL);
    sim.exit_killed();
    // The policy waits for a killed process for 10 s, or twice as long after an interruption.
    sim.pass(20 * SECOND);
    let outcome = sim.outcome();
    check_outcome(sim, &outcome, is_stopping || has_ended.iter().all(|&ended| ended));
    for (pool, report) in sim.service.reports().into_iter().enumerate() {
        let processes: u32 = report.workers().iter().map(WorkerReport::processes).sum();
        assert_eq!(processes, sim.pools[pool].starts);
        assert!(report.restarts() <= sim.pools[pool].restarts, "a stop may cancel a restart that was already logged");
        assert!(sim.pools.len() == 1 || sim.ended[pool], "each pool reports its end");
    }
}

/// Checks that the outcome names a pool that may end the service, and that a service that nothing has stopped before
/// is stopped by the last request.
fn check_outcome(sim: &ServiceSim, outcome: &Outcome, has_ended: bool) {
    let single = sim.pools.len() == 1;
    let failed = match outcome {
        Ok(reason) if reason.is_failure() => reason.process(),
        Ok(reason) => return assert!(has_ended || single || *reason == Reason::Stopped, "{reason:?}"),
        Err(_) => None,
    };
    assert!(has_ended || single, "the failure has stopped the service");
    let pool = failed.and_then(|process| sim.service.index_of(process));
    assert!(pool.is_none_or(|pool| !sim.is_optional[pool]), "{outcome:?}");
}

pub fn for_each_seed(seeds: u64, name: &str, script: fn(u64)) {
    for seed in 0..seeds {
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| script(seed))) {
            eprintln!("as a test:\n\n#[test]\nfn {name}_{seed}() {{\n    {name}({seed});\n}}\n");
            panic::resume_unwind(panic);
        }
    }
}

#[test]
fn random_services_with_several_pools_keep_the_invariants() {
    for_each_seed(10_000, "script", script);
}

/// Runs few scripts, so that `cargo mutants` can afford them.
#[test]
fn a_single_pool_behaves_as_its_policy() {
    for_each_seed(300, "script_with_twin", script_with_twin);
}

#[test]
fn random_services_with_one_pool_behave_as_their_policy() {
    for_each_seed(5_000, "script_with_twin", script_with_twin);
}
