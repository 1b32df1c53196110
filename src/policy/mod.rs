//! The policy of the supervisor. The policy receives events, and returns actions and the next deadline.
//!
//! The policy makes no system calls and does not read the clock. The caller passes the time and a random seed as
//! arguments. A [`Process`] value only identifies a process. So a test can simulate the whole life of a service without
//! processes and without waiting, and can repeat a run exactly.
//!
//! [`Policy`] has four kinds of methods:
//!
//! - `handle_*` methods take an event and the time at which the event happened.
//! - [`Policy::poll_action`] returns the next action to execute. After each event, the caller repeats this call until
//!   the result is `None`.
//! - [`Policy::next_deadline`] returns the time at which to call [`Policy::handle_timeout`] if no event happens
//!   earlier.
//! - [`Policy::poll_end`] returns the outcome of the pool once the pool has ended.
//!
//! A [`Policy`] decides about one pool. A [`Service`] owns the policies of all pools of a service, and has the same
//! kinds of methods. It decides about everything that concerns several pools.
//!
//! If the system refuses to start a process, the caller reports this as an event ([`Policy::handle_start_failed`]). So
//! a stop request that arrives in the meantime takes effect before the policy tries the start again.

#![cfg_attr(
    not(all(target_os = "linux", not(taskfork_portable))),
    allow(dead_code, reason = "only an upgrade needs it")
)]

mod action;
mod adopt;
mod backoff;
mod budget;
mod child;
mod deadline;
mod deadlines;
mod exit;
mod heartbeat;
mod kill_deadline;
mod memory;
mod replacement;
mod request;
mod rolling_restart;
mod scale;
mod service;
mod slot;
mod snapshot;
mod status;
mod stop;
mod stopping_child;
#[cfg(test)]
mod tests;
mod trial;
mod upgrade;
mod verdict;

use std::cell::Cell;
use std::ops::Range;
use std::time::{Duration, Instant};

use rand::{SeedableRng, rngs::SmallRng};

use action::ActionQueue;
pub(crate) use action::{Action, WorkerSignal};
pub(crate) use backoff::Delays;
use budget::Budget;
use deadline::Deadline;
use deadlines::DeadlineQueue;
pub(crate) use exit::ExitedProcess;
use memory::MemoryChecks;
pub(crate) use memory::{MemoryReading, MemorySample};
use replacement::Replacements;
pub(crate) use request::{PendingRequests, Request};
use rolling_restart::RollingRestart;
use scale::ScalingLimited;
pub(crate) use service::{PoolConfig, Service};
use slot::{BringUp, ReadyTimeout, Slot, Timeout};
pub(crate) use snapshot::{ChildRole, ChildSnapshot, PoolCondition, PoolSnapshot, ServiceSnapshot, SlotSnapshot};
pub(crate) use status::WorkerFacts;
use stop::{StartupFailure, Stop};
use trial::{Trial, TrialFailure};
pub(crate) use upgrade::{TrialPool, UpgradeConfig};

use crate::error::{Error, Result};
use crate::event::Event;
use crate::exit::Process;
use crate::report::{Reason, WorkerReport};

/// The settings that the policy uses. The module `prefork` sets the defaults and checks the values.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The name of the pool. Empty if the service has one pool without a name.
    pub pool: &'static str,
    pub workers: usize,
    /// The largest number of workers that scaling up can reach.
    pub max_workers: usize,
    pub restart_policy: RestartPolicy,
    /// The restart limit, or `None` if there is none.
    pub max_restarts: Option<u32>,
    pub restart_window: Option<Duration>,
    /// Without a ready timeout, this many failures of one worker in a row are a startup failure, until a process of the
    /// pool has lived for 10 s. `None` if failures in a row are never a startup failure.
    pub startup_failures: Option<u32>,
    pub delays: Delays,
    pub fatal_exit_codes: Vec<i32>,
    pub graceful_timeout: Duration,
    pub ready_timeout: Option<Duration>,
    pub heartbeat_timeout: Option<Duration>,
    pub abort_timeout: Duration,
    pub max_lifetime: Option<Duration>,
    /// The largest number of units of work after which a process is replaced.
    pub max_requests: Option<u64>,
    /// The private memory, in bytes, above which a process is replaced.
    pub max_memory: Option<u64>,
    /// How many workers may have a new process besides their old one, while they are being replaced.
    pub max_surge: usize,
    /// How many workers may have no ready process because they are being replaced.
    pub max_unavailable: usize,
    /// The time between two checks of a removed worker's queue, if each worker has its own sockets. The first check
    /// comes this long after the removal. The worker is asked to stop at the first check that finds the queue empty, or
    /// after `graceful_timeout`.
    pub drain: Option<Duration>,
}

