//! Simulations of workers that request their own replacement.

use super::*;

#[test]
fn a_process_that_retires_at_its_start_is_replaced_a_second_later() {
    let mut sim = Sim::new(Config { ready_timeout: Some(10 * SECOND), max_restarts: Some(0), ..config(1) });
    let begun = sim.now;
    for generation in 0..20 {
        sim.ready(0, generation);
        sim.retire(0, generation);
        assert_eq!(sim.alive(), [(0, generation)]);
        sim.step();
        assert_eq!(sim.alive(), [(0, generation), (0, generation + 1)]);
        sim.ready(0, generation + 1);
        sim.end(0, generation, Exit::Code(0));
    }
    assert_eq!((sim.now - begun, sim.restarts), (20 * SECOND, 0));
}

#[test]
fn a_process_that_retires_during_its_replacement_is_replaced_once() {
    let mut sim = Sim::new(config(1));
    sim.pass(SECOND);
    sim.request(Request::Roll);
    sim.retire(0, 0);
    sim.ready(0, 1);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Stop]);
    sim.end(0, 0, Exit::Code(0));
    sim.pass(100 * SECOND);
    assert_eq!(sim.alive(), [(0, 1)]);
    assert!(!sim.logged("child 0 (pid 1) has retired, replacing it"), "{:?}", sim.log);
}

#[test]
fn a_retirement_outlasts_a_failed_rolling_restart() {
    let mut sim = Sim::new(config(1));
    sim.pass(SECOND);
    sim.request(Request::Roll);
    sim.retire(0, 0);
    sim.end(0, 1, Exit::Code(1));
    assert!(sim.logged("Rolling restart aborted: the replacement of worker 0 failed"), "{:?}", sim.log);
    assert_eq!(sim.alive(), [(0, 0), (0, 2)]);
    sim.end(0, 2, Exit::Code(1));
    sim.pass(10 * SECOND);
    assert_eq!(sim.alive(), [(0, 0), (0, 3)]);
}

#[test]
fn a_retirement_outlasts_a_failed_request_for_a_replacement() {
    let mut sim = Sim::new(config(1));
    sim.pass(SECOND);
    sim.request(Request::Replace(0));
    sim.retire(0, 0);
    sim.end(0, 1, Exit::Code(1));
    sim.pass(10 * SECOND);
    assert_eq!(sim.alive(), [(0, 0), (0, 2)]);
}

#[test]
fn a_retired_process_that_exits_normally_is_replaced_at_no_cost() {
    for uptime in [Duration::ZERO, 5 * SECOND] {
        // Another replacement keeps the retired process waiting.
        let mut sim = Sim::new(Config { max_restarts: Some(0), ..config(2) });
        sim.pass(uptime);
        sim.request(Request::Replace(1));
        sim.retire(0, 0);
        sim.end(0, 0, Exit::Code(0));
        assert!(sim.logged("child 0 (pid 1) exited normally after it had retired, restarting"), "{:?}", sim.log);
        sim.pass(SECOND);
        assert!(sim.alive().contains(&(0, 1)), "{:?}", sim.alive());
        assert_eq!(sim.policy.reports()[0].restarts(), 0);
    }
}

#[test]
fn replacement_of_a_retired_process_survives_the_old_ones_exit() {
    let mut sim = Sim::new(config(1));
    sim.pass(SECOND);
    sim.retire(0, 0);
    sim.end(0, 0, Exit::Code(0));
    sim.pass(100 * SECOND);
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 1)], 0));
}

#[test]
fn a_retired_process_that_fails_costs_a_restart() {
    let mut sim = Sim::new(config(1));
    sim.retire(0, 0);
    sim.end(0, 0, Exit::Code(1));
    sim.pass(SECOND);
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 1)], 1));
}

#[test]
fn policy_never_replaces_a_worn_out_process_only_while_it_runs() {
    for wear_out in [Sim::retire, Sim::complete_requests] {
        let never = Config { restart_policy: RestartPolicy::Never, max_requests: Some(1000), ..config(2) };
        let mut sim = Sim::new(never);
        wear_out(&mut sim, 0, 0);
        wear_out(&mut sim, 1, 0);
        sim.end(0, 0, Exit::Code(0));
        sim.pass(2 * SECOND);
        assert_eq!(sim.alive(), [(1, 0), (1, 1)]);
    }
}

#[test]
fn a_worn_out_process_that_was_never_ready_fails_the_startup() {
    for wear_out in [Sim::retire, Sim::complete_requests] {
        let mut sim = Sim::new(Config { ready_timeout: Some(10 * SECOND), max_requests: Some(1000), ..config(1) });
        wear_out(&mut sim, 0, 0);
        sim.end(0, 0, Exit::Code(0));
        assert!(matches!(sim.outcome(), Ok(Reason::StartupFailed { .. })));
    }
}

#[test]
fn a_removed_worker_that_retires_is_not_replaced() {
    let mut sim = Sim::new(config(2));
    sim.pass(SECOND);
    sim.request(Request::ScaleDown);
    sim.retire(1, 0);
    assert_eq!(sim.alive(), [(0, 0), (1, 0)]);
    sim.end(1, 0, Exit::Code(0));
    sim.pass(100 * SECOND);
    assert_eq!(sim.alive(), [(0, 0)]);
}

#[test]
fn without_surge_a_retired_process_stops_first() {
    let mut sim = Sim::new(Config { max_surge: 0, max_unavailable: 1, ..config(2) });
    sim.pass(SECOND);
    sim.retire(1, 0);
    assert_eq!(sim.alive(), [(0, 0), (1, 0)]);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
    sim.end(1, 0, Exit::Code(0));
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 0), (1, 1)], 0));
}
