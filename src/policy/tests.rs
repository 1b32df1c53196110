//! Whole lives of a service, played through on a clock of their own.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};

use super::*;
use crate::exit::{Exit, OutOfMemory};
use crate::report::Report;
use rand::RngExt;

const SECOND: Duration = Duration::from_secs(1);
const GRACEFUL: Duration = Duration::from_secs(30);

fn config(workers: usize) -> Config {
    Config {
        workers,
        max_workers: 1_000_000,
        restart_policy: RestartPolicy::OnFailure,
        max_restarts: 100,
        restart_window: None,
        delays: Delays { first: Duration::from_millis(10), max: SECOND },
        fatal_exit_codes: Vec::new(),
        graceful_timeout: GRACEFUL,
        ready_timeout: None,
        heartbeat_timeout: None,
        max_lifetime: None,
        drain: None,
    }
}

/// There is no other way to an `Instant`, so this is the one place. Which one it is makes no difference.
pub(super) fn some_time() -> Instant {
    Instant::now()
}

#[derive(Debug)]
struct Alive {
    process: Process,
    since: Instant,
    ready: bool,
    /// One too many, which is told so later.
    released: bool,
    told: Vec<WorkerSignal>,
}

/// The world around a policy: what it started lives until the script lets it end, or until it is killed.
struct Sim {
    policy: Policy,
    now: Instant,
    alive: BTreeMap<(usize, u32), Alive>,
    /// Every start is refused while this is set.
    full: bool,
    log: Vec<String>,
    starts: u32,
    exit_notifier: u32,
    restarts: u32,
    stopping: bool,
    /// Somebody was retired, and may not have been told yet.
    scaling: bool,
    /// Who is to go has something left to do.
    has_work: bool,
    /// How many actions are taken between two events; the others stay for later.
    patience: usize,
}

impl Sim {
    fn new(config: Config) -> Sim {
        Sim::seeded(config, 1)
    }

    fn seeded(config: Config, seed: u64) -> Sim {
        let now = some_time();
        let policy = Policy::new(config, seed, now);
        let mut sim = Sim {
            policy,
            now,
            alive: BTreeMap::new(),
            full: false,
            log: Vec::new(),
            starts: 0,
            exit_notifier: 0,
            restarts: 0,
            stopping: false,
            scaling: false,
            has_work: false,
            patience: usize::MAX,
        };
        sim.settle();
        sim
    }

    /// Does what the policy wants done, and holds it against the invariants.
    fn settle(&mut self) {
        self.note_released();
        for _ in 0..self.patience {
            match self.policy.poll_action() {
                Some(Action::Start { id, generation }) => self.start(id, generation),
                Some(Action::Send { process, message }) => self.send(process, message),
                Some(Action::Emit(event)) => self.hear(event),
                None => {
                    self.scaling = false;
                    break;
                }
            }
        }
        let deadline = self.policy.slots.iter().filter_map(Slot::deadline).min();
        assert_eq!(self.policy.deadlines.next(&self.policy.slots), deadline, "without a look at every id");
        let ages = self.policy.slots.iter().enumerate().filter_map(|(id, slot)| Some((slot.recycle_at()?, id)));
        assert_eq!(self.policy.deadlines.oldest(&self.policy.slots), ages.min(), "the same");
        assert_eq!(self.policy.wanted(), self.policy.count_wanted(), "the same");
        let max = self.policy.config.max_restarts;
        assert!(self.policy.config.restart_window.is_some() || self.restarts <= max, "{} restarts", self.restarts);
        assert_eq!(self.starts, self.exit_notifier + self.alive.len() as u32);
    }

    fn note_released(&mut self) {
        for Process { id, generation, .. } in self.policy.slots.iter().flat_map(Slot::draining) {
            self.alive.get_mut(&(id, generation)).expect("alive").released = true;
        }
    }

    fn start(&mut self, id: usize, generation: u32) {
        assert!(!self.stopping, "child {id} started while stopping");
        if self.full {
            let refused = crate::sys::CallError { call: "fork", source: std::io::ErrorKind::WouldBlock.into() };
            return self.policy.handle_start_failed(self.now, id, Error::from(refused).starting(id));
        }
        self.starts += 1;
        let process = Process { id, generation, pid: Some(self.starts) };
        let alive = Alive { process, since: self.now, ready: false, released: false, told: Vec::new() };
        let before = self.alive.insert((id, generation), alive);
        assert!(before.is_none(), "generation {generation} of child {id} started twice");
        let of_this_id = self.alive.range((id, 0)..=(id, u32::MAX)).count();
        assert!(of_this_id <= 2, "{of_this_id} processes of child {id}");
        let trials = self.trials();
        assert!(trials.len() <= 1, "children {trials:?} are replaced at a time");
        self.policy.handle_started(self.now, process);
    }

    /// The ids of which two processes live and none was asked to go.
    fn trials(&self) -> Vec<usize> {
        let ids: Vec<usize> = {
            let staying = self.alive.values().filter(|one| one.told.is_empty() && !one.released);
            staying.map(|one| one.process.id).collect()
        };
        ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect()
    }

    fn send(&mut self, process: Process, message: WorkerSignal) {
        // Who ended meanwhile is told nothing.
        let Some(alive) = self.alive.get_mut(&(process.id, process.generation)) else { return };
        assert_eq!(alive.process, process);
        assert!(message == WorkerSignal::Reopen || !alive.told.contains(&message), "{process} told {message:?} twice");
        alive.told.push(message);
        let released = alive.released;
        let newer = self.alive.range((process.id, process.generation + 1)..=(process.id, u32::MAX)).next_back();
        if let (WorkerSignal::Stop, false, Some((_, newer))) =
            (message, self.stopping || self.scaling || released, newer)
        {
            let settled = self.policy.config.ready_timeout.is_none() && self.now >= newer.since + SECOND;
            assert!(newer.ready || settled, "{process} is to go for {}, which is not ready", newer.process);
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Restarting { .. } => self.restarts += 1,
            Event::Stopping { .. } => self.stopping = true,
            _ => {}
        }
        self.log.push(event.to_string());
    }

    fn request(&mut self, request: Request) {
        self.scaling |= request == Request::ScaleDown;
        self.policy.handle_request(self.now, request);
        self.settle();
    }

    fn ready(&mut self, id: usize, generation: u32) {
        self.alive.get_mut(&(id, generation)).expect("alive").ready = true;
        self.policy.handle_ready(self.now, id, generation);
        self.settle();
    }

    fn stop_all(&mut self, id: usize, generation: u32) {
        let process = self.alive[&(id, generation)].process;
        self.policy.handle_stop_all(self.now, process);
        self.settle();
    }

    fn end(&mut self, id: usize, generation: u32, exit: Exit) {
        self.end_with(id, generation, exit, OutOfMemory::No);
    }

    fn end_with(&mut self, id: usize, generation: u32, exit: Exit, out_of_memory: OutOfMemory) {
        let alive = self.alive.remove(&(id, generation)).expect("alive");
        self.exit_notifier += 1;
        self.policy.handle_exited(self.now, alive.process, exit, out_of_memory);
        self.settle();
    }

    /// Jumps to the next deadline.
    fn step(&mut self) {
        let deadline = self.policy.next_deadline().expect("a deadline");
        self.wake_at(deadline);
    }

    fn wake_at(&mut self, at: Instant) {
        self.now = self.now.max(at);
        for id in self.policy.draining(self.now) {
            if self.has_work {
                self.policy.handle_work_left(self.now, id);
            }
        }
        self.policy.handle_timeout(self.now);
        self.settle();
        let next = self.policy.next_deadline();
        assert!(next.is_none_or(|next| next > self.now), "a deadline that is never over");
    }

