//! The supervisor's mind: events in, actions out, and the next deadline.
//!
//! Nothing here asks the system anything. The time and the seed are arguments, a process is a name for one, and what is
//! to be done comes out of [`Policy::poll_action`] for somebody else to do. So every behaviour can be played through in a
//! test without a process and without waiting, and a run can be repeated exactly.

mod backoff;
mod budget;
mod child;
mod deadlines;
mod rolling_restart;
mod scale;
mod slot;
mod stop;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use rand::{SeedableRng, rngs::SmallRng};

pub(crate) use backoff::Delays;
use budget::Budget;
use child::Child;
use deadlines::DeadlineQueue;
use rolling_restart::RollingRestart;
use slot::{ExitedRole, ReadyTimeout, Slot};

use stop::Stop;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::exit::{Exit, OutOfMemory, Process};
use crate::report::{Reason, WorkerReport};

/// Everything that can be chosen. The defaults, and the checks, are in `prefork`.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub workers: usize,
    /// More than this there never are, however often more are asked for.
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
    /// Of a worker that is one too many: how long it gets no more work before it is asked to go, and how long it has no work
    /// left then.
    pub drain: Option<Duration>,
}

/// Which ends of a worker are followed by a restart, if it was not asked to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RestartPolicy {
    /// Every abnormal end: an exit status other than 0, or a signal. An exit status of 0 is an end for good.
    #[default]
    OnFailure,
    /// Every end. An exit status of 0 is restarted as well, and costs as much of the budget.
    Always,
    /// None. The others go on; once all have ended, [`Report::is_success`](crate::Report::is_success) tells whether all
    /// ended normally.
    Never,
}

/// What the parent was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Stop,
    QuickStop,
    Roll,
    More,
    Fewer,
    Reopen,
}

/// What a process is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerSignal {
    Stop,
    QuickStop,
    Abort,
    Kill,
    Reopen,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub(crate) enum Action {
    /// To be answered by [`Policy::handle_started`] or [`Policy::handle_start_failed`].
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

/// How it all ended. An error: the system refused one of the first starts, and the others have been stopped.
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

    /// Starts that nobody has taken yet are not made: of one id, or of all.
    fn cancel_starts(&mut self, of: Option<usize>) {
        self.0.retain(|action| !matches!(action, Action::Start { id, .. } if of.is_none_or(|of| of == *id)));
    }
}

#[derive(Debug)]
pub(crate) struct Policy {
    config: Config,
    /// By id. Those whose first start was not asked for yet may still be missing.
    slots: Vec<Slot>,
    deadlines: DeadlineQueue,
    /// How many are wanted, if that was counted and has not changed.
    wanted: Cell<Option<usize>>,
    begun: Instant,
    budget: Budget,
    rng: SmallRng,
    roll: RollingRestart,
    stop: Option<Stop>,
    /// When the heartbeats are looked at next.
    look_at: Option<Instant>,
    /// When the parent last had been stopped, or may have been, and the workers with it.
    interrupted_at: Option<Instant>,
    /// The ids whose first start is still to be asked for: one by one, since whatever happens meanwhile comes first, and
    /// since every page that all of them would take is inherited by every worker.
    first_starts: Range<usize>,
    actions: ActionQueue,
}

impl Policy {
    pub fn new(config: Config, seed: u64, now: Instant) -> Policy {
        let mut actions = ActionQueue::default();
        actions.emit(Event::Starting { workers: config.workers });
        Policy {
            budget: Budget::new(config.max_restarts, config.restart_window),
            look_at: config.heartbeat_timeout.map(|timeout| now + timeout),
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

    /// The next thing to do. A call too many gives nothing.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        while self.actions.0.is_empty() {
            self.actions.0.shrink_to(64);
            let id = self.first_starts.next()?;
            if id == self.slots.len() {
                self.slots.push(Slot::first(id, self.begun));
            }
            if let Some(start) = self.slots[id].start_first() {
                // Not by way of the others, whose memory would be copied for every worker.
                return Some(start);
            }
        }
        self.actions.0.pop_front()
    }

    /// Before it matters who is still to be started.
    fn complete_slots(&mut self) {
        self.slots.extend((self.slots.len()..self.first_starts.end).map(|id| Slot::first(id, self.begun)));
    }

    /// How it ended, once nobody lives, nobody comes, and every action has been taken. A call too early gives nothing.
    #[must_use]
    pub fn poll_end(&mut self) -> Option<Outcome> {
        if !self.actions.0.is_empty() || !self.first_starts.is_empty() || !self.slots.iter().all(Slot::is_over) {
            return None;
        }
        Some(self.stop.take().map_or(Ok(Reason::Finished), |stop| stop.end))
    }

    /// By id.
    pub fn reports(&self) -> Vec<WorkerReport> {
        self.slots.iter().map(Slot::report).collect()
    }

