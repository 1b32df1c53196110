//! Simulations of services with random settings and random events. They check the invariants of [`Sim`].

use std::panic::{self, AssertUnwindSafe};

use rand::RngExt;

use super::*;

/// Simulates one service with random settings and random events, until it ends.
fn script(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let max_memory = rng.random_bool(0.3).then_some(100);
    let config = Config { max_memory, ..random_config(&mut rng) };
    let mut sim = Sim::with_seed(config, seed);
    sim.shared = rng.random_range(0..150);
    sim.reading_time = rng.random_range(0..100) * Duration::from_millis(1);
    if rng.random_bool(0.5) {
        sim.actions_per_event = rng.random_range(0..4);
    }
    for _ in 0..rng.random_range(1..60) {
        random_event(&mut sim, &mut rng);
        assert!(sim.policy.wanted() <= sim.max_workers());
    }
    rolling_restarts_always_end(&mut sim);
    stop_always_ends(&mut sim, &mut rng);
}

pub fn random_config(rng: &mut SmallRng) -> Config {
    let optional = |rng: &mut SmallRng, seconds| rng.random_bool(0.5).then(|| rng.random_range(1..=seconds) * SECOND);
    let surge = rng.random_range(0..4);
    let unavailable = rng.random_range(usize::from(surge == 0)..4);
    Config {
        max_workers: rng.random_range(5..10),
        restart_policy: [RestartPolicy::OnFailure, RestartPolicy::Always, RestartPolicy::Never][rng.random_range(0..3)],
        max_restarts: rng.random_bool(0.7).then(|| rng.random_range(0..30)),
        startup_failures: rng.random_bool(0.5).then_some(10),
        restart_window: optional(rng, 60),
        fatal_exit_codes: if rng.random_bool(0.3) { vec![78] } else { Vec::new() },
        ready_timeout: optional(rng, 10),
        heartbeat_timeout: optional(rng, 10),
        abort_timeout: rng.random_range(1..=3) * SECOND,
        max_lifetime: optional(rng, 30),
        max_requests: rng.random_bool(0.5).then_some(1000),
        max_surge: surge,
        max_unavailable: unavailable,
        drain: rng.random_bool(0.3).then_some(SECOND),
        ..config(rng.random_range(1..5))
    }
}

/// Lets all processes do at once what is expected of them. Checks that the rolling restarts end then.
fn rolling_restarts_always_end(sim: &mut Sim) {
    // Executes the delayed actions.
    sim.actions_per_event = usize::MAX - 1;
    sim.run_actions();
    sim.actions_per_event = usize::MAX;
    sim.refuses_starts = false;
    sim.has_work = false;
    sim.blocked.clear();
    sim.run_actions();
    for _ in 0..200 {
        if !sim.rolling {
            return;
        }
        while !sim.abandoned.is_empty() {
            sim.end_abandoned(0);
        }
        for (id, generation) in sim.alive() {
            let Some(alive) = sim.alive.get(&(id, generation)) else { continue };
            if alive.sent.iter().any(|&sent| sent != WorkerSignal::Reopen) {
                sim.end(id, generation, Exit::Code(0));
            } else if !alive.ready {
                sim.ready(id, generation);
            }
            sim.policy.handle_beat(sim.now, id, generation);
        }
        sim.pass(SECOND / 2);
    }
    assert!(!sim.rolling, "{:?} {:?}", sim.policy, sim.log);
}

fn random_event(sim: &mut Sim, rng: &mut SmallRng) {
    let living = sim.alive();
    let someone = (!living.is_empty()).then(|| living[rng.random_range(0..living.len())]);
    match (rng.random_range(0..12), someone) {
        (0..3, Some((id, generation))) => {
            let exits = [Exit::Code(0), Exit::Code(1), Exit::Code(78), Exit::Signal(9), Exit::Signal(11)];
            let exit = exits[rng.random_range(0..exits.len())];
            // Few nested calls, because most of them end the service.
            match rng.random_range(0..100) {
                0..10 => sim.end_before_call(id, generation, exit),
                10..20 => sim.end_on_request(id, generation),
                20 => sim.end_after_nested_call(id, generation, exit),
                _ => sim.end(id, generation, exit),
            }
        }
        (3..6, Some((id, generation))) => sim.ready(id, generation),
        (6, Some((id, generation))) if rng.random_bool(0.5) => sim.retire(id, generation),
        (6, Some((id, generation))) if rng.random_bool(0.5) => sim.complete_requests(id, generation),
        (6, Some(key)) if rng.random_bool(0.5) => drop(sim.private.insert(key, rng.random_range(0..150))),
        (6, Some((id, generation))) => sim.policy.handle_beat(sim.now, id, generation),
        (7, _) if rng.random_bool(0.5) => sim.refuses_starts = !sim.refuses_starts,
        (7, _) => sim.has_work = !sim.has_work,
        (8, _) => {
            let scale = Request::Scale(rng.random_range(0..12));
            let replace = Request::Replace(rng.random_range(0..12));
            let requests = [Request::Roll, Request::Roll, Request::ScaleUp, Request::ScaleDown, Request::Reopen];
            let requests = [&requests[..], &[scale, replace, replace]].concat();
            let request = requests[rng.random_range(0..requests.len())];
            if rng.random_bool(0.2) { sim.request_now(request) } else { sim.request(request) }
        }
        (9, Some((id, generation))) if rng.random_bool(0.05) => sim.stop_all(id, generation),
        (9, _) if rng.random_bool(0.1) => sim.request([Request::Stop, Request::QuickStop][rng.random_range(0..2)]),
        (11, _) if rng.random_bool(0.1) => sim.policy.handle_interruption(sim.now),
        (10, _) => sim.now += rng.random_range(0..5000) * Duration::from_millis(1),
        _ => sim.pass(rng.random_range(0..3000) * Duration::from_millis(1)),
    }
    if let Some(key) = sim.alive().into_iter().next().filter(|_| rng.random_bool(0.02)) {
        sim.blocked.push(key);
    }
    if !sim.abandoned.is_empty() && rng.random_bool(0.1) {
        sim.end_abandoned(0);
    }
    sim.exit_killed();
}

/// Stops the service, and checks that it ends within the graceful timeout, or within twice this time if an earlier
/// interruption extends a deadline. About half of the processes exit at once. The others ignore the stop request and
/// are killed.
fn stop_always_ends(sim: &mut Sim, rng: &mut SmallRng) {
    sim.actions_per_event = usize::MAX;
    sim.request(Request::Stop);
    for (id, generation) in sim.alive() {
        if rng.random_bool(0.5) {
            sim.end(id, generation, Exit::Signal(15));
        }
    }
    sim.pass(2 * GRACEFUL);
    sim.exit_killed();
    // The policy waits for a killed process for 10 s, or twice as long after an interruption.
    sim.pass(20 * SECOND);
    let end = sim.outcome().expect("no first start was refused");
    let report = PoolReport::new("", end, sim.policy.reports(), false);
    assert!(report.restarts() <= sim.restarts, "a stop may cancel a restart that was already logged");
    assert_eq!(report.workers().iter().map(WorkerReport::processes).sum::<u32>(), sim.starts);
}

#[test]
fn random_services_keep_the_invariants() {
    for seed in 0..100_000 {
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| script(seed))) {
            eprintln!("as a test:\n\n#[test]\nfn script_{seed}() {{\n    script({seed});\n}}\n");
            panic::resume_unwind(panic);
        }
    }
}
