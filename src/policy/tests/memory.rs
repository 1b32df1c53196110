//! Simulations of workers that use too much memory.

use super::*;

const LIMIT: u64 = 512 << 20;

fn with_limit(workers: usize) -> Config {
    Config { max_memory: Some(LIMIT), max_restarts: Some(0), ..config(workers) }
}

/// Returns the processes whose exact sizes were read.
fn exact_readings(sim: &Sim) -> Vec<(usize, u32)> {
    let exact = |reading: &MemoryReading| match reading {
        MemoryReading::Exact(process) => Some((process.id, process.generation)),
        MemoryReading::Bounds => None,
    };
    sim.readings.iter().filter_map(|(_, reading)| exact(reading)).collect()
}

#[test]
fn a_process_above_the_memory_limit_is_replaced_new_first() {
    let mut sim = Sim::new(Config { ready_timeout: Some(10 * SECOND), ..with_limit(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.private.insert((1, 0), LIMIT + 1);
    sim.pass(2 * SECOND);
    assert_eq!(sim.alive(), [(0, 0), (1, 0), (1, 1)]);
    assert_eq!(sim.sent(1, 0), []);
    assert!(sim.logged("child 1 (pid 2) uses 512 MiB of private memory, replacing it"), "{:?}", sim.log);
    sim.ready(1, 1);
    assert_eq!(sim.sent(1, 0), [WorkerSignal::Stop]);
    sim.end(1, 0, Exit::Code(0));
    sim.pass(100 * SECOND);
    assert_eq!((sim.alive(), sim.policy.reports()[1].restarts()), (vec![(0, 0), (1, 1)], 0));
}

#[test]
fn memory_shared_with_the_parent_does_not_count() {
    let mut sim = Sim::new(with_limit(2));
    sim.shared = 10 * LIMIT;
    sim.private.extend([((0, 0), LIMIT), ((1, 0), 1)]);
    sim.pass(100 * SECOND);
    assert_eq!(sim.alive(), [(0, 0), (1, 0)]);
    assert!(exact_readings(&sim).len() >= 100, "the exact sizes were read");
}

#[test]
fn exact_sizes_are_read_only_above_the_limit() {
    let mut sim = Sim::new(with_limit(3));
    sim.private.extend([((0, 0), LIMIT), ((1, 0), LIMIT + 1), ((2, 0), 1)]);
    sim.pass(SECOND + SECOND / 2);
    assert_eq!(exact_readings(&sim), [(1, 0)]);
}

#[test]
fn all_processes_are_checked_once_per_second() {
    let mut sim = Sim::new(with_limit(3));
    let begun = sim.now;
    sim.pass(5 * SECOND);
    let times: Vec<Duration> = sim.readings.iter().map(|(at, _)| *at - begun).collect();
    assert_eq!(times, [1, 2, 3, 4, 5].map(|second| second * SECOND));
    assert_eq!(sim.policy.next_deadline(), Some(begun + 6 * SECOND), "no other wakeups");
}

#[test]
fn nothing_is_read_before_its_time() {
    let mut sim = Sim::new(with_limit(1));
    assert_eq!(sim.policy.memory_reading(sim.now), None);
    sim.pass(SECOND + SECOND / 2);
    assert_eq!(sim.policy.memory_reading(sim.now), None);
    assert_eq!(sim.policy.memory_reading(sim.now + SECOND / 2), Some(MemoryReading::Bounds));
}

#[test]
fn without_a_limit_no_memory_is_read() {
    let mut sim = Sim::new(config(2));
    assert_eq!(sim.policy.next_deadline(), None);
    sim.private.insert((1, 0), u64::MAX);
    sim.pass(100 * SECOND);
    assert!(sim.readings.is_empty());
}

#[test]
fn readings_take_at_most_one_percent_of_the_time() {
    let mut sim = Sim::new(with_limit(10));
    sim.shared = 10 * LIMIT;
    sim.reading_time = Duration::from_millis(100);
    let begun = sim.now;
    sim.pass(1000 * SECOND);
    let read = exact_readings(&sim);
    let time = sim.reading_time * read.len() as u32;
    assert!(time <= (sim.now - begun) / 100, "{} readings", read.len());
    assert!(read.len() >= 98, "{} readings", read.len());
    let most = (0..10).map(|id| read.iter().filter(|(read, _)| *read == id).count()).max();
    assert!(most <= Some(10), "the workers take turns: {read:?}");
}

#[test]
fn a_pause_of_the_parent_delays_the_next_reading_by_minutes() {
    let mut sim = Sim::new(with_limit(1));
    sim.shared = 2 * LIMIT;
    sim.reading_time = 100 * 3600 * SECOND;
    sim.step();
    sim.step();
    assert_eq!(exact_readings(&sim), [(0, 0)]);
    let resumed = sim.now;
    sim.step();
    assert_eq!(sim.now - resumed, 600 * SECOND);
}

#[test]
fn a_young_process_above_the_limit_is_replaced_a_second_later() {
    let mut sim = Sim::new(Config { ready_timeout: Some(10 * SECOND), ..with_limit(1) });
    sim.pass(SECOND - SECOND / 10);
    sim.ready(0, 0);
    sim.request(Request::ScaleUp);
    sim.ready(1, 0);
    sim.private.insert((1, 0), 2 * LIMIT);
    let begun = sim.now;
    sim.pass(SECOND - SECOND / 100);
    assert_eq!(sim.alive(), [(0, 0), (1, 0)]);
    assert_eq!(exact_readings(&sim), [(1, 0)]);
    sim.step();
    assert_eq!((sim.now - begun, sim.alive()), (SECOND, vec![(0, 0), (1, 0), (1, 1)]));
}

#[test]
fn memory_freed_during_the_wait_does_not_cancel_the_replacement() {
    let mut sim = Sim::new(with_limit(2));
    sim.pass(5 * SECOND - SECOND / 2);
    sim.request(Request::Replace(0));
    sim.private.insert((1, 0), 2 * LIMIT);
    sim.pass(SECOND - SECOND / 10);
    assert_eq!(exact_readings(&sim), [(1, 0)]);
    assert!(!sim.logged("child 1 (pid 2) uses"), "only one worker may be replaced at a time");
    sim.private.clear();
    sim.pass(5 * SECOND);
    assert!(sim.alive().contains(&(1, 1)), "{:?}", sim.log);
}

#[test]
fn a_failed_replacement_is_tried_again_only_after_ten_seconds() {
    let mut sim = Sim::new(with_limit(1));
    sim.private.insert((0, 0), 2 * LIMIT);
    sim.pass(2 * SECOND);
    sim.end(0, 1, Exit::Code(1));
    assert!(sim.logged("The replacement of worker 0 failed, the old one stays"));
    sim.pass(10 * SECOND - SECOND / 10);
    assert_eq!(sim.alive(), [(0, 0)]);
    sim.pass(SECOND / 10);
    assert_eq!(sim.alive(), [(0, 0), (0, 2)]);
}

#[test]
fn stopping_processes_are_not_replaced_for_their_memory() {
    let mut sim = Sim::new(with_limit(2));
    sim.pass(5 * SECOND);
    sim.request(Request::ScaleDown);
    sim.private.insert((1, 0), 2 * LIMIT);
    sim.pass(5 * SECOND);
    assert_eq!(sim.alive(), [(0, 0), (1, 0)]);
    assert!(exact_readings(&sim).is_empty());
    sim.request(Request::Stop);
    let read = sim.readings.len();
    sim.pass(2 * GRACEFUL);
    assert_eq!(sim.readings.len(), read, "a stop ends the checks");
}

#[test]
fn the_exact_size_of_an_aborted_process_is_not_read() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(5 * SECOND), abort_timeout: 5 * SECOND, ..with_limit(1) });
    sim.pass(6 * SECOND);
    assert_eq!(sim.sent(0, 0), [WorkerSignal::Abort]);
    sim.private.insert((0, 0), 2 * LIMIT);
    sim.pass(3 * SECOND);
    assert!(exact_readings(&sim).is_empty(), "the kernel may block the parent until the process has exited");
}