/// The rule that decides which exits of a worker lead to a restart. An exit that the parent has requested never leads
/// to a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RestartPolicy {
    /// Every abnormal exit leads to a restart: an exit status other than 0, or death by a signal. A worker that exits
    /// with status 0 is not restarted. There is one exception: a worker that has obeyed a stop request from another
    /// process than the parent ([`RestartReason::StopRequest`](crate::RestartReason::StopRequest)).
    #[default]
    OnFailure,
    /// Every exit leads to a restart. A restart after status 0 does not count towards the restart limit. It follows at
    /// once if the process lived for at least a second, and otherwise after the
    /// [backoff](crate::Prefork::restart_backoff).
    Always,
    /// No exit leads to a restart, not even one after a stop request from another process. The other workers continue.
    /// After all workers have exited, [`Report::is_success`](crate::Report::is_success) returns whether all of them
    /// exited normally.
    Never,
}

/// The way in which a pool or a service ended. `Err` if the system refused the first start of one of the initial
/// workers. The policy has then stopped the other workers.
pub(crate) type Outcome = Result<Reason>;

#[derive(Debug)]
pub(crate) struct Policy {
    config: Config,
    /// One slot per worker, indexed by worker id. The slots of workers that have not been started yet may be missing.
    slots: Vec<Slot>,
    deadlines: DeadlineQueue,
    /// The cached number of workers that should run. `None` if the workers must be counted again.
    wanted: Cell<Option<usize>>,
    begun: Instant,
    budget: Budget,
    /// Whether a process of the pool is known to have lived for [`SOUND_LIFE`](backoff::SOUND_LIFE).
    is_sound: bool,
    rng: SmallRng,
    seed: u64,
    roll: RollingRestart,
    replacements: Replacements,
    /// Whether no replacement may begin, because an upgrade is in progress.
    is_held: bool,
    trial: Option<Box<Trial>>,
    /// The number of workers in `slots` that should run but have no ready process.
    unavailable: usize,
    stop: Option<Stop>,
    check_beats_at: Option<Instant>,
    /// The time between two checks of the heartbeats.
    beat_interval: Option<Duration>,
    /// The readings of the workers' memory. `None` without a `max_memory`.
    memory: Option<Box<MemoryChecks>>,
    /// The time of the last wait that ended early for no known reason. The parent, and the workers too, may have been
    /// stopped (SIGSTOP) until then.
    interrupted_at: Option<Instant>,
    /// The ids of the workers that have not been started yet. [`Policy::poll_action`] returns their starts one by one,
    /// whenever no other action is queued. So all other actions come before these starts. The starts are not put into
    /// `actions`, because that queue would then fill more memory: every page that the parent writes between two forks
    /// is copied for each worker (copy-on-write).
    first_starts: Range<usize>,
    requests: PendingRequests,
    /// The last reported request for too many or too few workers.
    scaling_limited: Option<ScalingLimited>,
    actions: ActionQueue,
}

impl Policy {
    pub fn new(config: Config, seed: u64, now: Instant) -> Policy {
        let mut actions = ActionQueue::default();
        actions.emit(Event::Starting { pool: config.pool, workers: config.workers });
        Policy {
            budget: Budget::new(config.max_restarts, config.restart_window),
            is_sound: false,
            check_beats_at: config.heartbeat_timeout.map(|timeout| now + timeout),
            beat_interval: config.heartbeat_timeout,
            memory: config.max_memory.map(|limit| Box::new(MemoryChecks::new(limit, now))),
            interrupted_at: None,
            rng: SmallRng::seed_from_u64(seed),
            seed,
            roll: RollingRestart::default(),
            replacements: Replacements::default(),
            is_held: false,
            trial: None,
            unavailable: 0,
            stop: None,
            slots: Vec::with_capacity(config.workers),
            deadlines: DeadlineQueue::new(),
            wanted: Cell::new(None),
            begun: now,
            first_starts: 0..config.workers,
            requests: PendingRequests::default(),
            scaling_limited: None,
            config,
            actions,
        }
    }

