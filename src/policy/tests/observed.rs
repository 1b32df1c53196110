//! [`Observed`]: the processes of one pool that a simulation runs, and the invariants of the pool.

use std::collections::{BTreeMap, BTreeSet};

use super::sim::SECOND;
use crate::event::{RecycleReason, RestartReason};
use crate::policy::*;

#[derive(Debug)]
pub struct Alive {
    pub process: Process,
    pub since: Instant,
    pub ready: bool,
    /// Whether the process drains its queue before it is asked to stop.
    pub draining: bool,
    pub sent: Vec<WorkerSignal>,
}

/// The processes of one pool that a simulation runs, and the facts about the pool that it has observed.
#[derive(Default)]
pub struct Observed {
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
    /// The number of these restarts that an earlier program has made.
    restarts_before: u32,
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
    /// Whether the simulation leaves actions in the queue after an event.
    pub delays_actions: bool,
}

impl Observed {
    /// Records which processes drain.
    pub fn note_draining(&mut self, policy: &Policy) {
        for Process { id, generation, .. } in policy.slots.iter().flat_map(Slot::draining) {
            self.alive.get_mut(&(id, generation)).expect("alive").draining = true;
        }
    }

    /// Records the requests that the policy is about to execute.
    pub fn note_requests(&mut self, policy: &Policy) {
        self.scaling |= policy.requests.scales_down();
    }

    /// Records that another program takes over. `starts_again` is whether it starts the pool again, which has failed.
    pub fn adopt(&mut self, starts_again: bool) {
        self.rolling = false;
        self.restarts_before = self.restarts;
        self.failures.clear();
        // The new program does not count failures in a row from before.
        self.longest_life = self.longest_life.max(10 * SECOND);
        self.stopping &= !starts_again;
        // The new program may have fewer workers in its settings.
        self.scaling = true;
    }

    /// Records that the policy has started a process.
    pub fn start(&mut self, policy: &Policy, now: Instant, id: usize, generation: u32) -> Process {
        self.starts += 1;
        let process = Process { pool: policy.config.pool, id, generation, pid: Some(self.starts) };
        let alive = Alive { process, since: now, ready: false, draining: false, sent: Vec::new() };
        let before = self.alive.insert((id, generation), alive);
        assert!(before.is_none(), "generation {generation} of child {id} started twice");
        let of_this_id = self.alive.range((id, 0)..=(id, u32::MAX)).count();
        let max_surge = policy.config.max_surge;
        let most = if max_surge == 0 { 1 } else { 2 };
        assert!(of_this_id <= most, "{of_this_id} processes of child {id}");
        let trials = self.trials();
        assert!(trials.len() <= max_surge, "children {trials:?} are replaced at the same time");
        process
    }

    /// Returns the ids of the workers that have two processes, neither of which drains or was asked to stop.
    pub fn trials(&self) -> Vec<usize> {
        let ids: Vec<usize> = {
            let staying = self.alive.values().filter(|one| one.sent.is_empty() && !one.draining);
            staying.map(|one| one.process.id).collect()
        };
        ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect()
    }

