//! The decisions of the supervisor: events in, actions out, and the next deadline.
//!
//! The policy is pure. Time and seed are arguments, a [`Process`] is only a name for a process, and it asks the system
//! nothing. So a test can play through whole lives of a service without a process and without waiting, and repeat a run
//! exactly.
//!
//! It has four kinds of method:
//!
//! - `handle_*` takes an event, and the time at which it happened.
//! - [`Policy::poll_action`] returns what to do next. Call it until it returns `None` after each event.
//! - [`Policy::next_deadline`] returns when to call [`Policy::handle_timeout`] if no event happens before.
//! - [`Policy::poll_end`] returns the outcome once the service has ended.
//!
//! A start that the system refuses is an event too ([`Policy::handle_start_failed`]), so a stop request can overtake it.

mod backoff;
mod budget;
mod child;
mod deadlines;
mod exit;
mod heartbeat;
mod rolling_restart;
mod scale;
mod slot;
mod stop;
mod stopping_child;
#[cfg(test)]
mod tests;
mod verdict;

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use rand::{SeedableRng, rngs::SmallRng};

pub(crate) use backoff::Delays;
use budget::Budget;
use deadlines::DeadlineQueue;
use rolling_restart::RollingRestart;
use slot::{BringUp, ReadyTimeout, Slot, Timeout};
use stop::Stop;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::exit::Process;
use crate::report::{Reason, WorkerReport};

/// The settings that decisions depend on. `prefork` has the defaults and the checks.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub workers: usize,
    /// The limit for scaling up.
    pub max_workers: usize,
    pub restart_policy: RestartPolicy,
    pub max_restarts: u32,
    pub restart_window: Option<Duration>,
    pub delays: Delays,
    pub fatal_exit_codes: Vec<i32>,
    pub graceful_timeout: Duration,
    pub ready_timeout: Option<Duration>,
    pub heartbeat_timeout: Option<Duration>,
    pub max_lifetime: Option<Duration>,
    /// With per-worker sockets: how long a worker that is removed gets no new connections before its queue is looked at,
    /// and how long its queue must then have been empty.
    pub drain: Option<Duration>,
}

/// Which exits of a worker are followed by a restart. Exits that the parent has requested never are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RestartPolicy {
    /// Every abnormal exit: a status other than 0, or a signal. A worker that exits with status 0 is done.
    #[default]
    OnFailure,
    /// Every exit. An exit with status 0 counts as a restart like any other.
    Always,
    /// No exit. The other workers go on. Once all have exited, [`Report::is_success`](crate::Report::is_success) returns
    /// whether all of them exited normally.
    Never,
}

/// A request to the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Stop,
    QuickStop,
    Roll,
    ScaleUp,
    ScaleDown,
    Reopen,
}

/// What a process is sent. The supervisor translates it into a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerSignal {
    Stop,
    QuickStop,
    Abort,
    Kill,
    Reopen,
}

/// What the supervisor does next.
#[derive(Debug)]
pub(crate) enum Action {
    /// Start a process. Answer with [`Policy::handle_started`] or [`Policy::handle_start_failed`].
    Start {
        id: usize,
        generation: u32,
    },
    Send {
        process: Process,
        message: WorkerSignal,
    },
    Emit(Event),
}

/// How the service ended. `Err` if the system refused one of the first starts, and the other workers were stopped.
pub(crate) type Outcome = Result<Reason>;

#[derive(Debug, Default)]
struct ActionQueue(VecDeque<Action>);

impl ActionQueue {
    fn push(&mut self, action: Action) {
        self.0.push_back(action);
    }

    fn send(&mut self, process: Process, message: WorkerSignal) {
        self.push(Action::Send { process, message });
    }

    fn emit(&mut self, event: Event) {
        self.push(Action::Emit(event));
    }

    /// Removes starts that have not been taken yet: those of one id, or all.
    fn cancel_starts(&mut self, of: Option<usize>) {
        self.0.retain(|action| !matches!(action, Action::Start { id, .. } if of.is_none_or(|of| of == *id)));
    }
}

#[derive(Debug)]
pub(crate) struct Policy {
    config: Config,
    /// By id. Slots are made when their first start is requested, so the last ones may still be missing.
    slots: Vec<Slot>,
    deadlines: DeadlineQueue,
    /// The number of wanted workers, if it was counted and has not changed since.
    wanted: Cell<Option<usize>>,
    begun: Instant,
    budget: Budget,
    rng: SmallRng,
    roll: RollingRestart,
    stop: Option<Stop>,
    check_beats_at: Option<Instant>,
    /// When the parent was last interrupted, so that it, and the workers too, may have been stopped.
    interrupted_at: Option<Instant>,
    /// The ids whose first start is still to come. They are taken one by one, so that every other event comes first, and
    /// because every page that the parent writes between two forks is copied for each worker (copy-on-write).
    first_starts: Range<usize>,
    actions: ActionQueue,
}

impl Policy {
    pub fn new(config: Config, seed: u64, now: Instant) -> Policy {
        let mut actions = ActionQueue::default();
        actions.emit(Event::Starting { workers: config.workers });
        Policy {
            budget: Budget::new(config.max_restarts, config.restart_window),
            check_beats_at: config.heartbeat_timeout.map(|timeout| now + timeout),
            interrupted_at: None,
            rng: SmallRng::seed_from_u64(seed),
            roll: RollingRestart::default(),
            stop: None,
            slots: Vec::with_capacity(config.workers),
            deadlines: DeadlineQueue::new(),
            wanted: Cell::new(None),
            begun: now,
            first_starts: 0..config.workers,
            config,
            actions,
        }
    }