    /// Returns the next action, or `None` if there is nothing to do.
    #[must_use]
    #[cfg(test)]
    pub fn poll_action(&mut self) -> Option<Action> {
        self.poll_queued().or_else(|| self.poll_first_start())
    }

    /// Returns the next action in the queue.
    fn poll_queued(&mut self) -> Option<Action> {
        self.actions.pop()
    }

    /// Returns the first start of the next worker that has not been started yet. Call this when the queue is empty.
    ///
    /// These starts are not put into the queue, because the pages of the queue would be copied for each worker
    /// (copy-on-write).
    fn poll_first_start(&mut self) -> Option<Action> {
        self.actions.shrink();
        loop {
            let id = self.first_starts.next()?;
            if id == self.slots.len() {
                self.push_initial();
            }
            let start = self.slots[id].start_initial();
            if start.is_some() {
                return start;
            }
        }
    }

    /// Creates the missing slots of the workers that have not been started yet.
    fn complete_slots(&mut self) {
        while self.slots.len() < self.first_starts.end {
            self.push_initial();
        }
    }

    fn push_initial(&mut self) {
        let id = self.slots.len();
        self.slots.push(Slot::initial(id, self.begun, &self.config));
        self.update_availability(id);
    }

    /// Returns the outcome if the pool has ended: no process is alive, none will be started, and every action has
    /// been taken.
    #[must_use]
    pub fn poll_end(&mut self) -> Option<Outcome> {
        if !self.actions.is_empty() || !self.is_over() {
            return None;
        }
        Some(self.stop.take().map_or(Ok(Reason::Finished), |stop| stop.outcome))
    }

    /// Returns whether no process is alive and none will be started, unless a request adds a worker.
    fn is_over(&self) -> bool {
        self.first_starts.is_empty() && self.slots.iter().all(Slot::is_over)
    }

    /// Returns the reports of all workers, ordered by worker id.
    pub fn reports(&self) -> Vec<WorkerReport> {
        self.slots.iter().map(Slot::report).collect()
    }

    /// Returns whether the policy has sent SIGKILL to this process. Must be called before [`Policy::handle_exited`],
    /// which removes the process.
    pub fn has_killed(&self, process: Process) -> bool {
        let Some(slot) = self.slots.get(process.id) else { return false };
        slot.processes().any(|known| known == process) && !slot.unkilled_processes().any(|known| known == process)
    }

    /// Returns the processes that get SIGKILL at the next call of [`Policy::handle_timeout`], unless the supervisor
    /// calls [`Policy::handle_core_dump`] before.
    pub fn kills_due(&self, now: Instant) -> Vec<Process> {
        self.slots.iter().flat_map(|slot| slot.kills_due(now)).collect()
    }

    /// Delays the SIGKILL of a process, because the kernel is writing a core dump of it.
    pub fn handle_core_dump(&mut self, now: Instant, process: Process) {
        if let Some(slot) = self.slots.get_mut(process.id) {
            slot.handle_core_dump(now, process.generation);
            self.deadlines.update(process.id, slot);
        }
    }