    /// Whether this process was sent SIGKILL from here.
    pub fn has_killed(&self, process: Process) -> bool {
        let mut children = self.slots.get(process.id).into_iter().flat_map(Slot::children);
        children.any(|child| child.process == process && child.was_killed())
    }

    /// When [`Policy::handle_timeout`] is to be called, if nothing happens before.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        self.deadlines.next(&self.slots).into_iter().chain(self.look_at).chain(self.next_replacement()).min()
    }

    /// How many are wanted to run.
    pub fn wanted(&self) -> usize {
        let wanted = self.wanted.get().unwrap_or_else(|| self.count_wanted());
        self.wanted.set(Some(wanted));
        wanted
    }

    fn count_wanted(&self) -> usize {
        let missing = self.first_starts.end.saturating_sub(self.slots.len());
        self.slots.iter().filter(|slot| slot.is_wanted()).count() + missing
    }

    /// How many are wanted to run, once all of those have been started and, where it is asked for, were ready. Never in a stop.
    pub fn up(&self) -> Option<usize> {
        if self.stop.is_some() || !self.first_starts.is_empty() {
            return None;
        }
        let asked = self.config.ready_timeout.is_some();
        let is_up = |slot: &Slot| !slot.is_wanted() || !slot.is_first_start() && (slot.is_proven() || !asked);
        self.slots.iter().all(is_up).then(|| self.wanted())
    }

    pub fn handle_request(&mut self, now: Instant, request: Request) {
        self.complete_slots();
        match request {
            Request::Stop => self.stop_as_asked(now),
            Request::QuickStop => self.stop_quickly(now),
            _ if self.stop.is_some() => {}
            Request::Roll => self.roll_or_roll_again(),
            Request::More => self.more(now),
            Request::Fewer => self.fewer(now),
            Request::Reopen => self.pass_on(WorkerSignal::Reopen),
        }
        self.advance_roll(now);
    }

    pub fn handle_started(&mut self, now: Instant, process: Process) {
        let Some(slot) = self.slots.get_mut(process.id) else { return };
        let idle = slot.is_stopped();
        slot.handle_started(now, process, self.roll.epoch(), &self.config, &mut self.rng);
        slot.drain_passing(now, &self.config, &mut self.actions);
        if idle {
            slot.stop_now(WorkerSignal::Stop, now + self.config.graceful_timeout, &mut self.actions);
        }
        self.deadlines.update(process.id, slot);
        self.advance_roll(now);
    }

    /// The start of a process of this id was refused. One of the first starts: everything is stopped. A restart:
    /// it is tried again.
    pub fn handle_start_failed(&mut self, now: Instant, id: usize, error: Error) {
        if self.stop.is_some() {
            return;
        }
        let Some(slot) = self.slots.get_mut(id).filter(|slot| !slot.is_stopped()) else { return };
        if slot.is_first_start() {
            let graceful = now + self.config.graceful_timeout;
            return self.begin_stop(Err(error), WorkerSignal::Stop, graceful, false);
        }
        let retry = slot.handle_start_failed(now, self.config.delays, &mut self.rng);
        self.actions.emit(Event::StartFailed { error, retry });
        if retry.is_none() {
            self.replacement_failed(now, id);
        }
        self.deadlines.update(id, &self.slots[id]);
        self.advance_roll(now);
    }

    pub fn handle_ready(&mut self, now: Instant, id: usize, generation: u32) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.handle_ready(now, generation, &self.config, &mut self.actions);
            slot.drain_passing(now, &self.config, &mut self.actions);
            self.deadlines.update(id, slot);
        }
        self.advance_roll(now);
    }

    pub fn handle_beat(&mut self, at: Instant, id: usize, generation: u32) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.handle_beat(generation, at);
        }
    }

    /// A worker asks for the end of all. If that has begun, it is on its way.
    pub fn handle_stop_all(&mut self, now: Instant, process: Process) {
        let graceful = now + self.config.graceful_timeout;
        self.begin_stop(Ok(Reason::StoppedByWorker { process }), WorkerSignal::Stop, graceful, false);
    }

    pub fn handle_exited(&mut self, now: Instant, process: Process, exit: Exit, out_of_memory: OutOfMemory) {
        let Some(slot) = self.slots.get_mut(process.id) else { return };
        let was_wanted = slot.is_wanted();
        let Some((role, child)) = slot.handle_exited(now, process.generation, exit) else { return };
        match role {
            ExitedRole::Stopping if child.drains() && self.stop.is_none() => {
                self.handle_draining_exit(now, child, exit, out_of_memory)
            }
            ExitedRole::Stopping | ExitedRole::Replacement => {
                let asked = role == ExitedRole::Stopping;
                self.actions.emit(Event::Exited { process, exit, out_of_memory, asked, restarting: false });
                if role == ExitedRole::Replacement {
                    self.replacement_failed(now, process.id);
                }
            }
            ExitedRole::Current | ExitedRole::Outgoing => self.handle_loss(now, role, child, exit, out_of_memory),
        }
        let slot = &mut self.slots[process.id];
        if self.stop.is_none() {
            slot.start_if_due(now, &mut self.actions);
        }
        if slot.is_wanted() != was_wanted {
            self.wanted.set(None);
        }
        self.deadlines.update(process.id, slot);
        self.advance_roll(now);
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        let mut missed = Vec::new();
        for (id, slot) in self.slots.iter_mut().enumerate() {
            if let Some(what) = slot.handle_timeout(now, self.interrupted_at, &self.config, &mut self.actions) {
                missed.push((id, what));
            }
            slot.drain_passing(now, &self.config, &mut self.actions);
        }
        for (id, what) in missed {
            self.wanted.set(None);
            match what {
                ReadyTimeout::Replacement => self.replacement_failed(now, id),
                ReadyTimeout::Startup(process) => self.fail_startup(now, process, None),
                ReadyTimeout::Addition => self.addition_failed(id),
            }
        }
        self.look_at_beats(now);
        self.deadlines.update_all(&self.slots);
        self.advance_roll(now);
    }

    /// The wait for a deadline was cut short by what may have been a stop of this process.
    pub fn handle_interruption(&mut self, now: Instant) {
        self.interrupted_at = Some(now);
    }

    /// Who is silent for too long is aborted. Woken much later than asked, the parent was starved or the machine slept,
    /// and the workers with it: they get one more period. Woken somewhat later, or interrupted meanwhile, that may be so:
    /// who is silent gets one more period, but only one.
    fn look_at_beats(&mut self, now: Instant) {
        let (Some(timeout), Some(look_at)) = (self.config.heartbeat_timeout, self.look_at) else { return };
        let Some(late) = now.checked_duration_since(look_at) else { return };
        let interrupted = self.interrupted_at.is_some_and(|at| at + timeout >= look_at);
        let doubtful = interrupted || late >= timeout / 10;
        for slot in &mut self.slots {
            if late >= timeout / 2 {
                slot.forgive_beats(now);
            } else {
                slot.check_beats(now, timeout, doubtful, &mut self.actions);
            }
        }
        self.look_at = Some(now + timeout);
    }

    /// One that served, or whose replacement is still on trial, has ended unasked.
    fn handle_loss(&mut self, now: Instant, role: ExitedRole, child: Child, exit: Exit, out_of_memory: OutOfMemory) {
        let (process, id) = (child.process, child.process.id);
        let exited = |restarting| Event::Exited { process, exit, out_of_memory, asked: false, restarting };
        // Whoever was aborted or killed from here has failed, however it took that.
        let failed = !exit.is_success() || child.was_given_up();
        let wanted_again = match self.config.restart_policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => failed,
            RestartPolicy::Never => false,
        };
        let hopeless = (failed || wanted_again) && self.was_never_ready(id);
        // A status that it was given from here, as on Windows, is not its own.
        let is_fatal = self.is_fatal(exit) && !child.was_given_up();
        if hopeless && !is_fatal && self.slots[id].is_addition() {
            self.actions.emit(exited(false));
            return self.addition_failed(id);
        }
        if hopeless || is_fatal {
            self.actions.emit(exited(false));
            return self.fail_startup(now, process, Some(exit));
        }
        if role == ExitedRole::Outgoing && failed {
            // Its replacement is there already.
            return self.actions.emit(exited(false));
        }
        if !wanted_again {
            self.slots[id].end_for_good(failed);
            self.actions.emit(exited(false));
            return self.slots[id].stop_now(WorkerSignal::Stop, now + self.config.graceful_timeout, &mut self.actions);
        }
        if role == ExitedRole::Outgoing {
            return self.actions.emit(exited(false));
        }
        if !self.budget.take(now) {
            self.actions.emit(exited(false));
            return match self.slots[id].is_passing() {
                // Nobody is missing.
                true => {
                    self.slots[id].stop_now(WorkerSignal::Stop, now + self.config.graceful_timeout, &mut self.actions)
                }
                false => self.give_up(now, process, exit),
            };
        }
        let uptime = now.saturating_duration_since(child.since);
        let delay = self.slots[id].wait(now, uptime, self.config.delays, &mut self.rng);
        self.actions.emit(exited(true));
        self.actions.emit(Event::Restarting { process, exit, out_of_memory, delay, left: self.budget.left() });
        if child.epoch == self.roll.epoch() {
            self.successor_failed(id);
        }
    }

    /// Nothing is gained by a restart: the exit code says so.
    fn is_fatal(&self, exit: Exit) -> bool {
        matches!(exit, Exit::Code(code) if self.config.fatal_exit_codes.contains(&code))
    }

    /// Nor if no process of this id was ever ready.
    fn was_never_ready(&self, id: usize) -> bool {
        self.config.ready_timeout.is_some() && !self.slots[id].is_proven()
    }

    fn pass_on(&mut self, message: WorkerSignal) {
        for child in self.slots.iter().flat_map(Slot::children) {
            self.actions.0.push_back(Action::Send { process: child.process, message });
        }
    }
}
