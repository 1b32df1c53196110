//! [`Sim`]: the processes and the clock that the policy's tests simulate.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use super::observed::{Alive, Observed};
use crate::error::Error;
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
        max_requests: None,
        max_memory: None,
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
        work_in_progress: 0,
    }
}

/// A simulation of the processes and the clock around a policy. A process that the policy starts lives until the test
/// ends it or the policy kills it. Only the test moves the clock.
pub struct Sim {
    pub policy: Policy,
    pub now: Instant,
    pub observed: Observed,
    /// The private memory of each process, in bytes. A process that is not in this map has none.
    pub private: BTreeMap<(usize, u32), u64>,
    /// The memory that each process shares with the parent, in bytes.
    pub shared: u64,
    /// The time that it takes to read the exact size of one process.
    pub reading_time: Duration,
    /// What the policy has read, and when.
    pub readings: Vec<(Instant, MemoryReading)>,
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
            observed: Observed::default(),
            private: BTreeMap::new(),
            shared: 0,
            reading_time: Duration::ZERO,
            readings: Vec::new(),
            actions_per_event: usize::MAX,
        };
        sim.run_actions();
        sim
    }

    /// Executes the actions of the policy, and checks the invariants.
    pub fn run_actions(&mut self) {
        self.observed.delays_actions = self.actions_per_event < usize::MAX;
        self.observed.note_draining(&self.policy);
        if self.policy.actions.is_empty() {
            self.execute_requests();
            self.observed.note_draining(&self.policy);
        }
        for _ in 0..self.actions_per_event {
            match self.policy.poll_action() {
                Some(Action::Start { id, generation }) => self.start(id, generation),
                Some(Action::Send { process, message }) => {
                    self.observed.send(&self.policy, self.now, process, message);
                }
                Some(Action::Abandon { process }) => {
                    if self.observed.abandon(process) {
                        self.policy.handle_exited(self.now, exited(process, Exit::Stale));
                    }
                }
                Some(Action::Emit(event)) => self.observed.note_event(&self.policy, self.now, &event),
                Some(action) => panic!("{action:?} belongs to a service"),
                None => {
                    self.scaling = false;
                    break;
                }
            }
        }
        self.observed.check(&mut self.policy);
    }

    fn execute_requests(&mut self) {
        self.observed.note_requests(&self.policy);
        self.policy.execute_requests(self.now);
    }

    fn start(&mut self, id: usize, generation: u32) {
        assert!(!self.stopping, "child {id} started while stopping");
        if self.refuses_starts {
            return self.policy.handle_start_failed(self.now, id, refusal(id));
        }
        let process = self.observed.start(&self.policy, self.now, id, generation);
        self.policy.handle_started(self.now, process);
    }

    /// Lets an abandoned process exit.
    pub fn end_abandoned(&mut self, at: usize) {
        let process = self.abandoned.swap_remove(at);
        self.policy.handle_abandoned_exited(self.now, process);
        self.run_actions();
    }

    pub fn request(&mut self, request: Request) {
        self.policy.handle_request(self.now, request);
        self.run_actions();
    }

    /// Executes a request although actions of an earlier event are still queued.
    pub fn request_now(&mut self, request: Request) {
        self.policy.handle_request(self.now, request);
        self.execute_requests();
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

    /// Lets a process complete its requests.
    pub fn complete_requests(&mut self, id: usize, generation: u32) {
        let process = self.alive[&(id, generation)].process;
        self.policy.handle_work_done(self.now, process);
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
        let process = self.observed.exit(self.now, id, generation);
        self.policy.handle_exited(self.now, ExitedProcess { process, ..exit });
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
        self.read_memory();
        self.policy.handle_timeout(self.now);
        self.run_actions();
        let next = self.policy.next_deadline();
        assert!(next.is_none_or(|next| next > self.now), "the next deadline is in the future");
    }

    /// Reads what the policy asks for.
    fn read_memory(&mut self) {
        let begun = self.now;
        let Some(reading) = self.policy.memory_reading(begun) else { return };
        self.readings.push((begun, reading));
        match reading {
            MemoryReading::Bounds => {
                for (key, alive) in &self.observed.alive {
                    let bytes = self.private.get(key).copied().unwrap_or(0) + self.shared;
                    self.policy.handle_memory_bound(begun, alive.process, bytes);
                }
            }
            MemoryReading::Exact(process) => {
                self.now += self.reading_time;
                let bytes = self.private.get(&(process.id, process.generation)).copied().unwrap_or(0);
                self.policy.handle_memory(begun, process, bytes);
            }
        }
        self.policy.end_memory_reading(begun, self.now);
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

impl Deref for Sim {
    type Target = Observed;

    fn deref(&self) -> &Observed {
        &self.observed
    }
}

impl DerefMut for Sim {
    fn deref_mut(&mut self) -> &mut Observed {
        &mut self.observed
    }
}

/// Returns the error of a start that the system has refused.
pub fn refusal(id: usize) -> Error {
    let refused = crate::sys::CallError { call: "fork", source: std::io::ErrorKind::WouldBlock.into() };
    Error::from(refused).starting(id)
}

/// Returns a configuration with per-worker sockets. A removed worker then drains its queue before it is asked to stop.
pub fn with_queues(workers: usize) -> Config {
    Config { drain: Some(SECOND), ..config(workers) }
}

/// Returns the ids of the workers whose own queues get new connections.
pub fn serving(sim: &Sim) -> Vec<usize> {
    sim.policy.serving().collect()
}
