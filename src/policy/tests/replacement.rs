//! The bounds of replacements: how many workers are replaced at a time, and in which order.

use super::*;

fn bounded(workers: usize, max_surge: usize, max_unavailable: usize) -> Config {
    Config { max_surge, max_unavailable, ..config(workers) }
}

fn with_readiness(config: Config) -> Sim {
    let workers = config.workers;
    let mut sim = Sim::new(Config { ready_timeout: Some(10 * SECOND), ..config });
    (0..workers).for_each(|id| sim.ready(id, 0));
    sim
}

/// Returns the ids of the workers whose process has been asked to stop.
fn stopping(sim: &Sim) -> Vec<usize> {
    let stopping = sim.alive.values().filter(|one| one.sent.contains(&WorkerSignal::Stop));
    stopping.map(|one| one.process.id).collect()
}

#[test]
fn long_drains_do_not_delay_other_workers() {
    let mut sim = with_readiness(config(4));
    sim.request(Request::Roll);
    for id in 0..4 {
        assert_eq!(sim.trials(), [id]);
        sim.ready(id, 1);
    }
    assert_eq!(stopping(&sim), [0, 1, 2, 3], "all old processes drain at the same time");
    assert!(sim.rolling);
    (0..4).for_each(|id| sim.end(id, 0, Exit::Code(0)));
    assert!(!sim.rolling && sim.logged("Rolling restart done"));
}

#[test]
fn max_surge_workers_are_replaced_at_a_time() {
    let mut sim = with_readiness(bounded(5, 3, 0));
    sim.request(Request::Roll);
    assert_eq!(sim.trials(), [0, 1, 2]);
    sim.ready(1, 1);
    assert_eq!((sim.trials(), stopping(&sim)), (vec![0, 2, 3], vec![1]));
}

#[test]
fn without_surge_the_old_process_exits_first() {
    let mut sim = with_readiness(bounded(3, 0, 1));
    sim.request(Request::Roll);
    assert_eq!((sim.alive(), stopping(&sim)), (vec![(0, 0), (1, 0), (2, 0)], vec![0]));
    sim.pass(GRACEFUL / 2);
    assert_eq!(stopping(&sim), [0], "the next worker waits for the drain");
    sim.end(0, 0, Exit::Code(0));
    assert_eq!((sim.alive(), stopping(&sim)), (vec![(0, 1), (1, 0), (2, 0)], vec![]));
    sim.ready(0, 1);
    assert_eq!(stopping(&sim), [1]);
    sim.end(1, 0, Exit::Signal(15));
    sim.ready(1, 1);
    sim.end(2, 0, Exit::Code(1));
    assert!(sim.rolling, "the last new process is not ready yet");
    sim.ready(2, 1);
    assert!(sim.logged("Rolling restart done"));
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 1), (1, 1), (2, 1)], 0));
}

#[test]
fn without_readiness_a_new_process_proves_itself_for_a_second() {
    let mut sim = Sim::new(bounded(2, 0, 1));
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    sim.pass(Duration::from_millis(999));
    assert_eq!((sim.alive(), stopping(&sim)), (vec![(0, 1), (1, 0)], vec![]));
    sim.pass(Duration::from_millis(1));
    assert_eq!(stopping(&sim), [1]);
}

#[test]
fn surge_is_used_before_unavailability() {
    let mut sim = with_readiness(bounded(5, 1, 2));
    sim.request(Request::Roll);
    assert_eq!((sim.trials(), stopping(&sim)), (vec![0], vec![1, 2]));
    sim.ready(0, 1);
    assert_eq!((sim.trials(), stopping(&sim)), (vec![3], vec![0, 1, 2]));
    sim.ready(3, 1);
    assert_eq!((sim.trials(), stopping(&sim)), (vec![4], vec![0, 1, 2, 3]));
}

#[test]
fn a_worker_that_is_down_uses_up_unavailability() {
    let mut sim = with_readiness(bounded(3, 0, 1));
    sim.end(2, 0, Exit::Code(1));
    sim.request(Request::Roll);
    assert_eq!(stopping(&sim), [], "worker 2 is not ready");
    sim.ready(2, 1);
    assert_eq!(stopping(&sim), [0]);
    sim.request(Request::ScaleUp);
    sim.end(0, 0, Exit::Code(0));
    sim.ready(0, 1);
    assert_eq!(stopping(&sim), [], "worker 3 is not ready");
    sim.ready(3, 0);
    assert_eq!(stopping(&sim), [1]);
}

#[test]
fn all_workers_may_be_replaced_at_once() {
    let mut sim = Sim::new(bounded(3, 0, 10));
    sim.request(Request::Roll);
    assert_eq!(stopping(&sim), [0, 1, 2]);
    (0..3).for_each(|id| sim.end(id, 0, Exit::Code(0)));
    sim.pass(SECOND);
    assert!(sim.logged("Rolling restart done"));
}