#[test]
fn an_exit_before_the_exact_reading_cancels_it() {
    let mut sim = Sim::new(Config { max_restarts: None, ..with_limit(2) });
    sim.reading_time = SECOND / 100;
    sim.private.extend([((0, 0), 2 * LIMIT), ((1, 0), 2 * LIMIT)]);
    sim.pass(SECOND + SECOND / 2);
    assert_eq!(exact_readings(&sim), [(1, 0)]);
    sim.end(0, 0, Exit::Signal(9));
    sim.pass(5 * SECOND);
    assert_eq!(exact_readings(&sim), [(1, 0)]);
}

#[test]
fn a_cancelled_exact_reading_begins_no_check() {
    let mut sim = Sim::new(Config { max_restarts: None, ..with_limit(2) });
    sim.private.extend([((0, 0), 2 * LIMIT), ((1, 0), 2 * LIMIT)]);
    let begun = sim.now;
    sim.step();
    sim.step();
    assert_eq!(exact_readings(&sim), [(1, 0)]);
    sim.end(0, 0, Exit::Signal(9));
    sim.pass(SECOND);
    let checks = sim.readings.iter().filter(|(_, reading)| *reading == MemoryReading::Bounds);
    let times: Vec<Duration> = checks.map(|(at, _)| *at - begun).collect();
    assert_eq!(times, [SECOND, 2 * SECOND]);
}