    /// Lets time pass, waking at every deadline on the way.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(deadline) = self.policy.next_deadline().filter(|&deadline| deadline <= until) {
            self.wake_at(deadline);
        }
        self.now = until;
    }

    fn told(&self, id: usize, generation: u32) -> &[WorkerSignal] {
        &self.alive[&(id, generation)].told
    }

    fn living(&self) -> Vec<(usize, u32)> {
        self.alive.keys().copied().collect()
    }

    fn logged(&self, line: &str) -> bool {
        self.log.iter().any(|logged| logged.contains(line))
    }

    /// Whoever was killed dies of it.
    fn bury(&mut self) {
        let killed: Vec<_> = self.alive.iter().filter(|(_, alive)| alive.told.contains(&WorkerSignal::Kill)).collect();
        let killed: Vec<_> = killed.into_iter().map(|(&key, _)| key).collect();
        for (id, generation) in killed {
            self.end(id, generation, Exit::Signal(9));
        }
    }

    fn ended(&mut self) -> Outcome {
        assert!(self.alive.is_empty(), "{:?}", self.alive);
        self.policy.poll_end().expect("the end")
    }
}

#[test]
fn all_end_normally_and_so_does_the_parent() {
    let mut sim = Sim::new(config(3));
    assert_eq!(sim.living(), [(0, 0), (1, 0), (2, 0)]);
    for id in 0..3 {
        assert!(sim.policy.poll_end().is_none());
        sim.end(id, 0, Exit::Code(0));
    }
    assert!(matches!(sim.ended(), Ok(Reason::Finished)));
    assert_eq!(sim.log[0], "Starting 3 processes");
    assert!(sim.logged("child 1 (pid 2) exited normally"));
}

#[test]
fn a_worker_that_ends_abnormally_is_restarted_under_its_id_with_the_next_generation() {
    let mut sim = Sim::new(config(2));
    sim.end(1, 0, Exit::Signal(9));
    sim.end(0, 0, Exit::Code(3));
    assert_eq!(sim.living(), [(0, 1), (1, 1)]);
    assert!(sim.logged("child 1 (pid 2) killed by signal 9, restarting"));
    assert!(sim.logged("child 0 (pid 1) exited with status 3, restarting"));
}

#[test]
fn the_last_restart_of_the_budget_is_made_and_the_next_end_stops_everybody_before_giving_up() {
    let mut sim = Sim::new(Config { max_restarts: 2, ..config(2) });
    sim.end(0, 0, Exit::Code(1));
    sim.end(1, 0, Exit::Code(1));
    assert_eq!(sim.living(), [(0, 1), (1, 1)]);
    sim.end(0, 1, Exit::Code(1));
    assert_eq!(sim.told(1, 1), [WorkerSignal::Stop]);
    assert!(!sim.log.last().expect("a log").contains("restarting"));
    assert!(sim.policy.poll_end().is_none(), "the other one still children");
    sim.end(1, 1, Exit::Signal(15));
    assert!(matches!(
        sim.ended(),
        Ok(Reason::RestartLimitReached {
            process: Process { id: 0, generation: 1, .. },
            exit: Exit::Code(1),
            restarts: 2
        })
    ));
}

#[test]
fn a_budget_of_none_gives_up_at_the_first_abnormal_end() {
    let mut sim = Sim::new(Config { max_restarts: 0, ..config(1) });
    sim.end(0, 0, Exit::Code(1));
    assert!(matches!(sim.ended(), Ok(Reason::RestartLimitReached { restarts: 0, .. })));
    assert!(!sim.logged("restarting"));
}

#[test]
fn a_restart_window_forgives_what_is_long_ago() {
    let mut sim = Sim::new(Config { max_restarts: 1, restart_window: Some(60 * SECOND), ..config(1) });
    for generation in 0..20 {
        sim.end(0, generation, Exit::Code(1));
        sim.pass(61 * SECOND);
    }
    sim.end(0, 20, Exit::Code(1));
    sim.end(0, 21, Exit::Code(1));
    assert!(matches!(sim.ended(), Ok(Reason::RestartLimitReached { restarts: 21, .. })));
}

#[test]
fn a_crash_loop_waits_longer_and_longer_and_its_siblings_are_not_held_up() {
    let mut sim = Sim::new(config(2));
    sim.end(0, 0, Exit::Code(1));
    assert!(sim.alive.contains_key(&(0, 1)), "the first failure restarts at once");
    sim.end(0, 1, Exit::Code(1));
    assert!(!sim.alive.contains_key(&(0, 2)), "the second one waits");
    sim.end(1, 0, Exit::Code(1));
    assert!(sim.alive.contains_key(&(1, 1)));
    sim.pass(Duration::from_millis(10));
    assert!(sim.alive.contains_key(&(0, 2)));
}

#[test]
fn a_sound_life_forgets_the_failures_before_it_however_it_ends() {
    fn roll_to_worker_1(sim: &mut Sim) {
        sim.request(Request::Roll);
        sim.pass(SECOND);
        sim.end(0, 0, Exit::Code(0));
    }
    type HandOver = fn(&mut Sim);
    let ways: [(&str, HandOver); 4] = [
        ("replaced, and gone", |sim| {
            roll_to_worker_1(sim);
            sim.pass(SECOND);
            sim.end(1, 7, Exit::Code(0));
        }),
        ("replaced, and still draining", |sim| {
            roll_to_worker_1(sim);
            sim.pass(SECOND);
        }),
        ("failed while it was being replaced", |sim| {
            roll_to_worker_1(sim);
            sim.end(1, 7, Exit::Code(1));
        }),
        ("one too many, and wanted again", |sim| {
            sim.request(Request::ScaleDown);
            sim.end(1, 7, Exit::Code(0));
            sim.request(Request::ScaleUp);
        }),
    ];
    for (way, hand_over) in ways {
        let mut sim = Sim::new(Config { delays: Delays { first: SECOND, max: 60 * SECOND }, ..config(2) });
        for generation in 0..7 {
            sim.end(1, generation, Exit::Code(1));
            while !sim.alive.contains_key(&(1, generation + 1)) {
                sim.step();
            }
        }
        sim.pass(3600 * SECOND);
        hand_over(&mut sim);
        sim.end(1, 8, Exit::Code(1));
        assert!(sim.alive.contains_key(&(1, 9)), "{way}: the first failure restarts at once");
        sim.end(1, 9, Exit::Code(1));
        sim.pass(SECOND);
        assert!(sim.alive.contains_key(&(1, 10)), "{way}: the second one waits no longer than the first delay");
    }
}

#[test]
fn an_idle_service_has_no_deadline() {
    let mut sim = Sim::new(config(4));
    assert_eq!(sim.policy.next_deadline(), None);
}

#[test]
fn a_stop_asks_everybody_at_once_and_kills_after_one_common_deadline() {
    let mut sim = Sim::new(config(3));
    sim.pass(SECOND);
    sim.request(Request::Stop);
    sim.end(1, 0, Exit::Code(0));
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + GRACEFUL));
    sim.step();
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    assert_eq!(sim.told(2, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    sim.bury();
    assert!(matches!(sim.ended(), Ok(Reason::Stopped)));
}

#[test]
fn a_second_stop_means_now() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Stop);
    sim.request(Request::Stop);
    sim.request(Request::Stop);
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    sim.bury();
    assert!(matches!(sim.ended(), Ok(Reason::Stopped)));
}

#[test]
fn a_quick_stop_kills_after_two_seconds_and_overtakes_a_graceful_one() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Stop);
    sim.request(Request::QuickStop);
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop, WorkerSignal::QuickStop]);
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + 2 * SECOND));
    sim.request(Request::QuickStop);
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop, WorkerSignal::QuickStop, WorkerSignal::Kill]);
}