#[test]
fn a_failed_new_process_without_surge_is_restarted() {
    let mut sim = with_readiness(bounded(2, 0, 1));
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    sim.end(0, 1, Exit::Code(1));
    assert!(sim.logged("Rolling restart aborted: the replacement of worker 0 failed"));
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 2), (1, 0)], 1));
    sim.ready(0, 2);
    assert_eq!(stopping(&sim), [], "the remaining old processes stay");
}

#[test]
fn a_late_new_process_without_surge_aborts_the_rolling_restart() {
    let mut sim = with_readiness(bounded(2, 0, 1));
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    sim.pass(10 * SECOND);
    assert_eq!(sim.sent(0, 1), [WorkerSignal::Kill]);
    sim.exit_killed();
    assert!(!sim.rolling && sim.logged("Rolling restart aborted"));
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 2), (1, 0)], 1));
}

#[test]
fn a_refused_new_process_without_surge_is_tried_again() {
    let mut sim = with_readiness(bounded(2, 0, 1));
    sim.request(Request::Roll);
    sim.refuses_starts = true;
    sim.end(0, 0, Exit::Code(0));
    assert!(!sim.rolling && sim.logged("Rolling restart aborted"));
    sim.refuses_starts = false;
    sim.pass(SECOND);
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 1), (1, 0)], 0));
}

#[test]
fn a_new_process_that_finishes_aborts_the_rolling_restart() {
    let mut sim = with_readiness(bounded(3, 0, 1));
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    sim.end(0, 1, Exit::Code(0));
    assert!(!sim.rolling && sim.logged("Rolling restart aborted"));
    assert_eq!((sim.alive(), stopping(&sim)), (vec![(1, 0), (2, 0)], vec![]));
}

#[test]
fn a_restarted_worker_that_fails_again_aborts_a_roll_without_surge() {
    let mut sim = with_readiness(bounded(3, 0, 1));
    sim.end(2, 0, Exit::Code(1));
    sim.request(Request::Roll);
    sim.end(2, 1, Exit::Code(1));
    assert!(sim.rolling, "this process was started before the rolling restart");
    sim.pass(SECOND);
    sim.end(2, 2, Exit::Code(1));
    assert!(!sim.rolling && sim.logged("Rolling restart aborted: the replacement of worker 2 failed"));
}

#[test]
fn a_worker_that_exits_before_it_is_ready_aborts_a_roll_without_surge() {
    let mut sim = with_readiness(Config { restart_policy: RestartPolicy::Always, ..bounded(2, 0, 1) });
    sim.pass(SECOND);
    sim.end(0, 0, Exit::Code(0));
    sim.request(Request::Roll);
    sim.end(0, 1, Exit::Code(0));
    assert!(sim.rolling, "this process was started before the rolling restart");
    sim.step();
    sim.end(0, 2, Exit::Code(0));
    assert!(sim.logged("Rolling restart aborted: the replacement of worker 0 failed"), "{:?}", sim.log);
    assert_eq!(stopping(&sim), [], "the other process stays");
}

#[test]
fn replacements_that_are_under_way_survive_an_aborted_roll() {
    let mut sim = with_readiness(bounded(4, 2, 1));
    sim.request(Request::Roll);
    assert_eq!((sim.trials(), stopping(&sim)), (vec![0, 1], vec![2]));
    sim.end(0, 1, Exit::Code(1));
    assert!(!sim.rolling);
    sim.ready(1, 1);
    sim.end(2, 0, Exit::Code(0));
    sim.ready(2, 1);
    assert_eq!(stopping(&sim), [1]);
    sim.end(1, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 0), (1, 1), (2, 1), (3, 0)]);
    let ends = sim.log.iter().filter(|line| line.starts_with("Rolling restart ")).count();
    assert_eq!(ends, 1, "{:?}", sim.log);
}

#[test]
fn a_failure_after_an_aborted_roll_aborts_no_other() {
    let mut sim = with_readiness(bounded(4, 2, 0));
    sim.request(Request::Roll);
    sim.request(Request::Roll);
    sim.end(0, 1, Exit::Code(1));
    assert!(sim.rolling, "the second rolling restart has begun");
    assert_eq!(sim.trials(), [0, 1]);
    sim.end(1, 1, Exit::Code(1));
    assert!(sim.rolling, "the replacement belonged to the first rolling restart");
    assert_eq!(sim.trials(), [0, 1]);
    for id in 0..4 {
        let newest = *sim.alive.range((id, 0)..=(id, u32::MAX)).next_back().expect("a process").0;
        sim.ready(id, newest.1);
        sim.end(id, 0, Exit::Code(0));
    }
    assert!(!sim.rolling && sim.logged("Rolling restart done"));
}

#[test]
fn a_worker_is_not_replaced_while_its_old_process_drains() {
    let mut sim = with_readiness(config(2));
    sim.request(Request::Roll);
    sim.ready(0, 1);
    sim.request(Request::Replace(0));
    sim.ready(1, 1);
    assert_eq!(sim.alive(), [(0, 0), (0, 1), (1, 0), (1, 1)]);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.trials(), [0]);
}