#[test]
fn samples_have_the_last_size_and_its_time() {
    let mut sim = Sim::new(with_limit(2));
    let process = |sim: &Sim, id| sim.alive[&(id, 0)].process;
    let begun = sim.now;
    let first = process(&sim, 0);
    assert_eq!(sim.policy.memory_sample(first), None);
    sim.private.insert((0, 0), 7);
    sim.pass(SECOND + SECOND / 2);
    let sample = MemorySample { bytes: 7, at: begun + SECOND, is_exact: false };
    assert_eq!(sim.policy.memory_sample(first), Some(sample));
    sim.shared = LIMIT;
    sim.pass(SECOND);
    let exact = sim.policy.memory_sample(first).expect("a sample");
    assert_eq!((exact.bytes, exact.is_exact), (7, true));
    sim.step();
    assert_eq!(sim.readings.last().map(|(_, reading)| *reading), Some(MemoryReading::Bounds));
    assert_eq!(sim.policy.memory_sample(first), Some(exact), "a bound does not replace an exact size");
    sim.end(0, 0, Exit::Code(0));
    sim.pass(SECOND);
    assert_eq!(sim.policy.memory_sample(first), None, "the process has exited");
    assert!(sim.policy.memory_sample(process(&sim, 1)).is_some());
    sim.policy.handle_memory_bound(sim.now, first, 7);
    assert_eq!(sim.policy.memory_sample(first), None, "a size that was read too late");
}

#[test]
fn samples_of_earlier_processes_are_dropped() {
    let mut sim = Sim::new(Config { max_restarts: None, ..with_limit(1) });
    sim.pass(SECOND + SECOND / 2);
    let first = sim.alive[&(0, 0)].process;
    assert!(sim.policy.memory_sample(first).is_some());
    sim.end(0, 0, Exit::Signal(9));
    sim.pass(SECOND);
    let second = sim.alive[&(0, 1)].process;
    assert_eq!(sim.policy.memory_sample(first), None);
    assert!(sim.policy.memory_sample(second).is_some());
}

/// The system may refuse to read the exact size.
#[test]
fn without_exact_sizes_samples_have_the_last_bound() {
    let mut sim = Sim::new(with_limit(1));
    let process = sim.alive[&(0, 0)].process;
    for bytes in [2 * LIMIT, 3 * LIMIT] {
        sim.now += SECOND;
        sim.policy.handle_memory_bound(sim.now, process, bytes);
        let sample = MemorySample { bytes, at: sim.now, is_exact: false };
        assert_eq!(sim.policy.memory_sample(process), Some(sample));
    }
}