#[test]
fn the_first_stop_by_an_operator_while_giving_up_is_not_yet_a_second_one() {
    let mut sim = Sim::new(Config { max_restarts: 0, ..config(2) });
    sim.end(0, 0, Exit::Code(1));
    sim.request(Request::Stop);
    assert_eq!(sim.told(1, 0), [WorkerSignal::Stop]);
    sim.request(Request::Stop);
    assert_eq!(sim.told(1, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    sim.bury();
    assert!(matches!(sim.ended(), Ok(Reason::RestartLimitReached { .. })));
}

#[test]
fn a_stop_overtakes_the_starts_still_to_come() {
    let now = some_time();
    let mut policy = Policy::new(config(1000), 1, now);
    let first = std::iter::from_fn(|| policy.poll_action()).find(|action| matches!(action, Action::Start { .. }));
    assert!(matches!(first, Some(Action::Start { id: 0, .. })));
    policy.handle_started(now, Process { id: 0, generation: 0, pid: Some(1) });
    policy.handle_request(now, Request::Stop);
    while let Some(action) = policy.poll_action() {
        assert!(!matches!(action, Action::Start { .. }), "{action:?}");
    }
    policy.handle_exited(now, Process { id: 0, generation: 0, pid: Some(1) }, Exit::Signal(15), OutOfMemory::No);
    while policy.poll_action().is_some() {}
    assert!(matches!(policy.poll_end(), Some(Ok(Reason::Stopped))));
}

#[test]
fn a_process_that_came_after_the_stop_is_asked_to_go_as_well() {
    let now = some_time();
    let mut policy = Policy::new(config(1), 1, now);
    while !matches!(policy.poll_action(), Some(Action::Start { .. })) {}
    policy.handle_request(now, Request::Stop);
    policy.handle_started(now, Process { id: 0, generation: 0, pid: Some(1) });
    let asked = std::iter::from_fn(|| policy.poll_action()).any(|action| {
        matches!(action, Action::Send { process: Process { pid: Some(1), .. }, message: WorkerSignal::Stop })
    });
    assert!(asked);
}

#[test]
fn a_first_start_that_is_refused_stops_what_was_started() {
    let now = some_time();
    let mut policy = Policy::new(config(3), 1, now);
    let mut sent = Vec::new();
    let mut pid = 0;
    while let Some(action) = policy.poll_action() {
        match action {
            Action::Start { id: 2, .. } => {
                let refused = crate::sys::CallError { call: "fork", source: std::io::ErrorKind::WouldBlock.into() };
                policy.handle_start_failed(now, 2, Error::from(refused).starting(2));
            }
            Action::Start { id, generation } => {
                pid += 1;
                policy.handle_started(now, Process { id, generation, pid: Some(pid) });
            }
            Action::Send { process, message } => sent.push((process.id, message)),
            Action::Emit(_) => {}
        }
    }
    assert_eq!(sent, [(0, WorkerSignal::Stop), (1, WorkerSignal::Stop)]);
    for (id, pid) in [(0, 1), (1, 2)] {
        policy.handle_exited(now, Process { id, generation: 0, pid: Some(pid) }, Exit::Signal(15), OutOfMemory::No);
    }
    while policy.poll_action().is_some() {}
    match policy.poll_end() {
        Some(Err(error)) => assert_eq!((error.call(), error.worker()), (Some("fork"), Some(2))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_restart_that_is_refused_is_tried_again_and_costs_nothing_of_the_budget() {
    let mut sim = Sim::new(Config { max_restarts: 1, ..config(2) });
    sim.full = true;
    sim.end(0, 0, Exit::Code(1));
    for _ in 0..50 {
        sim.step();
    }
    assert_eq!(sim.living(), [(1, 0)]);
    assert!(sim.logged("cannot start worker 0: fork"));
    sim.full = false;
    sim.step();
    assert_eq!(sim.living(), [(0, 1), (1, 0)]);
}

#[test]
fn a_stop_overtakes_a_restart_that_is_being_refused() {
    let mut sim = Sim::new(config(1));
    sim.full = true;
    sim.end(0, 0, Exit::Code(1));
    sim.request(Request::Stop);
    assert!(matches!(sim.ended(), Ok(Reason::Stopped)));
}

#[test]
fn a_roll_replaces_one_after_the_other_and_asks_the_old_one_only_when_the_new_one_has_lived_a_second() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    assert_eq!(sim.living(), [(0, 0), (0, 1), (1, 0)]);
    sim.pass(Duration::from_millis(999));
    assert!(sim.told(0, 0).is_empty());
    sim.pass(Duration::from_millis(1));
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop]);
    assert_eq!(sim.living(), [(0, 0), (0, 1), (1, 0)], "the next one's turn comes when the old one is gone");
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.living(), [(0, 1), (1, 0), (1, 1)]);
    sim.pass(SECOND);
    sim.end(1, 0, Exit::Code(0));
    assert!(sim.logged("Rolling restart done"));
    assert_eq!(sim.living(), [(0, 1), (1, 1)]);
    assert_eq!(sim.policy.next_deadline(), None);
}

#[test]
fn an_old_worker_that_does_not_drain_in_time_is_killed_and_the_roll_goes_on() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.pass(SECOND + GRACEFUL);
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
    sim.bury();
    assert!(sim.alive.contains_key(&(1, 1)));
}

#[test]
fn a_replacement_that_dies_aborts_the_roll_and_the_old_one_stays() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.end(0, 1, Exit::Code(1));
    assert_eq!(sim.living(), [(0, 0), (1, 0)]);
    assert!(sim.told(0, 0).is_empty());
    assert!(sim.logged("Rolling restart aborted"));
    assert_eq!(sim.restarts, 0, "it costs nothing of the budget");
}

#[test]
fn a_replacement_that_is_late_is_killed_and_the_old_one_stays() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.request(Request::Roll);
    sim.pass(5 * SECOND);
    assert_eq!(sim.told(0, 1), [WorkerSignal::Kill]);
    assert!(sim.told(0, 0).is_empty());
    sim.bury();
    assert_eq!(sim.living(), [(0, 0)]);
}

#[test]
fn a_replacement_that_cannot_be_started_aborts_the_roll() {
    let mut sim = Sim::new(config(1));
    sim.full = true;
    sim.request(Request::Roll);
    assert!(sim.logged("Rolling restart aborted"));
    assert_eq!((sim.living(), sim.policy.next_deadline()), (vec![(0, 0)], None));
}

#[test]
fn a_second_roll_asked_for_during_a_roll_follows_it_once() {
    let mut sim = Sim::new(config(1));
    for _ in 0..5 {
        sim.request(Request::Roll);
    }
    sim.pass(SECOND);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.living(), [(0, 1), (0, 2)]);
    sim.pass(SECOND);
    sim.end(0, 1, Exit::Code(0));
    assert_eq!(sim.living(), [(0, 2)]);
    assert_eq!(sim.policy.next_deadline(), None);
}

#[test]
fn an_old_worker_that_crashes_during_its_replacement_is_not_restarted_twice() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Signal(11));
    assert_eq!(sim.living(), [(0, 1)]);
    sim.pass(SECOND);
    assert!(sim.logged("Rolling restart done"));
    assert_eq!(sim.restarts, 0);
}

#[test]
fn a_stop_overtakes_a_roll() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.request(Request::Stop);
    for key in sim.living() {
        assert_eq!(sim.alive[&key].told, [WorkerSignal::Stop]);
        sim.end(key.0, key.1, Exit::Signal(15));
    }
    assert!(matches!(sim.ended(), Ok(Reason::Stopped)));
}

#[test]
fn scaling_adds_the_lowest_free_id_and_retires_the_highest_and_never_the_last() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::ScaleUp);
    assert_eq!(sim.living(), [(0, 0), (1, 0), (2, 0)]);
    sim.end(0, 0, Exit::Code(0));
    sim.request(Request::ScaleUp);
    assert!(sim.alive.contains_key(&(0, 1)), "id 0 was free");
    for _ in 0..5 {
        sim.request(Request::ScaleDown);
    }
    assert_eq!(sim.told(2, 0), [WorkerSignal::Stop]);
    assert_eq!(sim.told(1, 0), [WorkerSignal::Stop]);
    assert!(sim.told(0, 1).is_empty());
}