    /// Records a signal of the policy to a process.
    pub fn send(&mut self, policy: &Policy, now: Instant, process: Process, message: WorkerSignal) {
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
            let settled = policy.config.ready_timeout.is_none() && now >= newer.since + SECOND;
            assert!(newer.ready || settled, "{process} is stopped for {}, which is not ready", newer.process);
        }
        if message == WorkerSignal::Stop && policy.replacements.begins_with_stop(process.id) {
            self.check_ready_workers(policy, process);
        }
    }

    /// Checks that enough workers are ready after this process has been asked to stop before its replacement starts.
    fn check_ready_workers(&self, policy: &Policy, process: Process) {
        // If actions are delayed, other workers may have failed since the policy has queued this one.
        if policy.config.ready_timeout.is_none() || self.delays_actions {
            return;
        }
        let is_ready = |alive: &&Alive| alive.ready && alive.sent.iter().all(|&sent| sent == WorkerSignal::Reopen);
        let ready: BTreeSet<usize> = self.alive.values().filter(is_ready).map(|alive| alive.process.id).collect();
        let enough = policy.wanted().saturating_sub(policy.config.max_unavailable);
        assert!(ready.len() >= enough, "only {ready:?} are ready after the stop of {process}");
    }

    /// Records that the policy abandons a process. Returns `false` if the process has exited meanwhile.
    #[must_use]
    pub fn abandon(&mut self, process: Process) -> bool {
        // A process that has exited meanwhile is not abandoned.
        let Some(alive) = self.alive.remove(&(process.id, process.generation)) else { return false };
        assert!(alive.sent.contains(&WorkerSignal::Kill), "{process} was not killed");
        self.exits += 1;
        self.abandoned.push(process);
        let of_this_id = self.abandoned.iter().filter(|other| other.id == process.id).count();
        assert!(of_this_id <= 3, "{of_this_id} abandoned processes of child {}", process.id);
        true
    }

    /// Records an event of the policy.
    pub fn note_event(&mut self, policy: &Policy, now: Instant, event: &Event) {
        match *event {
            Event::Restarting { reason: RestartReason::Failure, process, .. } => {
                assert!(!self.nested.contains(&process), "{process} would make the same call again");
                self.restarts += 1;
                self.note_failure(policy, now, process.id);
            }
            Event::Restarting { process, .. } => drop(self.failures.remove(&process.id)),
            Event::Recycling { process, reason } => self.check_age(now, process, reason),
            Event::Scaled { .. } => self.failures.clear(),
            Event::StartupFailed { failures: Some(failures), .. } => {
                assert_eq!((Some(failures), policy.config.ready_timeout), (startup_failures(policy), None));
                assert!(!self.is_sound(now), "a process has lived for 10 s");
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

    /// Checks that processes that are worn out at their start are not replaced without a pause.
    fn check_age(&self, now: Instant, process: Process, reason: RecycleReason) {
        if matches!(reason, RecycleReason::Lifetime | RecycleReason::Requested) {
            return;
        }
        // A process that has exited in the meantime is not checked.
        let age = self.alive.get(&(process.id, process.generation)).map(|alive| now - alive.since);
        assert!(age.is_none_or(|age| age >= SECOND), "{process} {reason} after {age:?}");
    }

    /// Checks that a worker is not restarted after too many failures in a row.
    fn note_failure(&mut self, policy: &Policy, now: Instant, id: usize) {
        let is_sound = self.is_sound(now);
        let limit = startup_failures(policy).filter(|_| !is_sound);
        let failures = self.failures.entry(id).or_default();
        *failures += 1;
        assert!(limit.is_none_or(|limit| *failures < limit), "{failures} failures of child {id} in a row");
    }

    /// Returns whether a process has lived for 10 s.
    fn is_sound(&self, now: Instant) -> bool {
        let lives = self.alive.values().map(|alive| now - alive.since).chain([self.longest_life]);
        lives.max() >= Some(10 * SECOND)
    }

    /// Records the exit of a process, and returns the process.
    pub fn exit(&mut self, now: Instant, id: usize, generation: u32) -> Process {
        let alive = self.alive.remove(&(id, generation)).expect("alive");
        self.exits += 1;
        self.longest_life = self.longest_life.max(now - alive.since);
        alive.process
    }

    /// Checks the invariants. Call this after actions have been executed.
    pub fn check(&self, policy: &mut Policy) {
        // The first starts need no deadline, because the policy returns them before the supervisor waits.
        if policy.first_starts.is_empty() {
            let deadline = policy.slots.iter().filter_map(Slot::deadline).min();
            assert_eq!(policy.deadlines.next(&policy.slots), deadline, "the queue finds the earliest deadline");
        }
        let ages = policy.slots.iter().enumerate().filter_map(|(id, slot)| Some((slot.recycle_at()?, id)));
        assert_eq!(policy.deadlines.next_recycling(&policy.slots), ages.min(), "the queue finds the oldest process");
        assert_eq!(policy.wanted(), policy.count_wanted(), "the cached number is right");
        let unavailable = policy.slots.iter().filter(|slot| slot.is_unavailable()).count();
        let is_counted = policy.stop.is_some() || policy.unavailable == unavailable;
        assert!(is_counted, "{unavailable} workers are unavailable");
        let max = policy.config.max_restarts;
        let is_within = max.is_none_or(|max| self.restarts - self.restarts_before <= max);
        assert!(policy.config.restart_window.is_some() || is_within, "{} restarts", self.restarts);
        assert_eq!(self.starts, self.exits + self.alive.len() as u32);
        let shown = || policy.facts().filter_map(|facts| facts.process);
        let is_alive = |process: Process| self.alive.contains_key(&(process.id, process.generation));
        assert!(shown().count() == self.alive.len() && shown().all(is_alive), "the status shows every process");
        let queued = policy.actions.len();
        let max_queued = 8 * (policy.slots.len() + self.alive.len()) + 8;
        assert!(queued <= max_queued, "{queued} actions are queued for {} processes", self.alive.len());
    }
}

fn startup_failures(policy: &Policy) -> Option<u32> {
    policy.config.startup_failures.filter(|_| policy.config.ready_timeout.is_none())
}
