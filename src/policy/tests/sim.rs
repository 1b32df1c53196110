//! [`Sim`]: the processes and the clock that the policy's tests simulate.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::RestartReason;
use crate::exit::{Exit, OutOfMemory};
use crate::policy::*;

pub const SECOND: Duration = Duration::from_secs(1);
pub const GRACEFUL: Duration = Duration::from_secs(30);

pub fn config(workers: usize) -> Config {
    Config {
        pool: "",
        workers,
        max_workers: 1_000_000,
        restart_policy: RestartPolicy::OnFailure,
        max_restarts: Some(100),
        restart_window: None,
        startup_failures: None,
        delays: Delays { first: Duration::from_millis(10), max: SECOND },
        fatal_exit_codes: Vec::new(),
        graceful_timeout: GRACEFUL,
        ready_timeout: None,
        heartbeat_timeout: None,
        abort_timeout: SECOND,
        max_lifetime: None,
        max_surge: 1,
        max_unavailable: 0,
        drain: None,
    }
}

/// Returns an arbitrary time at which a test begins. An `Instant` can be created only by reading the clock. No other
/// function of the tests reads the clock.
pub fn some_time() -> Instant {
    Instant::now()
}

/// Returns the facts about the exit of a process that had reached its call and had got no stop request.
pub fn exited(process: Process, exit: Exit) -> ExitedProcess {
    ExitedProcess {
        process,
        exit,
        out_of_memory: OutOfMemory::No,
        reached_call: true,
        stop_noted: false,
        nested_call: false,
    }
}

#[derive(Debug)]
pub struct Alive {
    pub process: Process,
    pub since: Instant,
    pub ready: bool,
    /// Whether the process drains its queue before it is asked to stop.
    pub draining: bool,
    pub sent: Vec<WorkerSignal>,
}

/// A simulation of the processes and the clock around a policy. A process that the policy starts lives until the test
/// ends it or the policy kills it. Only the test moves the clock.
pub struct Sim {
    pub policy: Policy,
    pub now: Instant,
    pub alive: BTreeMap<(usize, u32), Alive>,
    /// Whether the simulated system refuses every start.
    pub refuses_starts: bool,
    pub log: Vec<String>,
    /// The abandoned processes, which SIGKILL does not end.
    pub abandoned: Vec<Process>,
    /// The processes that SIGKILL will not end.
    pub blocked: Vec<(usize, u32)>,
    /// The processes that have exited after a nested call.
    pub nested: Vec<Process>,
    /// The processes of which the kernel is writing a core dump.
    pub dumping: Vec<(usize, u32)>,
    pub starts: u32,
    pub exits: u32,
    pub restarts: u32,
    /// The number of failures in a row of each worker, since the number of workers last changed.
    pub failures: BTreeMap<usize, u32>,
    /// The longest life of a process that has exited.
    pub longest_life: Duration,
    pub stopping: bool,
    /// Whether a rolling restart is in progress.
    pub rolling: bool,
    /// Whether a worker was removed, and the stop signal for its process may still be queued.
    pub scaling: bool,
    /// Whether connections are left in the queue of every draining process.
    pub has_work: bool,
    /// The maximum number of actions that are executed after an event. Further actions wait in the queue.
    pub actions_per_event: usize,
}

impl Sim {
    pub fn new(config: Config) -> Sim {
        Sim::with_seed(config, 1)
    }

    pub fn with_seed(config: Config, seed: u64) -> Sim {
        let now = some_time();
        let policy = Policy::new(config, seed, now);
        let mut sim = Sim {
            policy,
            now,
            alive: BTreeMap::new(),
            refuses_starts: false,
            log: Vec::new(),
            abandoned: Vec::new(),
            blocked: Vec::new(),
            nested: Vec::new(),
            dumping: Vec::new(),
            starts: 0,
            exits: 0,
            restarts: 0,
            failures: BTreeMap::new(),
            longest_life: Duration::ZERO,
            stopping: false,
            rolling: false,
            scaling: false,
            has_work: false,
            actions_per_event: usize::MAX,
        };
        sim.run_actions();
        sim
    }