#[test]
fn a_retired_worker_drains_while_its_id_serves_again() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    assert_eq!(sim.living(), [(0, 0), (1, 0), (1, 1)]);
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    assert_eq!(sim.living(), [(0, 0), (1, 0), (1, 1)], "two of an id are enough");
    sim.end(1, 0, Exit::Code(0));
    assert_eq!(sim.living(), [(0, 0), (1, 1), (1, 2)]);
}

fn with_queues(workers: usize) -> Config {
    Config { drain: Some(SECOND), ..config(workers) }
}

fn serving(sim: &Sim) -> Vec<usize> {
    sim.policy.serving().collect()
}

#[test]
fn one_too_many_that_has_a_queue_gets_nothing_more_at_once_and_is_asked_to_go_when_that_is_empty() {
    let mut sim = Sim::new(with_queues(2));
    sim.request(Request::ScaleDown);
    assert_eq!((serving(&sim), sim.policy.wanted()), (vec![0], 1));
    assert!(sim.told(1, 0).is_empty());
    sim.has_work = true;
    sim.pass(3 * SECOND);
    assert!(sim.told(1, 0).is_empty(), "it is not empty");
    sim.has_work = false;
    sim.step();
    assert_eq!(sim.told(1, 0), [WorkerSignal::Stop]);
    sim.pass(GRACEFUL);
    assert_eq!(sim.told(1, 0), [WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn a_queue_that_does_not_get_empty_holds_nobody_for_longer_than_the_graceful_time() {
    let mut sim = Sim::new(with_queues(2));
    sim.has_work = true;
    sim.request(Request::ScaleDown);
    sim.pass(GRACEFUL - Duration::from_millis(1));
    assert!(sim.told(1, 0).is_empty());
    sim.pass(Duration::from_millis(1));
    assert_eq!(sim.told(1, 0), [WorkerSignal::Stop]);
}

#[test]
fn a_stop_does_not_wait_for_queues() {
    let mut sim = Sim::new(with_queues(2));
    sim.request(Request::ScaleDown);
    sim.request(Request::Stop);
    assert_eq!((sim.told(0, 0), sim.told(1, 0)), (&[WorkerSignal::Stop][..], &[WorkerSignal::Stop][..]));
}

#[test]
fn the_work_of_one_that_lingers_and_fails_is_finished_by_another_one_who_is_not_wanted_for_more() {
    let mut sim = Sim::new(Config { max_restarts: 2, ..with_queues(2) });
    sim.has_work = true;
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(9));
    assert_eq!((sim.living(), sim.policy.wanted(), serving(&sim)), (vec![(0, 0), (1, 1)], 1, vec![0]));
    sim.pass(2 * SECOND);
    assert!(sim.told(1, 1).is_empty());
    sim.has_work = false;
    sim.pass(SECOND);
    assert_eq!(sim.told(1, 1), [WorkerSignal::Stop]);
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!((sim.living(), sim.policy.next_deadline()), (vec![(0, 0)], None), "it had been asked to");
    assert_eq!(sim.restarts, 1);
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    sim.end(1, 2, Exit::Code(1));
    sim.step();
    sim.end(1, 3, Exit::Code(1));
    assert_eq!((sim.living(), sim.restarts), (vec![(0, 0)], 2), "no budget is left, which is no reason to give up");
}

#[test]
fn one_that_lingers_and_is_done_or_has_a_successor_already_needs_nobody() {
    let mut sim = Sim::new(with_queues(2));
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Code(0));
    assert_eq!((sim.living(), sim.policy.next_deadline()), (vec![(0, 0)], None));
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!((sim.living(), sim.restarts), (vec![(0, 0), (1, 2)], 0));
}

#[test]
fn who_comes_to_finish_the_work_of_another_one_stays_if_he_is_wanted_after_all_and_first_becomes_ready() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..with_queues(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(9));
    sim.request(Request::ScaleUp);
    assert_eq!((sim.living(), sim.policy.wanted(), serving(&sim)), (vec![(0, 0), (1, 1)], 2, vec![0]));
    sim.ready(1, 1);
    sim.pass(10 * SECOND);
    assert_eq!((sim.told(1, 1), serving(&sim)), (&[][..], vec![0, 1]));
    sim.request(Request::ScaleDown);
    sim.end(1, 1, Exit::Signal(9));
    sim.pass(SECOND);
    sim.ready(1, 2);
    assert!(sim.told(1, 2).is_empty());
    sim.step();
    assert_eq!(sim.told(1, 2), [WorkerSignal::Stop]);
}

#[test]
fn one_that_is_added_gets_nothing_before_it_is_there_or_ready_and_keeps_its_share_while_it_is_restarted() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..with_queues(1) });
    assert_eq!(serving(&sim), [0], "the first ones from the beginning");
    sim.request(Request::ScaleUp);
    assert_eq!(serving(&sim), [0]);
    sim.ready(1, 0);
    assert_eq!(serving(&sim), [0, 1]);
    sim.end(1, 0, Exit::Signal(9));
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!(serving(&sim), [0, 1]);
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    sim.pass(SECOND);
    assert_eq!((sim.living(), serving(&sim)), (vec![(0, 0), (1, 2)], vec![0]), "the next one is not ready yet");
    let mut sim = Sim::new(with_queues(1));
    sim.full = true;
    sim.request(Request::ScaleUp);
    assert_eq!(serving(&sim), [0]);
    sim.full = false;
    sim.step();
    assert_eq!(serving(&sim), [0, 1]);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(serving(&sim), [1], "it is done");
}

#[test]
fn one_too_many_that_is_not_ready_yet_does_what_waits_in_its_queue_first() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..with_queues(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.has_work = true;
    sim.end(1, 0, Exit::Signal(9));
    assert_eq!(serving(&sim), [0, 1], "what comes meanwhile waits for the next one");
    sim.request(Request::ScaleDown);
    assert_eq!((sim.policy.wanted(), serving(&sim)), (1, vec![0]));
    assert!(sim.told(1, 1).is_empty());
    sim.ready(1, 1);
    sim.pass(2 * SECOND);
    assert!(sim.told(1, 1).is_empty());
    sim.has_work = false;
    sim.pass(SECOND);
    assert_eq!(sim.told(1, 1), [WorkerSignal::Stop]);
}

#[test]
fn one_too_many_that_is_about_to_be_restarted_leaves_its_queue_to_somebody() {
    let mut sim = Sim::new(with_queues(2));
    sim.has_work = true;
    sim.end(1, 0, Exit::Signal(9));
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!((sim.living(), serving(&sim)), (vec![(0, 0)], vec![0, 1]), "it waits for its restart");
    sim.request(Request::ScaleDown);
    sim.pass(2 * SECOND);
    assert_eq!((sim.living(), sim.policy.wanted()), (vec![(0, 0), (1, 2)], 1));
}

#[test]
fn who_finishes_the_work_and_is_wanted_for_a_moment_still_finishes_it() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..with_queues(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.has_work = true;
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(9));
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    assert!(sim.told(1, 1).is_empty(), "told {:?}", sim.told(1, 1));
}

#[test]
fn one_that_only_finishes_work_and_keeps_failing_is_given_up_alone() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), max_restarts: 1, ..with_queues(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(9));
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!((sim.living(), sim.policy.next_deadline()), (vec![(0, 0)], None));
    assert!(sim.told(0, 0).is_empty());
}

#[test]
fn an_id_that_was_there_from_the_beginning_and_is_asked_for_again_is_given_up_alone() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(2) });
    sim.ready(0, 0);
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(15));
    sim.request(Request::ScaleUp);
    sim.end(1, 1, Exit::Signal(9));
    assert!(sim.told(0, 0).is_empty(), "{:?}", sim.log);
}

#[test]
fn one_that_lingers_and_fails_with_nobody_after_it_has_failed() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Never, ..with_queues(2) });
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(11));
    sim.end(0, 0, Exit::Code(0));
    let end = sim.ended().expect("no error");
    assert!(!Report::new(end, sim.policy.reports()).is_success());
}

