//! Simulations of services that are upgraded, with random settings and random events. They check the invariants of
//! [`ServiceSim`], and that each process of the old program is adopted once.

use rand::RngExt;

use super::random::random_config;
use super::service_random::{finish_script, for_each_seed, random_event, random_event_in};
use super::service_sim::ServiceSim;
use super::*;

const NAMES: [&str; 3] = ["web", "jobs", "mail"];

fn random_pools(rng: &mut SmallRng, count: usize) -> Vec<PoolConfig> {
    let pool = |name| PoolConfig {
        config: Config { pool: name, ..random_config(rng) },
        optional: rng.random_bool(0.3),
        removed: false,
    };
    if count == 1 { [""].map(pool).into() } else { NAMES[..count].iter().copied().map(pool).collect() }
}

fn script(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let count = rng.random_range(1..=3);
    let pools = random_pools(&mut rng, count);
    let mut sim = ServiceSim::before_start(pools.clone(), seed);
    sim.run_actions();
    if rng.random_bool(0.3) {
        sim.actions_per_event = rng.random_range(0..4);
    }
    sim.checks_isolation = false;
    let is_calm = rng.random_bool(0.7);
    let mut current = pools;
    for _ in 0..rng.random_range(1..80) {
        let pool = rng.random_range(0..count);
        match rng.random_range(0..10) {
            0 => sim.request(Request::Upgrade),
            1..4 => upgrade_event(&mut sim, &mut rng, &mut current),
            4..8 => random_event_in(&mut sim, &mut rng, pool, is_calm),
            _ => random_event(&mut sim, &mut rng, false),
        }
        sim.exit_killed();
        if sim.is_executing {
            execute(&mut sim, &mut rng, &mut current);
        }
    }
    finish_script(&mut sim, &mut rng, &current);
}

fn upgrade_event(sim: &mut ServiceSim, rng: &mut SmallRng, current: &mut Vec<PoolConfig>) {
    // The supervisor reads the answer of the checker when it has executed all actions.
    flush(sim);
    let pools: Vec<usize> = (0..current.len()).filter(|_| rng.random_bool(0.8)).collect();
    match rng.random_range(0..20) {
        0 => adopt_at_once(sim, rng, current),
        1..3 if sim.is_checking => sim.fail_upgrade("the checker has failed"),
        _ if sim.is_checking => sim.pass_check(&pools),
        _ => sim.pass(SECOND / 2),
    }
}

fn flush(sim: &mut ServiceSim) {
    let limit = std::mem::replace(&mut sim.actions_per_event, usize::MAX);
    sim.run_actions();
    sim.actions_per_event = limit;
}

fn execute(sim: &mut ServiceSim, rng: &mut SmallRng, current: &mut Vec<PoolConfig>) {
    // The simulation may have had further events since the request for the execution.
    flush(sim);
    if !sim.service.is_upgrading() || rng.random_bool(0.2) {
        sim.fail_upgrade("the execution has failed");
    } else {
        adopt_changed(sim, rng, current);
    }
}

/// Executes the new program at a moment that the policy has not chosen.
fn adopt_at_once(sim: &mut ServiceSim, rng: &mut SmallRng, current: &mut Vec<PoolConfig>) {
    if !sim.service.is_stopping() && sim.pools.iter().any(|pool| !pool.alive.is_empty()) {
        adopt_changed(sim, rng, current);
    }
}

fn adopt_changed(sim: &mut ServiceSim, rng: &mut SmallRng, current: &mut Vec<PoolConfig>) {
    if rng.random_bool(0.5) {
        *current = random_pools(rng, current.len());
    }
    sim.adopt(current.clone());
}

#[test]
fn random_upgrades_keep_every_process() {
    for_each_seed(3_000, "script", script);
}
