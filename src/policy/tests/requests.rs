//! Simulations of workers that complete their requests.

use std::collections::BTreeSet;

use super::*;

fn with_requests(workers: usize) -> Config {
    Config { max_requests: Some(1000), max_restarts: Some(0), ..config(workers) }
}

#[test]
fn a_process_that_completes_its_requests_is_replaced_new_first() {
    let mut sim = Sim::new(Config { ready_timeout: Some(10 * SECOND), ..with_requests(1) });
    sim.ready(0, 0);
    sim.pass(5 * SECOND);
    sim.complete_requests(0, 0);
    assert_eq!(sim.alive(), [(0, 0), (0, 1)]);
    assert_eq!(sim.sent(0, 0), []);
    let limit = sim.policy.request_limit(0, 0).expect("a limit");
    assert!(sim.logged(&format!("child 0 (pid 1) has completed its {limit} requests, replacing it")), "{:?}", sim.log);
    sim.ready(0, 1);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!((sim.alive(), sim.policy.reports()[0].restarts()), (vec![(0, 1)], 0));
}

#[test]
fn request_limits_lie_between_three_quarters_and_the_whole() {
    let sim = Sim::new(with_requests(1));
    let limits: BTreeSet<u64> = (0..100_000).filter_map(|id| sim.policy.request_limit(id, 0)).collect();
    assert_eq!(limits, (750..=1000).collect(), "every number occurs");
    let of_generations: BTreeSet<_> = (0..100).map(|generation| sim.policy.request_limit(0, generation)).collect();
    assert!(of_generations.len() > 50, "{of_generations:?}");
    let other_service = Sim::with_seed(with_requests(1), 2);
    assert!((0..10).any(|id| sim.policy.request_limit(id, 0) != other_service.policy.request_limit(id, 0)));
}

#[test]
fn small_and_large_request_limits_are_possible() {
    for (max, least) in [(1, 1), (3, 3), (4, 3), (u64::MAX, u64::MAX / 4 * 3)] {
        let sim = Sim::new(Config { max_requests: Some(max), ..config(1) });
        for id in 0..100 {
            let limit = sim.policy.request_limit(id, 0).expect("a limit");
            assert!((least..=max).contains(&limit), "{limit} of {max}");
        }
    }
}

#[test]
fn without_max_requests_completed_requests_have_no_effect() {
    let mut sim = Sim::new(config(1));
    assert_eq!(sim.policy.request_limit(0, 0), None);
    sim.pass(5 * SECOND);
    sim.complete_requests(0, 0);
    sim.pass(100 * SECOND);
    assert_eq!(sim.alive(), [(0, 0)]);
}

#[test]
fn a_worker_is_replaced_at_most_once_per_second() {
    let mut sim = Sim::new(Config { ready_timeout: Some(10 * SECOND), ..with_requests(1) });
    let begun = sim.now;
    for generation in 0..20 {
        sim.ready(0, generation);
        sim.complete_requests(0, generation);
        assert_eq!(sim.alive(), [(0, generation)]);
        sim.step();
        assert_eq!(sim.alive(), [(0, generation), (0, generation + 1)]);
        sim.ready(0, generation + 1);
        sim.end(0, generation, Exit::Code(0));
    }
    assert_eq!(sim.now - begun, 20 * SECOND);
}

#[test]
fn a_failed_replacement_is_tried_again_after_ten_seconds() {
    let mut sim = Sim::new(with_requests(1));
    sim.pass(5 * SECOND);
    sim.complete_requests(0, 0);
    sim.end(0, 1, Exit::Code(1));
    let failed = sim.now;
    assert!(sim.logged("The replacement of worker 0 failed, the old one stays"));
    sim.step();
    assert_eq!((sim.now - failed, sim.alive()), (10 * SECOND, vec![(0, 0), (0, 2)]));
    assert_eq!(sim.log.iter().filter(|line| line.contains("requests, replacing it")).count(), 2, "{:?}", sim.log);
}

#[test]
fn an_exit_after_the_last_request_costs_no_restart() {
    // Another replacement keeps the first process waiting.
    let mut sim = Sim::new(with_requests(2));
    sim.pass(5 * SECOND);
    sim.request(Request::Replace(1));
    sim.complete_requests(0, 0);
    // The first reason counts.
    sim.retire(0, 0);
    sim.end(0, 0, Exit::Code(0));
    assert!(sim.logged("child 0 (pid 1) exited normally after it had completed its requests, restarting"));
    sim.pass(SECOND);
    assert!(sim.alive().contains(&(0, 1)), "{:?}", sim.alive());
    assert_eq!(sim.policy.reports()[0].restarts(), 0);
}

#[test]
fn a_failure_after_the_last_request_costs_a_restart() {
    let mut sim = Sim::new(Config { max_restarts: Some(1), ..with_requests(1) });
    sim.complete_requests(0, 0);
    sim.end(0, 0, Exit::Code(1));
    sim.pass(SECOND);
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 1)], 1));
}

#[test]
fn a_retirement_after_the_last_request_changes_nothing() {
    let mut sim = Sim::new(with_requests(2));
    sim.pass(5 * SECOND);
    sim.request(Request::Replace(1));
    sim.complete_requests(0, 0);
    sim.retire(0, 0);
    sim.pass(SECOND);
    sim.end(1, 0, Exit::Code(0));
    assert!(sim.logged("child 0 (pid 1) has completed its"), "{:?}", sim.log);
    assert!(!sim.logged("has retired"), "{:?}", sim.log);
}

#[test]
fn without_surge_a_process_with_completed_requests_stops_first() {
    let mut sim = Sim::new(Config { max_surge: 0, max_unavailable: 1, ..with_requests(2) });
    sim.pass(SECOND);
    sim.complete_requests(0, 0);
    sim.complete_requests(1, 0);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    assert_eq!(sim.sent(1, 0), [], "only one worker may be unavailable");
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 1), (1, 0)]);
    sim.pass(SECOND);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
}

#[test]
fn an_operator_can_replace_a_young_process_at_once() {
    let mut sim = Sim::new(with_requests(1));
    sim.complete_requests(0, 0);
    assert_eq!(sim.alive(), [(0, 0)]);
    sim.request(Request::Replace(0));
    assert_eq!(sim.alive(), [(0, 0), (0, 1)]);
}