#[test]
fn one_that_lingers_and_exits_with_what_no_restart_can_mend_is_not_restarted() {
    let mut sim = Sim::new(Config { fatal_exit_codes: vec![78], ..with_queues(2) });
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Code(78));
    assert_eq!(sim.restarts, 0, "{:?}", sim.log);
}

#[test]
fn two_that_linger_need_no_third() {
    let mut sim = Sim::new(with_queues(2));
    sim.has_work = true;
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    sim.end(1, 0, Exit::Signal(9));
    assert_eq!((sim.living(), sim.restarts), (vec![(0, 0), (1, 1)], 0));
}

#[test]
fn there_are_never_more_than_the_most() {
    let mut sim = Sim::new(Config { max_workers: 2, ..config(1) });
    for _ in 0..5 {
        sim.request(Request::ScaleUp);
    }
    assert_eq!(sim.living(), [(0, 0), (1, 0)]);
}

#[test]
fn a_request_to_reopen_logs_reaches_everybody() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Reopen);
    assert_eq!((sim.told(0, 0), sim.told(1, 0)), (&[WorkerSignal::Reopen][..], &[WorkerSignal::Reopen][..]));
}

#[test]
fn a_worker_that_dies_before_its_id_was_ever_ready_is_a_startup_failure() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(2) });
    sim.ready(0, 0);
    sim.end(1, 0, Exit::Code(1));
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop]);
    sim.end(0, 0, Exit::Code(0));
    assert!(matches!(
        sim.ended(),
        Ok(Reason::StartupFailed { process: Process { id: 1, .. }, exit: Some(Exit::Code(1)) })
    ));
}

#[test]
fn a_worker_that_is_late_before_its_id_was_ever_ready_is_a_startup_failure() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.step();
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop]);
    sim.end(0, 0, Exit::Signal(15));
    assert!(matches!(sim.ended(), Ok(Reason::StartupFailed { exit: None, .. })));
}

#[test]
fn a_restarted_worker_that_is_late_is_killed_and_restarted_again() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.end(0, 0, Exit::Code(1));
    sim.step();
    assert_eq!(sim.told(0, 1), [WorkerSignal::Kill]);
    sim.bury();
    sim.pass(SECOND);
    assert_eq!(sim.living(), [(0, 2)]);
}

#[test]
fn a_fatal_code_stops_everything() {
    let mut sim = Sim::new(Config { fatal_exit_codes: vec![78], ..config(2) });
    sim.end(0, 0, Exit::Code(78));
    sim.end(1, 0, Exit::Signal(15));
    assert!(matches!(sim.ended(), Ok(Reason::StartupFailed { exit: Some(Exit::Code(78)), .. })));
}

#[test]
fn a_status_that_it_was_killed_with_is_not_the_fatal_one_of_its_own() {
    let timeouts = Config { heartbeat_timeout: Some(10 * SECOND), ready_timeout: Some(5 * SECOND), ..config(1) };
    let mut sim = Sim::new(Config { fatal_exit_codes: vec![1], ..timeouts });
    sim.ready(0, 0);
    while sim.told(0, 0).is_empty() {
        sim.step();
    }
    // As on Windows, where this kills at once.
    sim.end(0, 0, Exit::Code(1));
    assert_eq!(sim.living(), [(0, 1)], "it hung");
    sim.step();
    assert_eq!(sim.told(0, 1), [WorkerSignal::Kill]);
    sim.end(0, 1, Exit::Code(1));
    sim.pass(SECOND);
    assert_eq!(sim.living(), [(0, 2)], "it was late");
    sim.ready(0, 2);
    sim.end(0, 2, Exit::Code(1));
    assert!(matches!(sim.ended(), Ok(Reason::StartupFailed { exit: Some(Exit::Code(1)), .. })), "its own");
}

#[test]
fn who_gives_no_sign_of_life_is_aborted_then_killed_then_restarted() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(2) });
    sim.now += 5 * SECOND;
    sim.policy.handle_beat(sim.now, 0, 0);
    sim.step();
    assert_eq!(sim.told(1, 0), [WorkerSignal::Abort]);
    assert!(sim.told(0, 0).is_empty());
    sim.pass(SECOND);
    assert_eq!(sim.told(1, 0), [WorkerSignal::Abort, WorkerSignal::Kill]);
    sim.bury();
    assert_eq!(sim.living(), [(0, 0), (1, 1)]);
    sim.step();
    assert_eq!(sim.told(0, 0), [WorkerSignal::Abort], "15 s of silence");
}

#[test]
fn beats_of_any_number_wake_the_parent_once_per_timeout() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(50) });
    let first = sim.policy.next_deadline();
    for id in 0..50 {
        sim.now += Duration::from_millis(10);
        sim.policy.handle_beat(sim.now, id, 0);
    }
    assert_eq!(sim.policy.next_deadline(), first);
    sim.step();
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + 10 * SECOND));
}

#[test]
fn a_parent_that_slept_kills_nobody_for_the_silence_meanwhile() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    sim.wake_at(sim.now + 3600 * SECOND);
    assert!(sim.told(0, 0).is_empty());
    sim.step();
    assert_eq!(sim.told(0, 0), [WorkerSignal::Abort], "but a whole period of silence after it counts");
}

#[test]
fn a_parent_that_is_late_by_less_than_half_the_timeout_gives_who_is_silent_one_more_period_and_no_second_one() {
    let timeout = 10 * SECOND;
    let late = |by| {
        let mut sim = Sim::new(Config { heartbeat_timeout: Some(timeout), ..config(1) });
        sim.wake_at(sim.now + timeout + by);
        sim
    };
    assert_eq!(late(SECOND - Duration::from_millis(1)).told(0, 0), [WorkerSignal::Abort]);
    let mut sim = late(SECOND);
    assert!(sim.told(0, 0).is_empty());
    let next = sim.now + timeout;
    sim.wake_at(next + 2 * SECOND);
    assert_eq!(sim.told(0, 0), [WorkerSignal::Abort], "twice silent is hung, though the parent was late again");
    let mut sim = late(5 * SECOND);
    let next = sim.now + timeout;
    sim.wake_at(next + 2 * SECOND);
    assert!(sim.told(0, 0).is_empty(), "what was forgiven leaves no suspicion");
}

#[test]
fn a_parent_that_was_interrupted_gives_who_is_silent_one_more_period_and_a_beat_clears_him() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(2) });
    sim.now += 4 * SECOND;
    sim.policy.handle_interruption(sim.now);
    sim.step();
    assert!(sim.told(0, 0).is_empty() && sim.told(1, 0).is_empty());
    sim.now += 4 * SECOND;
    sim.policy.handle_beat(sim.now, 0, 0);
    sim.step();
    assert!(sim.told(0, 0).is_empty());
    assert_eq!(sim.told(1, 0), [WorkerSignal::Abort]);
    sim.policy.handle_interruption(sim.now);
    sim.step();
    assert!(sim.told(0, 0).is_empty(), "suspected anew, not for the second time");
}

#[test]
fn a_parent_that_was_stopped_gives_who_is_not_ready_the_same_time_once_more_and_no_third_time() {
    let config = Config { ready_timeout: Some(5 * SECOND), ..config(1) };
    let mut sim = Sim::new(config.clone());
    sim.wake_at(sim.now + 6 * SECOND);
    assert!(sim.told(0, 0).is_empty());
    sim.wake_at(sim.now + 6 * SECOND);
    assert!(sim.logged("Startup failed"));
    let mut sim = Sim::new(config.clone());
    sim.policy.handle_interruption(sim.now + SECOND);
    sim.step();
    assert!(sim.told(0, 0).is_empty());
    sim.ready(0, 0);
    sim.policy.handle_interruption(sim.now);
    sim.now += SECOND;
    sim.end(0, 0, Exit::Code(1));
    sim.step();
    assert_eq!(sim.told(0, 1), [WorkerSignal::Kill], "it was before this one's time");
}