    /// Executes the actions of the policy, and checks the invariants.
    pub fn run_actions(&mut self) {
        self.note_draining();
        if self.policy.actions.is_empty() {
            self.scaling |= self.policy.requests.scales_down();
            self.policy.execute_requests(self.now);
            self.note_draining();
        }
        for _ in 0..self.actions_per_event {
            match self.policy.poll_action() {
                Some(Action::Start { id, generation }) => self.start(id, generation),
                Some(Action::Send { process, message }) => self.send(process, message),
                Some(Action::Abandon { process }) => self.abandon(process),
                Some(Action::Emit(event)) => self.note_event(event),
                None => {
                    self.scaling = false;
                    break;
                }
            }
        }
        let deadline = self.policy.slots.iter().filter_map(Slot::deadline).min();
        assert_eq!(self.policy.deadlines.next(&self.policy.slots), deadline, "the queue finds the earliest deadline");
        let ages = self.policy.slots.iter().enumerate().filter_map(|(id, slot)| Some((slot.recycle_at()?, id)));
        assert_eq!(
            self.policy.deadlines.next_recycling(&self.policy.slots),
            ages.min(),
            "the queue finds the oldest process"
        );
        assert_eq!(self.policy.wanted(), self.policy.count_wanted(), "the cached number is right");
        let unavailable = self.policy.slots.iter().filter(|slot| slot.is_unavailable()).count();
        let is_counted = self.policy.stop.is_some() || self.policy.unavailable == unavailable;
        assert!(is_counted, "{unavailable} workers are unavailable");
        let max = self.policy.config.max_restarts;
        let is_within = max.is_none_or(|max| self.restarts <= max);
        assert!(self.policy.config.restart_window.is_some() || is_within, "{} restarts", self.restarts);
        assert_eq!(self.starts, self.exits + self.alive.len() as u32);
        let queued = self.policy.actions.len();
        let max_queued = 8 * (self.policy.slots.len() + self.alive.len()) + 8;
        assert!(queued <= max_queued, "{queued} actions are queued for {} processes", self.alive.len());
    }

    pub fn note_draining(&mut self) {
        for Process { id, generation, .. } in self.policy.slots.iter().flat_map(Slot::draining) {
            self.alive.get_mut(&(id, generation)).expect("alive").draining = true;
        }
    }

    pub fn start(&mut self, id: usize, generation: u32) {
        assert!(!self.stopping, "child {id} started while stopping");
        if self.refuses_starts {
            let refused = crate::sys::CallError { call: "fork", source: std::io::ErrorKind::WouldBlock.into() };
            return self.policy.handle_start_failed(self.now, id, Error::from(refused).starting(id));
        }
        self.starts += 1;
        let process = Process { pool: "", id, generation, pid: Some(self.starts) };
        let alive = Alive { process, since: self.now, ready: false, draining: false, sent: Vec::new() };
        let before = self.alive.insert((id, generation), alive);
        assert!(before.is_none(), "generation {generation} of child {id} started twice");
        let of_this_id = self.alive.range((id, 0)..=(id, u32::MAX)).count();
        let max_surge = self.policy.config.max_surge;
        let most = if max_surge == 0 { 1 } else { 2 };
        assert!(of_this_id <= most, "{of_this_id} processes of child {id}");
        let trials = self.trials();
        assert!(trials.len() <= max_surge, "children {trials:?} are replaced at the same time");
        self.policy.handle_started(self.now, process);
    }

    /// Returns the ids of the workers that have two processes, neither of which drains or was asked to stop.
    pub fn trials(&self) -> Vec<usize> {
        let ids: Vec<usize> = {
            let staying = self.alive.values().filter(|one| one.sent.is_empty() && !one.draining);
            staying.map(|one| one.process.id).collect()
        };
        ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect()
    }

    pub fn send(&mut self, process: Process, message: WorkerSignal) {
        // Sends nothing to a process that has already exited.
        let Some(alive) = self.alive.get_mut(&(process.id, process.generation)) else { return };
        assert_eq!(alive.process, process);
        assert!(message == WorkerSignal::Reopen || !alive.sent.contains(&message), "{process} got {message:?} twice");
        alive.sent.push(message);
        let draining = alive.draining;
        let newer = self.alive.range((process.id, process.generation + 1)..=(process.id, u32::MAX)).next_back();
        if let (WorkerSignal::Stop, false, Some((_, newer))) =
            (message, self.stopping || self.scaling || draining, newer)
        {
            let settled = self.policy.config.ready_timeout.is_none() && self.now >= newer.since + SECOND;
            assert!(newer.ready || settled, "{process} is stopped for {}, which is not ready", newer.process);
        }
        if message == WorkerSignal::Stop && self.policy.replacements.begins_with_stop(process.id) {
            self.check_ready_workers(process);
        }
    }