#[test]
fn single_replacements_continue_while_a_roll_awaits_drains() {
    let mut sim = with_readiness(config(3));
    sim.request(Request::Roll);
    (0..3).for_each(|id| sim.ready(id, 1));
    sim.end(1, 0, Exit::Code(0));
    sim.request(Request::Replace(1));
    assert!(sim.rolling);
    assert_eq!(sim.trials(), [1]);
}

#[test]
fn single_replacements_stay_within_the_bounds() {
    let mut sim = with_readiness(bounded(4, 0, 1));
    (0..4).for_each(|id| sim.request(Request::Replace(id)));
    assert_eq!(stopping(&sim), [0]);
    sim.end(0, 0, Exit::Code(0));
    sim.retire(3, 0);
    assert_eq!(stopping(&sim), []);
    sim.ready(0, 1);
    assert_eq!(stopping(&sim), [1], "in the order of the requests");
}

#[test]
fn a_failed_single_replacement_without_surge_is_an_ordinary_failure() {
    let mut sim = with_readiness(bounded(1, 0, 1));
    sim.request(Request::Replace(0));
    sim.end(0, 0, Exit::Code(0));
    sim.end(0, 1, Exit::Code(1));
    assert!(!sim.logged("the old one stays"), "{:?}", sim.log);
    assert_eq!((sim.alive(), sim.restarts), (vec![(0, 2)], 1));
}

#[test]
fn without_surge_an_added_worker_waits_for_its_removed_process() {
    let mut sim = Sim::new(bounded(2, 0, 1));
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    assert_eq!(sim.alive(), [(0, 0), (1, 0)]);
    sim.end(1, 0, Exit::Code(0));
    assert_eq!(sim.alive(), [(0, 0), (1, 1)]);
}

#[test]
fn scaling_down_removes_a_worker_that_waits_for_its_replacement() {
    let mut sim = with_readiness(bounded(3, 0, 2));
    sim.request(Request::Roll);
    assert_eq!(stopping(&sim), [0, 1]);
    sim.request(Request::Scale(1));
    assert_eq!(stopping(&sim), [0, 1, 2]);
    (0..3).for_each(|id| sim.end(id, 0, Exit::Code(0)));
    assert_eq!(sim.alive(), [(0, 1)]);
    sim.ready(0, 1);
    assert!(!sim.rolling && sim.logged("Rolling restart done"));
}

#[test]
fn a_stop_does_not_wait_for_an_old_process_first_replacement() {
    let mut sim = Sim::new(bounded(2, 0, 1));
    sim.request(Request::Roll);
    sim.request(Request::Stop);
    (0..2).for_each(|id| sim.end(id, 0, Exit::Code(0)));
    assert!(matches!(sim.outcome(), Ok(Reason::Stopped)));
}

#[test]
fn the_queue_of_a_worker_waits_for_its_replacement() {
    let mut sim =
        Sim::new(Config { ready_timeout: Some(10 * SECOND), max_surge: 0, max_unavailable: 1, ..with_queues(2) });
    (0..2).for_each(|id| sim.ready(id, 0));
    sim.request(Request::Roll);
    assert_eq!((stopping(&sim), serving(&sim)), (vec![0], vec![1]), "new connections go to worker 1");
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(serving(&sim), [1]);
    sim.ready(0, 1);
    assert_eq!(serving(&sim)[0], 0);
}

#[test]
fn an_old_process_in_state_d_does_not_block_its_replacement() {
    let mut sim = Sim::new(bounded(1, 0, 1));
    sim.request(Request::Roll);
    sim.blocked.push((0, 0));
    sim.pass(GRACEFUL + 10 * SECOND);
    assert_eq!((sim.alive(), sim.abandoned.len()), (vec![(0, 1)], 1));
    sim.pass(SECOND);
    assert!(sim.logged("Rolling restart done"));
}

#[test]
fn an_old_process_that_crashes_counts_as_unavailable() {
    let mut sim = with_readiness(bounded(3, 1, 1));
    sim.request(Request::Roll);
    assert_eq!((sim.trials(), stopping(&sim)), (vec![0], vec![1]));
    sim.end(1, 0, Exit::Code(0));
    sim.end(0, 0, Exit::Signal(11));
    sim.ready(1, 1);
    assert_eq!(stopping(&sim), [], "worker 0 has no ready process");
    sim.ready(0, 1);
    assert_eq!(sim.trials(), [2]);
}

#[test]
fn a_roll_of_many_workers_finds_each_worker_once() {
    let mut sim = Sim::new(bounded(300, 300, 0));
    sim.request(Request::Roll);
    assert_eq!(sim.alive.len(), 600);
    sim.pass(SECOND);
    (0..300).for_each(|id| sim.end(id, 0, Exit::Code(0)));
    assert!(sim.logged("Rolling restart done"));
}