#[test]
fn a_replacement_is_asked_for_signs_of_life_as_well() {
    let timeout = Some(Duration::from_millis(300));
    let mut sim = Sim::new(Config { heartbeat_timeout: timeout, ..config(2) });
    let beat = |sim: &mut Sim| {
        sim.now += Duration::from_millis(100);
        for (id, generation) in sim.living().into_iter().filter(|&one| one != (0, 1)) {
            sim.policy.handle_beat(sim.now, id, generation);
        }
    };
    sim.request(Request::Roll);
    while sim.told(0, 1).is_empty() {
        beat(&mut sim);
        sim.step();
    }
    assert_eq!(sim.told(0, 1), [WorkerSignal::Abort]);
    let aborted = sim.now;
    while sim.told(0, 1).len() < 2 {
        beat(&mut sim);
        sim.step();
    }
    assert_eq!((sim.told(0, 1), sim.now - aborted), (&[WorkerSignal::Abort, WorkerSignal::Kill][..], SECOND));
    sim.bury();
    assert!(sim.told(0, 0).is_empty() && sim.told(1, 0).is_empty());
    assert!(sim.logged("Rolling restart aborted"));
}

#[test]
fn a_replacement_that_beats_or_is_forgiven_takes_its_place() {
    let timeout = Some(Duration::from_millis(300));
    let mut sim = Sim::new(Config { heartbeat_timeout: timeout, ..config(1) });
    sim.request(Request::Roll);
    while sim.told(0, 0).is_empty() {
        sim.now += Duration::from_millis(100);
        sim.policy.handle_beat(sim.now, 0, 0);
        sim.policy.handle_beat(sim.now, 0, 1);
        sim.step();
    }
    assert!(sim.told(0, 1).is_empty());
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    sim.now += Duration::from_millis(9_500);
    sim.policy.handle_beat(sim.now, 0, 0);
    sim.request(Request::Roll);
    sim.wake_at(sim.now + 10 * SECOND);
    assert!(sim.told(0, 1).is_empty());
}

#[test]
fn to_be_ready_is_a_sign_of_life() {
    let config = Config { ready_timeout: Some(60 * SECOND), heartbeat_timeout: Some(10 * SECOND), ..config(1) };
    let mut sim = Sim::new(config);
    sim.pass(15 * SECOND);
    sim.ready(0, 0);
    sim.pass(5 * SECOND);
    assert!(sim.told(0, 0).is_empty());
    sim.pass(10 * SECOND);
    assert_eq!(sim.told(0, 0), [WorkerSignal::Abort]);
}

#[test]
fn one_that_hangs_and_is_then_asked_to_go_has_no_more_time_for_it() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    sim.step();
    sim.request(Request::Stop);
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + SECOND), "nor is there anything else to wake up for");
    sim.step();
    assert_eq!(sim.told(0, 0), [WorkerSignal::Abort, WorkerSignal::Stop, WorkerSignal::Kill]);
}

#[test]
fn a_stop_wakes_up_for_nothing_but_its_own_deadline() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(SECOND), max_lifetime: Some(SECOND), ..config(2) });
    sim.request(Request::Stop);
    assert_eq!(sim.policy.next_deadline(), Some(sim.now + GRACEFUL));
}

#[test]
fn a_replacement_that_was_ready_and_dies_while_the_old_one_drains_ends_the_roll_and_is_restarted() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(2) });
    sim.ready(0, 0);
    sim.ready(1, 0);
    sim.request(Request::Roll);
    sim.ready(0, 1);
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop]);
    sim.end(0, 1, Exit::Code(1));
    assert!(sim.logged("Rolling restart aborted"));
    assert_eq!((sim.living(), sim.restarts), (vec![(0, 0), (0, 2), (1, 0)], 1));
    sim.ready(0, 2);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.living(), [(0, 2), (1, 0)]);
}

#[test]
fn the_end_of_an_old_process_that_has_a_replacement_costs_nothing_and_keeps_nobody_from_going_on() {
    for restart in [RestartPolicy::OnFailure, RestartPolicy::Always, RestartPolicy::Never] {
        let mut sim = Sim::new(Config { restart_policy: restart, max_restarts: 1, ..config(1) });
        sim.request(Request::Roll);
        sim.end(0, 0, Exit::Signal(11));
        assert_eq!((sim.living(), sim.told(0, 1)), (vec![(0, 1)], &[][..]), "{restart:?}");
        sim.pass(SECOND);
        assert!(sim.logged("Rolling restart done"), "{restart:?}");
        if restart != RestartPolicy::Never {
            sim.end(0, 1, Exit::Code(1));
            assert_eq!(sim.living(), [(0, 2)], "{restart:?}");
        }
    }
}

#[test]
fn an_old_process_that_is_done_needs_no_replacement() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.told(0, 1), [WorkerSignal::Stop]);
}

#[test]
fn a_roll_asked_for_twice_during_a_replacement_for_age_comes_twice_though_that_fails() {
    let mut sim = Sim::new(Config { max_lifetime: Some(100 * SECOND), ..config(1) });
    sim.step();
    sim.request(Request::Roll);
    sim.request(Request::Roll);
    sim.end(0, 1, Exit::Code(1));
    sim.pass(SECOND);
    sim.end(0, 0, Exit::Code(0));
    sim.pass(SECOND);
    sim.end(0, 2, Exit::Code(0));
    assert_eq!(sim.log.iter().filter(|line| *line == "Rolling restart done").count(), 2);
}

#[test]
fn without_restarts_an_id_that_ends_well_in_the_end_makes_up_for_its_failure() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Never, ..config(3) });
    sim.request(Request::ScaleDown);
    sim.end(2, 0, Exit::Signal(15));
    sim.end(0, 0, Exit::Code(1));
    sim.request(Request::ScaleUp);
    sim.end(0, 1, Exit::Code(0));
    sim.end(1, 0, Exit::Code(0));
    let report = Report::new(sim.ended().expect("an end"), sim.policy.reports());
    assert!(report.is_success(), "who was asked to go may go as he likes: {report:?}");
}

#[test]
fn a_restart_that_a_stop_has_overtaken_is_none() {
    let mut sim = Sim::new(config(1));
    sim.end(0, 0, Exit::Code(1));
    sim.end(0, 1, Exit::Code(1));
    sim.request(Request::Stop);
    let report = Report::new(sim.ended().expect("an end"), sim.policy.reports());
    assert_eq!((report.restarts(), report.workers()[0].processes()), (1, 2));
}