    /// Checks that enough workers are ready after this process has been asked to stop before its replacement starts.
    fn check_ready_workers(&self, process: Process) {
        // If actions are delayed, other workers may have failed since the policy has queued this one.
        if self.policy.config.ready_timeout.is_none() || self.actions_per_event < usize::MAX {
            return;
        }
        let is_ready = |alive: &&Alive| alive.ready && alive.sent.iter().all(|&sent| sent == WorkerSignal::Reopen);
        let ready: BTreeSet<usize> = self.alive.values().filter(is_ready).map(|alive| alive.process.id).collect();
        let enough = self.policy.wanted().saturating_sub(self.policy.config.max_unavailable);
        assert!(ready.len() >= enough, "only {ready:?} are ready after the stop of {process}");
    }

    fn abandon(&mut self, process: Process) {
        // A process that has exited meanwhile is not abandoned.
        let Some(alive) = self.alive.remove(&(process.id, process.generation)) else { return };
        assert!(alive.sent.contains(&WorkerSignal::Kill), "{process} was not killed");
        self.exits += 1;
        self.abandoned.push(process);
        let of_this_id = self.abandoned.iter().filter(|other| other.id == process.id).count();
        assert!(of_this_id <= 3, "{of_this_id} abandoned processes of child {}", process.id);
        self.policy.handle_exited(self.now, exited(process, Exit::Stale));
    }

    /// Lets an abandoned process exit.
    pub fn end_abandoned(&mut self, at: usize) {
        let process = self.abandoned.swap_remove(at);
        self.policy.handle_abandoned_exited(self.now, process);
        self.run_actions();
    }

    pub fn note_event(&mut self, event: Event) {
        match event {
            Event::Restarting { reason: RestartReason::Failure, process, .. } => {
                assert!(!self.nested.contains(&process), "{process} would make the same call again");
                self.restarts += 1;
                self.note_failure(process.id);
            }
            Event::Restarting { process, .. } => drop(self.failures.remove(&process.id)),
            Event::Scaled { .. } => self.failures.clear(),
            Event::StartupFailed { failures: Some(failures), .. } => {
                assert_eq!((Some(failures), self.policy.config.ready_timeout), (self.startup_failures(), None));
                assert!(!self.is_sound(), "a process has lived for 10 s");
            }
            Event::Stopping { .. } => {
                self.stopping = true;
                self.rolling = false;
            }
            Event::RollingRestartStarted { .. } => {
                assert!(!self.rolling, "only one rolling restart is in progress");
                self.rolling = true;
            }
            Event::RollingRestartFinished { .. } | Event::RollingRestartAborted { .. } => {
                assert!(self.rolling, "a rolling restart ends once");
                self.rolling = false;
            }
            _ => {}
        }
        self.log.push(event.to_string());
    }

    fn startup_failures(&self) -> Option<u32> {
        self.policy.config.startup_failures.filter(|_| self.policy.config.ready_timeout.is_none())
    }

    /// Checks that a worker is not restarted after too many failures in a row.
    fn note_failure(&mut self, id: usize) {
        let is_sound = self.is_sound();
        let limit = self.startup_failures().filter(|_| !is_sound);
        let failures = self.failures.entry(id).or_default();
        *failures += 1;
        assert!(limit.is_none_or(|limit| *failures < limit), "{failures} failures of child {id} in a row");
    }

    /// Returns whether a process has lived for 10 s.
    fn is_sound(&self) -> bool {
        let lives = self.alive.values().map(|alive| self.now - alive.since).chain([self.longest_life]);
        lives.max() >= Some(10 * SECOND)
    }

    pub fn request(&mut self, request: Request) {
        self.policy.handle_request(self.now, request);
        self.run_actions();
    }

    /// Executes a request although actions of an earlier event are still queued.
    pub fn request_now(&mut self, request: Request) {
        self.policy.handle_request(self.now, request);
        self.scaling |= self.policy.requests.scales_down();
        self.policy.execute_requests(self.now);
        self.run_actions();
    }

    pub fn ready(&mut self, id: usize, generation: u32) {
        self.alive.get_mut(&(id, generation)).expect("alive").ready = true;
        self.policy.handle_ready(self.now, id, generation);
        self.run_actions();
    }

    pub fn retire(&mut self, id: usize, generation: u32) {
        let process = self.alive[&(id, generation)].process;
        self.policy.handle_retire(self.now, process);
        self.run_actions();
    }

    pub fn stop_all(&mut self, id: usize, generation: u32) {
        let process = self.alive[&(id, generation)].process;
        self.policy.handle_stop_all(self.now, process);
        self.run_actions();
    }

    pub fn end(&mut self, id: usize, generation: u32, exit: Exit) {
        self.end_with(id, generation, exit, OutOfMemory::No);
    }

