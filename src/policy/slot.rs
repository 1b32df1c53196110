//! One id's life.
//!
//! Whatever serves the id, or is to serve it, is the slot's [`State`]. A process that has been asked to go is out of the
//! state and only waited for, so that its replacement never depends on how it goes.

mod stopping;

use std::time::{Duration, Instant};

use super::backoff::{Backoff, Delays};
use super::child::{Child, Phase};
use super::rolling_restart::share_of;
use super::{Action, ActionQueue, Config, WorkerSignal};
use crate::event::Event;
use crate::exit::{Exit, Process};
use crate::report::WorkerReport;

use rand::rngs::SmallRng;

/// Without readiness, a replacement counts as ready once it has lived this long.
const PROBATION: Duration = Duration::from_secs(1);
/// No id ever has more processes than this: one that serves and one that comes or goes.
const MOST_ALIVE: usize = 2;

#[derive(Debug)]
pub(super) struct Slot {
    id: usize,
    /// Of the next process.
    generation: u32,
    /// A process of this id has been ready once, so that the next one's failure is no startup failure.
    proven: bool,
    /// It was not there from the beginning.
    addition: bool,
    /// There was somebody for it since it is wanted, or it was there from the beginning.
    joined: bool,
    /// Nobody is wanted, but what has come to this id is to be done, and whoever did it has failed: somebody comes for it, and
    /// lingers in his place.
    passing: bool,
    /// The same, also when he is wanted again and has not come to serve.
    owed: bool,
    backoff: Backoff,
    /// One of the first starts, which must succeed, is still to come.
    first: bool,
    state: State,
    /// What is started next takes the place of one that has failed.
    restarting: bool,
    stopping: Vec<Child>,
    report: WorkerReport,
    /// The generation that the reported exit is of.
    ended: u32,
}

#[derive(Debug)]
enum State {
    /// Nobody is wanted: ended for good, retired or stopped.
    Stopped,
    Backoff {
        at: Instant,
    },
    Starting,
    Running(Child),
    /// In a rolling restart: `old` serves until `new`, once it has been started, is ready.
    Replacing {
        old: Child,
        /// Not here, because few have one and every slot is as large as the largest.
        new: Option<Box<Child>>,
    },
}

/// Which part a process had that is gone now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitedRole {
    /// It had been asked to go.
    Stopping,
    /// It served, and nobody took its place yet.
    Current,
    /// It served, and its replacement has its place now.
    Outgoing,
    /// It was the replacement; the old one still serves.
    Replacement,
}

/// What a deadline brought to light that is for the policy to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadyTimeout {
    /// Not ready in time, and no process of this id ever was.
    Startup(Process),
    /// Not ready in time, and only a replacement.
    Replacement,
    /// Not ready in time, and no process of this id ever was; but it is none of those that were there from the beginning.
    Addition,
}

impl Slot {
    /// One of the ids that there are from the beginning.
    pub fn first(id: usize, now: Instant) -> Slot {
        Slot { first: true, addition: false, joined: true, ..Slot::new(id, now) }
    }

    /// A new id, whose first process is wanted at once.
    pub fn new(id: usize, now: Instant) -> Slot {
        let state = State::Backoff { at: now };
        Slot {
            id,
            generation: 0,
            proven: false,
            addition: true,
            joined: false,
            passing: false,
            owed: false,
            backoff: Backoff::default(),
            first: false,
            state,
            restarting: false,
            stopping: Vec::new(),
            report: WorkerReport::new(id),
            ended: 0,
        }
    }

    pub fn is_wanted(&self) -> bool {
        !self.is_stopped() && !self.passing
    }