    /// Returns the next action, or `None` if there is nothing to do.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        while self.actions.0.is_empty() {
            self.actions.0.shrink_to(64);
            let id = self.first_starts.next()?;
            if id == self.slots.len() {
                self.slots.push(Slot::initial(id, self.begun));
            }
            if let Some(start) = self.slots[id].start_initial() {
                // Returned past the queue, whose memory would be copied for each worker (copy-on-write).
                return Some(start);
            }
        }
        self.actions.0.pop_front()
    }

    /// Makes the slots of all workers whose first start is still to come.
    fn complete_slots(&mut self) {
        self.slots.extend((self.slots.len()..self.first_starts.end).map(|id| Slot::initial(id, self.begun)));
    }

    /// Returns the outcome once no process lives, none will start, and every action has been taken.
    #[must_use]
    pub fn poll_end(&mut self) -> Option<Outcome> {
        let is_busy = !self.actions.0.is_empty() || !self.first_starts.is_empty();
        if is_busy || !self.slots.iter().all(Slot::is_over) {
            return None;
        }
        Some(self.stop.take().map_or(Ok(Reason::Finished), |stop| stop.outcome))
    }

    /// Returns the report of each worker, by id.
    pub fn reports(&self) -> Vec<WorkerReport> {
        self.slots.iter().map(Slot::report).collect()
    }

    /// Returns whether the policy has sent SIGKILL to this process.
    pub fn has_killed(&self, process: Process) -> bool {
        let Some(slot) = self.slots.get(process.id) else { return false };
        slot.processes().any(|known| known == process) && !slot.unkilled_processes().any(|known| known == process)
    }

    /// Returns when to call [`Policy::handle_timeout`] if nothing happens before.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        let deadline = self.deadlines.next(&self.slots);
        deadline.into_iter().chain(self.check_beats_at).chain(self.next_recycling()).min()
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

    /// Returns how many workers should run, once each of them has been started and, with a ready timeout, has been ready.
    /// Returns `None` before, and during a stop.
    pub fn up(&self) -> Option<usize> {
        if self.stop.is_some() || !self.first_starts.is_empty() {
            return None;
        }
        let needs_ready = self.config.ready_timeout.is_some();
        let has_come_up = |slot: &Slot| !slot.is_initial_start() && (slot.bring_up() == BringUp::Done || !needs_ready);
        self.slots.iter().all(|slot| !slot.is_wanted() || has_come_up(slot)).then(|| self.wanted())
    }

    /// Handles a request of an operator. During a stop, only stop requests count.
    pub fn handle_request(&mut self, now: Instant, request: Request) {
        self.complete_slots();
        match request {
            Request::Stop => self.stop_gracefully(now),
            Request::QuickStop => self.stop_quickly(now),
            _ if self.stop.is_some() => {}
            Request::Roll => self.request_roll(),
            Request::ScaleUp => self.scale_up(now),
            Request::ScaleDown => self.scale_down(now),
            Request::Reopen => self.send_to_all(WorkerSignal::Reopen),
        }
        self.advance_roll(now);
    }

    pub fn handle_started(&mut self, now: Instant, process: Process) {
        let Some(slot) = self.slots.get_mut(process.id) else { return };
        let was_wanted = slot.is_wanted();
        let was_stopped = slot.is_stopped();
        slot.handle_started(now, process, self.roll.epoch(), &self.config, &mut self.rng);
        if was_stopped {
            self.stop_slot(now, process.id);
        }
        self.after(now, process.id, was_wanted);
    }

    /// Handles a start that the system has refused. If it was one of the first starts, the service is stopped. Any other
    /// start is tried again, except for that of a replacement.
    pub fn handle_start_failed(&mut self, now: Instant, id: usize, error: Error) {
        if self.stop.is_some() {
            return;
        }
        let Some(slot) = self.slots.get_mut(id).filter(|slot| !slot.is_stopped()) else { return };
        if slot.is_initial_start() {
            return self.stop_because(now, Err(error));
        }
        let was_wanted = slot.is_wanted();
        let retry = slot.handle_start_failed(now, self.config.delays, &mut self.rng);
        self.actions.emit(Event::StartFailed { error, retry });
        if retry.is_none() {
            self.handle_failed_replacement(now, id);
        }
        self.after(now, id, was_wanted);
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

    /// Handles the request of a worker to stop the service. During a stop it has no effect.
    pub fn handle_stop_all(&mut self, now: Instant, process: Process) {
        self.stop_because(now, Ok(Reason::StoppedByWorker { process }));
    }

    /// Handles every deadline that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut late = Vec::new();
        for id in 0..self.slots.len() {
            let slot = &mut self.slots[id];
            match slot.handle_timeout(now, self.interrupted_at, &self.config, &mut self.actions) {
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
                ReadyTimeout::Startup(process) => self.fail_startup(now, process, None),
                ReadyTimeout::Addition => self.drop_addition(id),
            }
        }
        self.check_heartbeats(now);
        self.deadlines.update_all(&self.slots);
        self.advance_roll(now);
    }

    /// Handles a wait that ended before its deadline without a reason, so that this process may have been stopped.
    pub fn handle_interruption(&mut self, now: Instant) {
        self.interrupted_at = Some(now);
    }

    /// Completes every event of one id: what may follow from it for the queue, the deadlines, the number of wanted workers
    /// and the rolling restart.
    fn after(&mut self, now: Instant, id: usize, was_wanted: bool) {
        let slot = &mut self.slots[id];
        slot.drain_relief(now, &self.config, &mut self.actions);
        if slot.is_wanted() != was_wanted {
            self.wanted.set(None);
        }
        self.deadlines.update(id, slot);
        self.advance_roll(now);
    }

    fn send_to_all(&mut self, signal: WorkerSignal) {
        for process in self.slots.iter().flat_map(Slot::processes) {
            self.actions.0.push_back(Action::Send { process, message: signal });
        }
    }
}