#[test]
fn nobody_is_checked_for_life_before_being_ready() {
    let ready_timeout = Some(60 * SECOND);
    let mut sim = Sim::new(Config { ready_timeout, heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    sim.pass(59 * SECOND);
    assert!(sim.told(0, 0).is_empty());
}

#[test]
fn only_a_kill_that_is_not_ours_may_be_for_want_of_memory() {
    let mut sim = Sim::new(config(2));
    sim.end_with(0, 0, Exit::Signal(9), OutOfMemory::Yes);
    assert!(sim.logged("killed by signal 9 (out of memory), restarting"));
    let (ours, other) = (sim.alive[&(1, 0)].process, sim.alive[&(0, 1)].process);
    sim.request(Request::Stop);
    assert!(!sim.policy.has_killed(ours));
    sim.request(Request::Stop);
    assert!(sim.policy.has_killed(ours) && sim.policy.has_killed(other));
    sim.end(1, 0, Exit::Signal(9));
    assert!(!sim.policy.has_killed(ours), "it is gone");
}

#[test]
fn an_id_that_ended_for_good_during_its_replacement_stays_ended() {
    let mut sim = Sim::new(config(2));
    sim.patience = 0;
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    sim.patience = usize::MAX;
    sim.settle();
    assert_eq!(sim.living(), [(1, 0), (1, 1)], "the roll goes on with the next one");
}

#[test]
fn a_start_that_was_overtaken_leaves_no_second_process_of_its_generation() {
    let mut sim = Sim::new(config(2));
    sim.patience = 0;
    sim.request(Request::Roll);
    sim.end(0, 0, Exit::Code(0));
    sim.request(Request::ScaleUp);
    sim.patience = usize::MAX;
    sim.settle();
    assert_eq!(sim.living(), [(0, 1), (1, 0), (1, 1)]);
}

#[test]
fn a_replacement_that_was_overtaken_leaves_no_second_process_of_its_generation() {
    let mut sim = Sim::new(config(2));
    sim.request(Request::Roll);
    sim.pass(SECOND);
    sim.patience = 0;
    sim.end(0, 0, Exit::Code(0));
    sim.request(Request::ScaleDown);
    sim.request(Request::ScaleUp);
    sim.patience = usize::MAX;
    sim.settle();
    assert_eq!(sim.living(), [(0, 1), (1, 0), (1, 1)]);
    assert_eq!(sim.told(1, 0), [WorkerSignal::Stop]);
}

#[test]
fn a_first_start_that_was_given_up_is_no_first_start_later() {
    let now = some_time();
    let mut policy = Policy::new(config(2), 1, now);
    policy.handle_request(now, Request::ScaleDown);
    let mut started = 0;
    let mut drain = |policy: &mut Policy, full: bool| {
        while let Some(action) = policy.poll_action() {
            match action {
                Action::Start { id, .. } if full => {
                    let refused = crate::sys::CallError { call: "fork", source: std::io::ErrorKind::WouldBlock.into() };
                    policy.handle_start_failed(now, id, refused.into());
                }
                Action::Start { id, generation } => {
                    started += 1;
                    policy.handle_started(now, Process { id, generation, pid: Some(started) });
                }
                Action::Send { message, .. } => panic!("{message:?}"),
                Action::Emit(_) => {}
            }
        }
    };
    drain(&mut policy, false);
    policy.handle_request(now, Request::ScaleUp);
    drain(&mut policy, true);
    assert_eq!((policy.wanted(), policy.poll_end().is_none()), (2, true), "it is tried again");
}

#[test]
fn with_always_a_normal_end_is_followed_by_a_restart_and_with_never_nothing_is() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Always, ..config(1) });
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.living(), [(0, 1)]);
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::Never, ..config(1) });
    sim.end(0, 0, Exit::Code(1));
    let end = sim.ended().expect("an end");
    assert_eq!(end, Reason::Finished);
    assert!(!Report::new(end, sim.policy.reports()).is_success(), "but not a good one");
}

#[test]
fn the_report_tells_of_each_worker_how_often_it_was_restarted_and_how_it_ended() {
    let mut sim = Sim::new(Config { restart_policy: RestartPolicy::OnFailure, ..config(3) });
    sim.end(0, 0, Exit::Signal(9));
    sim.end(0, 1, Exit::Code(0));
    sim.request(Request::Roll);
    sim.pass(SECOND);
    sim.end(1, 0, Exit::Code(0));
    sim.request(Request::Stop);
    for (id, generation) in sim.living() {
        sim.end(id, generation, Exit::Signal(15));
    }
    let report = Report::new(sim.ended().expect("an end"), sim.policy.reports());
    let told = |worker: &WorkerReport| (worker.id(), worker.processes(), worker.restarts(), worker.exit());
    assert_eq!(told(&report.workers()[0]), (0, 2, 1, Some(Exit::Code(0))));
    assert_eq!(told(&report.workers()[1]), (1, 2, 0, Some(Exit::Signal(15))));
    assert_eq!(told(&report.workers()[2]), (2, 2, 0, Some(Exit::Signal(15))));
    assert_eq!((report.restarts(), report.reason()), (1, &Reason::Stopped));
    assert!(report.is_success());
}

#[test]
fn the_last_process_of_an_id_counts_even_if_the_one_before_it_ends_later() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.pass(SECOND);
    sim.request(Request::Stop);
    sim.end(0, 1, Exit::Code(0));
    sim.end(0, 0, Exit::Signal(9));
    assert_eq!(sim.policy.reports()[0].exit(), Some(Exit::Code(0)));
}

#[test]
fn the_end_of_a_replacement_that_never_served_is_not_that_of_the_worker() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.end(0, 1, Exit::Code(7));
    sim.request(Request::Stop);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!(sim.policy.reports()[0].exit(), Some(Exit::Code(0)));
}

#[test]
fn a_worker_ends_the_whole_service_once_however_many_ask() {
    let mut sim = Sim::new(config(3));
    for id in [1, 0, 1, 2] {
        sim.stop_all(id, 0);
    }
    for id in 0..3 {
        assert_eq!(sim.told(id, 0), [WorkerSignal::Stop]);
    }
    assert!(sim.logged("Stopping 3 processes, as child 1 (pid 2) asked"));
    sim.request(Request::Stop);
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop], "an operator's first request is not a second one");
    sim.request(Request::Stop);
    sim.bury();
    assert!(matches!(sim.ended(), Ok(Reason::StoppedByWorker { process: Process { id: 1, .. } })));
}

#[test]
fn an_old_process_is_replaced_before_it_is_asked_to_go_and_no_two_at_a_time() {
    let lifetime = 100 * SECOND;
    let mut sim = Sim::new(Config { max_lifetime: Some(lifetime), ..config(3) });
    sim.pass(74 * SECOND);
    assert_eq!(sim.living(), [(0, 0), (1, 0), (2, 0)], "three quarters at least");
    // One is due after the other, but nobody's turn comes while the first of them drains.
    sim.pass(26 * SECOND);
    assert_eq!(sim.alive.len(), 4);
    assert!(sim.logged("has reached its maximum lifetime, replacing it"));
    for round in 0..3 {
        let old = sim.alive.values().find(|one| one.told == [WorkerSignal::Stop]).expect("somebody who is to go");
        let (id, generation) = (old.process.id, old.process.generation);
        assert_eq!(generation, 0);
        sim.end(id, generation, Exit::Code(0));
        assert_eq!(sim.alive.len(), if round < 2 { 4 } else { 3 }, "{:?}", sim.living());
        sim.pass(SECOND);
    }
    assert_eq!(sim.living(), [(0, 1), (1, 1), (2, 1)]);
    assert_eq!(sim.restarts, 0, "it costs nothing of the budget");
}

#[test]
fn lifetimes_differ_so_that_workers_which_began_together_do_not_end_together() {
    let sim = Sim::new(Config { max_lifetime: Some(100 * SECOND), ..config(50) });
    let mut ages: Vec<u64> =
        sim.policy.slots.iter().map(|slot| (slot.recycle_at().unwrap() - sim.now).as_secs()).collect();
    ages.sort();
    assert!(ages[0] >= 75 && ages[49] <= 100 && ages[49] - ages[0] > 20, "{ages:?}");
}

#[test]
fn an_old_process_whose_replacement_fails_stays_for_one_more_lifetime() {
    let mut sim = Sim::new(Config { max_lifetime: Some(100 * SECOND), ..config(1) });
    sim.step();
    assert_eq!(sim.living(), [(0, 0), (0, 1)]);
    sim.end(0, 1, Exit::Code(1));
    assert!(sim.logged("The replacement of child 0 failed, the old one stays"));
    assert!(sim.told(0, 0).is_empty());
    let again = sim.policy.next_deadline().expect("a second try") - sim.now;
    assert!(again >= 75 * SECOND && again <= 100 * SECOND, "{again:?}");
    sim.full = true;
    sim.step();
    assert_eq!(sim.living(), [(0, 0)], "nor does it go if there is no room for another one");
    sim.full = false;
    sim.step();
    sim.pass(SECOND);
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop]);
}

#[test]
fn a_roll_waits_for_the_process_that_is_being_replaced_for_its_age() {
    let mut sim = Sim::new(Config { max_lifetime: Some(100 * SECOND), ..config(2) });
    sim.step();
    let trial = sim.trials();
    sim.request(Request::Roll);
    assert_eq!(sim.trials(), trial);
    assert_eq!(sim.alive.len(), 3);
    sim.end(trial[0], 1, Exit::Code(1));
    assert!(!sim.logged("Rolling restart aborted"), "it was not the roll's");
    assert_eq!(sim.trials(), [0], "now the roll begins");
}