    /// Returns the time at which to call [`Policy::handle_timeout`] if no event happens earlier.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        let deadline = self.deadlines.next(&self.slots);
        let other = [self.check_beats_at, self.next_recycling(), self.next_memory_reading()];
        deadline.into_iter().chain(other.into_iter().flatten()).min()
    }

    /// Returns how many workers should run.
    pub fn wanted(&self) -> usize {
        let wanted = self.wanted.get().unwrap_or_else(|| self.count_wanted());
        self.wanted.set(Some(wanted));
        wanted
    }

    fn count_wanted(&self) -> usize {
        let missing = self.first_starts.end.saturating_sub(self.slots.len());
        self.slots.iter().filter(|slot| slot.is_wanted()).count() + missing
    }

    /// Returns the number of workers that should run if all of them are up, and `None` otherwise. A worker is up once
    /// its first process has been started. If there is a ready timeout, one process of the worker must also have been
    /// ready. Returns `None` during a stop.
    #[cfg_attr(not(unix), allow(dead_code, reason = "only the notification of systemd needs it"))]
    pub fn up(&self) -> Option<usize> {
        if self.stop.is_some() || !self.first_starts.is_empty() {
            return None;
        }
        let needs_ready = self.config.ready_timeout.is_some();
        let has_come_up = |slot: &Slot| !slot.is_initial_start() && (slot.bring_up() == BringUp::Done || !needs_ready);
        self.slots.iter().all(|slot| !slot.is_wanted() || has_come_up(slot)).then(|| self.wanted())
    }

    /// Handles a request of an operator. A stop request takes effect at once. Any other request waits for the next call
    /// of [`Policy::execute_requests`], and several requests of one kind count as one until then. During a stop, only
    /// further stop requests have an effect.
    pub fn handle_request(&mut self, now: Instant, request: Request) {
        match request {
            Request::Stop => self.stop_gracefully(now),
            Request::QuickStop => self.stop_quickly(now),
            // Only a service can be upgraded.
            Request::Upgrade => {}
            _ if self.stop.is_some() => {}
            Request::Replace(id) if id >= self.slots.len().max(self.first_starts.end) => self.requests.add_unknown(id),
            _ => self.requests.add(request),
        }
    }

    /// Returns whether a call of [`Policy::execute_requests`] is due.
    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Executes the requests that have arrived since the last call. Call this once per round of the supervisor's loop,
    /// when [`Policy::poll_action`] has returned all actions of the last round. Then the number of queued actions is
    /// bounded, however many requests arrive, and exits and timeouts are handled between two calls.
    pub fn execute_requests(&mut self, now: Instant) {
        if self.requests.is_empty() {
            return;
        }
        self.complete_slots();
        for request in self.requests.take() {
            match request {
                Request::Roll => self.request_roll(),
                Request::ScaleUp => self.scale_up(now),
                Request::ScaleDown => self.scale_down(now),
                Request::Scale(workers) => self.scale_to(now, workers),
                Request::Replace(id) => self.request_replacement(now, id),
                Request::Reopen => self.send_to_all(WorkerSignal::Reopen),
                Request::Stop | Request::QuickStop | Request::Upgrade => {}
            }
        }
        self.advance_replacements(now);
    }

    pub fn handle_started(&mut self, now: Instant, process: Process) {
        let Some(slot) = self.slots.get_mut(process.id) else { return };
        let was_wanted = slot.is_wanted();
        let was_stopped = slot.is_stopped();
        if slot.is_trial() {
            self.handle_trial_started(now, process);
        } else {
            slot.handle_started(now, process, self.roll.epoch(), &self.config, &mut self.rng);
        }
        if was_stopped {
            self.stop_slot(now, process.id);
        }
        self.after(now, process.id, was_wanted);
    }

    /// Handles a start that the system has refused. If it was the first start of an initial worker, stops the pool.
    /// If the process would have been a replacement, the old process stays, and the start is not tried again. Any other
    /// start is tried again.
    pub fn handle_start_failed(&mut self, now: Instant, id: usize, error: Error) {
        if self.stop.is_some() {
            return;
        }
        let Some(slot) = self.slots.get_mut(id).filter(|slot| !slot.is_stopped()) else { return };
        if slot.is_initial_start() {
            return self.stop_because(now, Err(error));
        }
        let was_wanted = slot.is_wanted();
        if slot.is_trial() {
            slot.end_trial(now, Deadline::after(now, self.config.graceful_timeout), &mut self.actions);
            slot.start_if_due(now, &mut self.actions);
            self.fail_trial(TrialFailure::NotStarted { error: &error });
            return self.after(now, id, was_wanted);
        }
        let retry = slot.handle_start_failed(now, self.config.delays, &mut self.rng);
        self.actions.emit(Event::StartFailed { pool: self.config.pool, error, retry });
        if self.replacements.is_under_way(id) {
            self.handle_failed_replacement(now, id);
        }
        self.after(now, id, was_wanted);
    }

    /// Returns whether a refusal of the next start of this worker would stop the pool.
    fn needs_start(&self, id: usize) -> bool {
        self.stop.is_none() && self.slots.get(id).is_some_and(Slot::is_initial_start)
    }

    pub fn handle_ready(&mut self, now: Instant, id: usize, generation: u32) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let was_wanted = slot.is_wanted();
        if let Some(old) = slot.handle_ready(now, generation, &mut self.actions) {
            self.stop_outgoing(now, old);
        }
        self.after(now, id, was_wanted);
    }

    pub fn handle_beat(&mut self, at: Instant, id: usize, generation: u32) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.handle_beat(generation, at);
        }
    }

    /// Handles the request of the program in the parent to stop the pool. Has no effect if the pool is already
    /// stopping. Unlike [`Request::Stop`], this is not an operator's request, so it never kills processes at once.
    pub fn handle_program_stop(&mut self, now: Instant) {
        self.stop_because(now, Ok(Reason::Stopped));
    }

    /// Handles the request of a worker to stop the pool. Has no effect if the pool is already stopping.
    pub fn handle_stop_all(&mut self, now: Instant, process: Process) {
        self.stop_because(now, Ok(Reason::StoppedByWorker { process }));
    }

    /// Extends the deadlines that have passed while the parent was paused or starved, each of them once. Call this
    /// before [`Policy::draining`], [`Policy::kills_due`] and [`Policy::handle_timeout`].
    pub fn extend_deadlines(&mut self, now: Instant) {
        for (id, slot) in self.slots.iter_mut().enumerate() {
            if slot.extend_deadlines(now, self.interrupted_at) {
                self.deadlines.update(id, slot);
            }
        }
    }

    /// Handles every deadline that has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut late = Vec::new();
        let due = self.deadlines.take_due(now, &self.slots);
        for &id in &due {
            let slot = &mut self.slots[id];
            match slot.handle_timeout(now, &self.config, &mut self.actions) {
                Some(Timeout::Replaced(old)) => self.stop_outgoing(now, old),
                Some(Timeout::NotReady(timeout)) => late.push((id, timeout)),
                None => {}
            }
            self.slots[id].drain_relief(now, &self.config, &mut self.actions);
        }
        for (id, timeout) in late {
            self.wanted.set(None);
            match timeout {
                ReadyTimeout::Replacement => self.handle_failed_replacement(now, id),
                ReadyTimeout::Startup(process) => {
                    self.fail_startup(now, StartupFailure { process, exit: None, failures: None, nested_call: false });
                }
                ReadyTimeout::Addition => self.drop_addition(id),
                ReadyTimeout::Trial(process) => {
                    self.slots[id].start_if_due(now, &mut self.actions);
                    self.fail_trial(TrialFailure::NotReady { process });
                }
            }
        }
        due.into_iter().for_each(|id| self.update_slot(id));
        if self.check_heartbeats(now) {
            (0..self.slots.len()).for_each(|id| self.update_slot(id));
        }
        self.advance_replacements(now);
    }

    /// Handles a wait that ended early for no known reason. The parent may have been stopped (SIGSTOP) during that
    /// wait.
    pub fn handle_interruption(&mut self, now: Instant) {
        self.interrupted_at = Some(now);
    }

    /// Updates everything that depends on the slot of this worker, after an event has changed the slot. This includes
    /// the drain of its queue, its deadlines, the number of workers that should run, and the replacements.
    fn after(&mut self, now: Instant, id: usize, was_wanted: bool) {
        let slot = &mut self.slots[id];
        slot.drain_relief(now, &self.config, &mut self.actions);
        if slot.is_wanted() != was_wanted {
            self.wanted.set(None);
        }
        self.update_slot(id);
        self.advance_replacements(now);
    }

    /// Updates the deadlines, the availability and the replacement of this worker after its slot has changed.
    fn update_slot(&mut self, id: usize) {
        self.deadlines.update(id, &self.slots[id]);
        self.update_availability(id);
        self.update_replacement(id);
    }

    fn update_availability(&mut self, id: usize) {
        let slot = &mut self.slots[id];
        let is_unavailable = slot.is_unavailable();
        if is_unavailable != slot.counts_as_unavailable {
            slot.counts_as_unavailable = is_unavailable;
            if is_unavailable { self.unavailable += 1 } else { self.unavailable -= 1 }
        }
    }

    fn send_to_all(&mut self, signal: WorkerSignal) {
        for process in self.slots.iter().flat_map(Slot::processes) {
            self.actions.send(process, signal);
        }
    }
}