    /// Nobody serves it or is to come.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    pub fn is_serving(&self) -> bool {
        self.is_wanted() && self.joined
    }

    /// Nobody lives, nobody comes.
    pub fn is_over(&self) -> bool {
        self.is_stopped() && self.stopping.is_empty()
    }

    /// Whether the process that serves is from before this rolling restart.
    pub fn is_outdated(&self, epoch: u64) -> bool {
        match &self.state {
            State::Running(child) => child.epoch < epoch && (child.is_unproven() || child.phase == Phase::Ready),
            _ => false,
        }
    }

    /// When the process that serves is too old, if it could be replaced now.
    pub fn recycle_at(&self) -> Option<Instant> {
        match &self.state {
            State::Running(child) if child.phase == Phase::Ready && self.stopping.is_empty() => child.recycle_at,
            _ => None,
        }
    }

    /// The process that serves gets one more lifetime.
    pub fn live_on(&mut self, now: Instant, config: &Config, rng: &mut SmallRng) {
        if let State::Running(child) = &mut self.state {
            child.recycle_at = config.max_lifetime.map(|lifetime| now + share_of(lifetime, rng));
        }
    }

    /// Whether a replacement is on its way, or the old one still is.
    pub fn is_in_transition(&self) -> bool {
        let unproven = match &self.state {
            State::Running(child) => child.is_unproven(),
            State::Replacing { .. } | State::Starting => true,
            State::Stopped | State::Backoff { .. } => false,
        };
        unproven || !self.stopping.is_empty()
    }

    pub fn deadline(&self) -> Option<Instant> {
        let due = match &self.state {
            State::Backoff { at } if !self.is_crowded() => Some(*at),
            _ => None,
        };
        self.children().filter_map(Child::deadline).chain(due).min()
    }

    pub fn children(&self) -> impl Iterator<Item = &Child> {
        let (serving, coming) = match &self.state {
            State::Running(child) => (Some(child), None),
            State::Replacing { old, new } => (Some(old), new.as_deref()),
            _ => (None, None),
        };
        self.stopping.iter().chain(serving).chain(coming)
    }

    /// Wanted again, after it was not.
    pub fn want(&mut self, now: Instant) {
        (self.joined, self.addition) = (false, true);
        if !std::mem::take(&mut self.passing) {
            self.state = State::Backoff { at: now };
        }
    }

    /// One who lingered has failed.
    pub fn finish_work(&mut self, now: Instant, uptime: Duration, delays: Delays, rng: &mut SmallRng) -> Duration {
        (self.passing, self.owed) = (true, true);
        self.wait(now, uptime, delays, rng)
    }

    pub fn wait(&mut self, now: Instant, uptime: Duration, delays: Delays, rng: &mut SmallRng) -> Duration {
        self.restarting = true;
        let delay = self.backoff.after_life(uptime, delays, rng);
        self.state = State::Backoff { at: now + delay };
        delay
    }

    /// Starts the first process, if it is still wanted.
    pub fn start_first(&mut self) -> Option<Action> {
        let is_due = self.first && matches!(self.state, State::Backoff { .. });
        is_due.then(|| {
            self.state = State::Starting;
            self.next_start()
        })
    }

    /// Starts the next process if one is due and there is room for it.
    pub fn start_if_due(&mut self, now: Instant, actions: &mut ActionQueue) {
        match self.state {
            State::Backoff { at } if at <= now && !self.is_crowded() => {
                self.state = State::Starting;
                self.start(actions);
            }
            _ => {}
        }
    }

    /// Starts a replacement beside the process that serves.
    pub fn replace(&mut self, actions: &mut ActionQueue) {
        self.state = match std::mem::replace(&mut self.state, State::Stopped) {
            State::Running(old) => {
                self.start(actions);
                State::Replacing { old, new: None }
            }
            other => other,
        };
    }

    fn start(&self, actions: &mut ActionQueue) {
        actions.push(self.next_start());
    }

    fn next_start(&self) -> Action {
        Action::Start { id: self.id, generation: self.generation }
    }

    /// A process was started. If nobody wants it any more (it was on its way when the stop came), it is not taken, and
    /// goes to those who leave by the [`Slot::retire`] that follows.
    pub fn handle_started(&mut self, now: Instant, process: Process, epoch: u64, config: &Config, rng: &mut SmallRng) {
        self.generation = process.generation + 1;
        self.first = false;
        self.report.processes += 1;
        self.report.restarts += u32::from(std::mem::take(&mut self.restarting));
        self.report.failed = false;
        self.joined |= config.ready_timeout.is_none();
        let fresh = config.ready_timeout.map(|timeout| Phase::NotReady { late_at: now + timeout });
        let recycle_at = config.max_lifetime.map(|lifetime| now + share_of(lifetime, rng));
        let child = |otherwise| Child::new(process, now, epoch, fresh.unwrap_or(otherwise), recycle_at);
        self.state = match std::mem::replace(&mut self.state, State::Stopped) {
            State::Replacing { old, new: None } => {
                State::Replacing { old, new: Some(Box::new(child(Phase::Probation { ready_at: now + PROBATION }))) }
            }
            _ => State::Running(child(Phase::Ready)),
        };
    }

    /// A start was refused: a replacement is given up (`None`), anything else waits for the next try.
    pub fn handle_start_failed(&mut self, now: Instant, delays: Delays, rng: &mut SmallRng) -> Option<Duration> {
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Replacing { old, new: None } => {
                self.state = State::Running(old);
                None
            }
            _ => {
                let delay = self.backoff.after_refusal(delays, rng);
                self.state = State::Backoff { at: now + delay };
                Some(delay)
            }
        }
    }

    pub fn handle_ready(&mut self, now: Instant, generation: u32, config: &Config, actions: &mut ActionQueue) {
        // One that had been asked to go when it said so has shown that this id can be brought up.
        self.proven |= self.stopping.iter().any(|child| child.is(generation));
        if self.coming().is_some_and(|child| child.is(generation) && child.is_unproven()) {
            self.become_ready(now, config, actions);
        }
    }

    /// The process that may still have to show that it is ready.
    fn coming(&mut self) -> Option<&mut Child> {
        match &mut self.state {
            State::Running(child) => Some(child),
            State::Replacing { new, .. } => new.as_deref_mut(),
            _ => None,
        }
    }

    /// The one that was still to show that it is ready is ready now; if it is a replacement, the old one may go.
    fn become_ready(&mut self, now: Instant, config: &Config, actions: &mut ActionQueue) {
        self.note_uptime(now);
        (self.proven, self.joined) = (true, true);
        self.state = match std::mem::replace(&mut self.state, State::Stopped) {
            State::Running(child) => State::Running(child.ready(now, actions)),
            State::Replacing { mut old, new: Some(new) } => {
                let new = new.ready(now, actions);
                old.ask(WorkerSignal::Stop, now + config.graceful_timeout, actions);
                self.stopping.push(old);
                State::Running(new)
            }
            other => other,
        };
    }

    pub fn handle_beat(&mut self, generation: u32, at: Instant) {
        match &mut self.state {
            State::Running(child) | State::Replacing { old: child, .. } if child.is(generation) => {
                child.beat(at);
            }
            State::Replacing { new: Some(child), .. } if child.is(generation) => child.beat(at),
            _ => {}
        }
    }

    /// Before somebody else takes the place of who serves: what failed before him is forgotten if he is sound, however he ends.
    fn note_uptime(&mut self, now: Instant) {
        if let State::Running(child) | State::Replacing { old: child, .. } = &self.state {
            self.backoff.note_uptime(now.saturating_duration_since(child.since));
        }
    }

    /// Takes out the process that ended; `None` if it is not known here.
    pub fn handle_exited(&mut self, now: Instant, generation: u32, exit: Exit) -> Option<(ExitedRole, Child)> {
        self.note_uptime(now);
        let gone = self.take_out(generation)?;
        // A replacement that failed has never served.
        if gone.0 != ExitedRole::Replacement && (self.report.exit.is_none() || generation > self.ended) {
            (self.report.exit, self.ended) = (Some(exit), generation);
        }
        Some(gone)
    }

    fn take_out(&mut self, generation: u32) -> Option<(ExitedRole, Child)> {
        if let Some(at) = self.stopping.iter().position(|child| child.is(generation)) {
            return Some((ExitedRole::Stopping, self.stopping.swap_remove(at)));
        }
        let (next, gone) = match std::mem::replace(&mut self.state, State::Stopped) {
            State::Running(child) if child.is(generation) => (State::Stopped, Some((ExitedRole::Current, child))),
            State::Replacing { old, new: Some(new) } if new.is(generation) => {
                (State::Running(old), Some((ExitedRole::Replacement, *new)))
            }
            State::Replacing { old, new } if old.is(generation) => {
                (new.map_or(State::Starting, |new| State::Running(*new)), Some((ExitedRole::Outgoing, old)))
            }
            other => (other, None),
        };
        self.state = next;
        gone
    }

    /// Deadlines other than the heartbeat's.
    #[must_use]
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        interrupted_at: Option<Instant>,
        config: &Config,
        actions: &mut ActionQueue,
    ) -> Option<ReadyTimeout> {
        for child in &mut self.stopping {
            child.kill_overdue(now, actions);
            child.stop_overdue(now, config.graceful_timeout, actions);
        }
        if let State::Running(child) | State::Replacing { old: child, .. } = &mut self.state {
            child.kill_overdue(now, actions);
        }
        if let State::Replacing { new: Some(new), .. } = &mut self.state {
            new.kill_overdue(now, actions);
        }
        self.start_if_due(now, actions);
        let coming = self.coming()?;
        match coming.phase {
            Phase::Probation { ready_at } if ready_at <= now => {
                self.become_ready(now, config, actions);
                None
            }
            Phase::NotReady { late_at } if late_at <= now => {
                if config.ready_timeout.is_some_and(|timeout| coming.extend(now, timeout, interrupted_at)) {
                    return None;
                }
                actions.emit(Event::ReadyTimedOut { process: coming.process });
                self.handle_late(actions)
            }
            _ => None,
        }
    }

    fn handle_late(&mut self, actions: &mut ActionQueue) -> Option<ReadyTimeout> {
        let (next, missed) = match std::mem::replace(&mut self.state, State::Stopped) {
            State::Running(mut child) if !self.proven && self.addition => {
                child.kill(actions);
                self.stopping.push(child);
                (State::Stopped, Some(ReadyTimeout::Addition))
            }
            State::Running(child) if !self.proven => {
                let process = child.process;
                (State::Running(child), Some(ReadyTimeout::Startup(process)))
            }
            State::Running(mut child) => {
                child.kill(actions);
                (State::Running(child), None)
            }
            State::Replacing { old, new: Some(mut new) } => {
                new.kill(actions);
                self.stopping.push(*new);
                (State::Running(old), Some(ReadyTimeout::Replacement))
            }
            other => (other, None),
        };
        self.state = next;
        missed
    }

    /// The processes that are to give signs of life.
    pub fn check_beats(&mut self, now: Instant, timeout: Duration, doubtful: bool, actions: &mut ActionQueue) {
        if let State::Running(child) | State::Replacing { old: child, .. } = &mut self.state {
            child.check_beat(now, timeout, doubtful, actions);
        }
        if let State::Replacing { new: Some(new), .. } = &mut self.state {
            new.check_beat(now, timeout, doubtful, actions);
        }
    }

    /// Whoever lives is taken to have given a sign of life just now.
    pub fn forgive_beats(&mut self, now: Instant) {
        if let State::Running(child) | State::Replacing { old: child, .. } = &mut self.state {
            child.beat(now);
        }
        if let State::Replacing { new: Some(new), .. } = &mut self.state {
            new.beat(now);
        }
    }

    /// What ended was a failure, and nobody will take its place.
    pub fn end_for_good(&mut self, failed: bool) {
        self.report.failed = failed;
    }

    pub fn report(&self) -> WorkerReport {
        self.report
    }

    pub fn is_first_start(&self) -> bool {
        self.first
    }

    pub fn is_addition(&self) -> bool {
        self.addition
    }

    pub fn is_proven(&self) -> bool {
        self.proven
    }

    fn is_crowded(&self) -> bool {
        self.stopping.len() >= MOST_ALIVE
    }
}