#[test]
fn one_that_was_aborted_has_failed_even_if_it_says_otherwise() {
    let mut sim = Sim::new(Config { heartbeat_timeout: Some(10 * SECOND), ..config(1) });
    sim.step();
    assert_eq!(sim.told(0, 0), [WorkerSignal::Abort]);
    sim.end(0, 0, Exit::Code(0));
    assert_eq!((sim.living(), sim.restarts), (vec![(0, 1)], 1));
}

#[test]
fn one_that_is_to_be_there_always_and_ends_before_it_was_ever_ready_is_a_startup_failure() {
    let ready_timeout = Some(5 * SECOND);
    let mut sim = Sim::new(Config { ready_timeout, restart_policy: RestartPolicy::Always, ..config(1) });
    sim.end(0, 0, Exit::Code(0));
    assert!(matches!(sim.ended(), Ok(Reason::StartupFailed { exit: Some(Exit::Code(0)), .. })));
    let mut sim = Sim::new(Config { ready_timeout, ..config(1) });
    sim.end(0, 0, Exit::Code(0));
    assert!(matches!(sim.ended(), Ok(Reason::Finished)), "one that is done is done");
}

#[test]
fn one_more_worker_that_cannot_be_brought_up_is_given_up_and_the_others_go_on() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.request(Request::ScaleUp);
    sim.end(1, 0, Exit::Signal(9));
    assert!(sim.logged("Child 1 could not be brought up, giving it up"));
    assert_eq!(sim.log.last().expect("a log"), "Scaled to 1 processes");
    sim.request(Request::ScaleUp);
    sim.pass(5 * SECOND);
    assert_eq!(sim.told(1, 1), [WorkerSignal::Kill], "late");
    sim.bury();
    assert_eq!((sim.living(), sim.policy.wanted(), sim.policy.next_deadline()), (vec![(0, 0)], 1, None));
    sim.request(Request::ScaleUp);
    sim.ready(1, 2);
    sim.end(1, 2, Exit::Code(1));
    assert_eq!(sim.living(), [(0, 0), (1, 3)], "once it was ready, it is one of them");
}

#[test]
fn an_id_whose_process_said_that_it_was_ready_just_as_it_was_retired_was_ready_once() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(1) });
    sim.ready(0, 0);
    sim.request(Request::ScaleUp);
    sim.request(Request::ScaleDown);
    sim.ready(1, 0);
    sim.end(1, 0, Exit::Signal(15));
    sim.request(Request::ScaleUp);
    sim.end(1, 1, Exit::Signal(9));
    assert_eq!(sim.living(), [(0, 0), (1, 2)], "restarted, and not given up");
}

#[test]
fn several_that_are_late_together_are_one_startup_failure() {
    let mut sim = Sim::new(Config { ready_timeout: Some(5 * SECOND), ..config(3) });
    sim.step();
    assert_eq!(sim.log.iter().filter(|line| line.contains("Startup failed")).count(), 1);
}

#[test]
fn one_that_says_it_is_ready_though_nobody_asks_ends_the_wait_for_the_replacement() {
    let mut sim = Sim::new(config(1));
    sim.request(Request::Roll);
    sim.ready(0, 1);
    assert_eq!(sim.told(0, 0), [WorkerSignal::Stop]);
}

#[test]
fn news_of_a_process_that_is_not_known_changes_nothing() {
    let mut sim = Sim::new(config(1));
    let stranger = Process { id: 7, generation: 7, pid: Some(7) };
    sim.policy.handle_exited(sim.now, stranger, Exit::Code(1), OutOfMemory::No);
    sim.policy.handle_exited(sim.now, Process { id: 0, ..stranger }, Exit::Code(1), OutOfMemory::No);
    sim.policy.handle_ready(sim.now, 7, 7);
    sim.policy.handle_beat(sim.now, 7, 7);
    sim.settle();
    assert_eq!((sim.living(), sim.log.len()), (vec![(0, 0)], 1));
}

/// A random life of a random service, and its end.
fn script(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let optional = |rng: &mut SmallRng, seconds| rng.random_bool(0.5).then(|| rng.random_range(1..=seconds) * SECOND);
    let config = Config {
        max_workers: rng.random_range(5..10),
        restart_policy: [RestartPolicy::OnFailure, RestartPolicy::Always, RestartPolicy::Never][rng.random_range(0..3)],
        max_restarts: rng.random_range(0..30),
        restart_window: optional(&mut rng, 60),
        fatal_exit_codes: if rng.random_bool(0.3) { vec![78] } else { Vec::new() },
        ready_timeout: optional(&mut rng, 10),
        heartbeat_timeout: optional(&mut rng, 10),
        max_lifetime: optional(&mut rng, 30),
        drain: rng.random_bool(0.3).then_some(SECOND),
        ..config(rng.random_range(1..5))
    };
    let mut sim = Sim::seeded(config, seed);
    if rng.random_bool(0.5) {
        sim.patience = rng.random_range(0..4);
    }
    for _ in 0..rng.random_range(1..60) {
        random_event(&mut sim, &mut rng);
        assert!(sim.policy.wanted() <= sim.policy.config.max_workers);
    }
    stop_always_ends(&mut sim, &mut rng);
}

fn random_event(sim: &mut Sim, rng: &mut SmallRng) {
    let living = sim.living();
    let someone = (!living.is_empty()).then(|| living[rng.random_range(0..living.len())]);
    match (rng.random_range(0..12), someone) {
        (0..3, Some((id, generation))) => {
            let exits = [Exit::Code(0), Exit::Code(1), Exit::Code(78), Exit::Signal(9), Exit::Signal(11)];
            sim.end(id, generation, exits[rng.random_range(0..exits.len())]);
        }
        (3..6, Some((id, generation))) => sim.ready(id, generation),
        (6, Some((id, generation))) => sim.policy.handle_beat(sim.now, id, generation),
        (7, _) if rng.random_bool(0.5) => sim.full = !sim.full,
        (7, _) => sim.has_work = !sim.has_work,
        (8, _) => {
            let requests = [Request::Roll, Request::Roll, Request::ScaleUp, Request::ScaleDown, Request::Reopen];
            sim.request(requests[rng.random_range(0..requests.len())]);
        }
        (9, Some((id, generation))) if rng.random_bool(0.05) => sim.stop_all(id, generation),
        (9, _) if rng.random_bool(0.1) => sim.request([Request::Stop, Request::QuickStop][rng.random_range(0..2)]),
        (11, _) if rng.random_bool(0.1) => sim.policy.handle_interruption(sim.now),
        (10, _) => sim.now += rng.random_range(0..5000) * Duration::from_millis(1),
        _ => sim.pass(rng.random_range(0..3000) * Duration::from_millis(1)),
    }
    sim.bury();
}

/// Asked, everybody goes or is killed within the graceful time, and the end comes. Some have hearing difficulties.
fn stop_always_ends(sim: &mut Sim, rng: &mut SmallRng) {
    sim.patience = usize::MAX;
    sim.request(Request::Stop);
    for (id, generation) in sim.living() {
        if rng.random_bool(0.5) {
            sim.end(id, generation, Exit::Signal(15));
        }
    }
    sim.pass(GRACEFUL);
    sim.bury();
    let end = sim.ended().expect("no first start was refused");
    let report = Report::new(end, sim.policy.reports());
    assert!(report.restarts() <= sim.restarts, "a stop may come before the start");
    assert_eq!(report.workers().iter().map(WorkerReport::processes).sum::<u32>(), sim.starts);
}

#[test]
fn random_lives_keep_the_promises() {
    for seed in 0..100_000 {
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| script(seed))) {
            eprintln!("as a test:\n\n#[test]\nfn script_{seed}() {{\n    script({seed});\n}}\n");
            panic::resume_unwind(panic);
        }
    }
}