    pub fn end_with(&mut self, id: usize, generation: u32, exit: Exit, out_of_memory: OutOfMemory) {
        let process = self.alive[&(id, generation)].process;
        self.end_process(id, generation, ExitedProcess { out_of_memory, ..exited(process, exit) });
    }

    /// Ends a process with status 0 after a stop request that neither the parent nor the terminal made.
    pub fn end_on_request(&mut self, id: usize, generation: u32) {
        let process = self.alive[&(id, generation)].process;
        self.end_process(id, generation, ExitedProcess { stop_noted: true, ..exited(process, Exit::Code(0)) });
    }

    /// Ends a spawned worker that has not reached its call.
    pub fn end_before_call(&mut self, id: usize, generation: u32, exit: Exit) {
        let process = self.alive[&(id, generation)].process;
        self.end_process(id, generation, ExitedProcess { reached_call: false, ..exited(process, exit) });
    }

    /// Ends a process that has called a function that starts workers.
    pub fn end_after_nested_call(&mut self, id: usize, generation: u32, exit: Exit) {
        let process = self.alive[&(id, generation)].process;
        self.nested.push(process);
        self.end_process(id, generation, ExitedProcess { nested_call: true, ..exited(process, exit) });
    }

    pub fn end_process(&mut self, id: usize, generation: u32, exit: ExitedProcess) {
        let alive = self.alive.remove(&(id, generation)).expect("alive");
        self.exits += 1;
        self.longest_life = self.longest_life.max(self.now - alive.since);
        self.policy.handle_exited(self.now, ExitedProcess { process: alive.process, ..exit });
        self.run_actions();
    }

    /// Moves the clock to the next deadline, and lets the policy handle it.
    pub fn step(&mut self) {
        let deadline = self.policy.next_deadline().expect("a deadline");
        self.wake_at(deadline);
    }

    pub fn wake_at(&mut self, at: Instant) {
        self.now = self.now.max(at);
        self.policy.extend_deadlines(self.now);
        for id in self.policy.draining(self.now) {
            if self.has_work {
                self.policy.handle_work_left(self.now, id);
            }
        }
        for process in self.policy.kills_due(self.now) {
            if self.dumping.contains(&(process.id, process.generation)) {
                self.policy.handle_core_dump(self.now, process);
            }
        }
        self.policy.handle_timeout(self.now);
        self.run_actions();
        let next = self.policy.next_deadline();
        assert!(next.is_none_or(|next| next > self.now), "the next deadline is in the future");
    }

    /// Moves the clock by `time`. On the way, lets the policy handle every deadline at its time.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(deadline) = self.policy.next_deadline().filter(|&deadline| deadline <= until) {
            self.wake_at(deadline);
        }
        self.now = until;
    }

    pub fn sent(&self, id: usize, generation: u32) -> &[WorkerSignal] {
        &self.alive[&(id, generation)].sent
    }

    pub fn alive(&self) -> Vec<(usize, u32)> {
        self.alive.keys().copied().collect()
    }

    pub fn max_workers(&self) -> usize {
        self.policy.config.max_workers
    }

    /// Returns, for each worker, the time at which its process must be replaced. `None` stands for a
    /// process that cannot be replaced now.
    pub fn recycle_times(&self) -> Vec<Option<Instant>> {
        self.policy.slots.iter().map(Slot::recycle_at).collect()
    }

    pub fn logged(&self, line: &str) -> bool {
        self.log.iter().any(|logged| logged.contains(line))
    }

    /// Ends every process to which the policy has sent SIGKILL.
    pub fn exit_killed(&mut self) {
        let is_killed = |alive: &Alive| alive.sent.contains(&WorkerSignal::Kill);
        let killed: Vec<_> = self.alive.iter().filter(|(_, alive)| is_killed(alive)).map(|(&key, _)| key).collect();
        let killed: Vec<_> = killed.into_iter().filter(|key| !self.blocked.contains(key)).collect();
        for (id, generation) in killed {
            self.end(id, generation, Exit::Signal(9));
        }
    }

    pub fn outcome(&mut self) -> Outcome {
        assert!(self.alive.is_empty(), "{:?}", self.alive);
        self.policy.poll_end().expect("the end")
    }
}

/// Returns a configuration with per-worker sockets. A removed worker then drains its queue before it is asked to stop.
pub fn with_queues(workers: usize) -> Config {
    Config { drain: Some(SECOND), ..config(workers) }
}

/// Returns the ids of the workers whose own queues get new connections.
pub fn serving(sim: &Sim) -> Vec<usize> {
    sim.policy.serving().collect()
}
