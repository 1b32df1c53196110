//! What the policy knows about one id.
//!
//! A slot is three small state machines. Each answers one question, and none depends on how the others got where they
//! are.
//!
//! # State: what serves the id?
//!
//! A process that was told to stop is no longer in the state but in `stopping`, where it is only waited for. So the
//! next start never depends on how the last process exits.
//!
//! | state | start due | started | start refused | ready | ready timeout | process exits | scaled down | scaled up | stop |
//! |---|---|---|---|---|---|---|---|---|---|
//! | Stopped | - | to `stopping` | - | - | - | - | - | Backoff (now) | - |
//! | Backoff | Starting | - | - | - | - | - | Stopped, or stays with Draining | with Draining: Reopening | Stopped |
//! | Starting | - | Running | Initial: stop all; else Backoff | - | - | - | Stopped, or stays with Draining | the same | Stopped |
//! | Running, not ready | - | - | - | ready | by bring-up: stop all, drop, kill | by verdict | to `stopping`, or stays with Draining | the same | to `stopping` |
//! | Running, ready | - | - | - | - | - | by verdict | to `stopping`, draining or stopping | - | to `stopping` |
//! | Replacing | - | new process | Running (old) | old to `stopping`, Running (new) | kill new, Running (old) | old: new takes over; new: Running (old) | both to `stopping` | - | both to `stopping` |
//!
//! # Bring-up: what does a failed start mean?
//!
//! `Initial` stops the service, `Added` drops the id, `Done` leads to a restart. Initial becomes Added if the id is
//! scaled up again. Initial and Added become Done once a process of the id is ready.
//!
//! # Queue: does the id's own queue get connections?
//!
//! This matters only for per-worker sockets.
//!
//! ```text
//!            started without readiness, or ready
//! Unopened ---------------------------------------> Open <---------------+
//!    ^                                               |                   | started without
//!    |                       scaled down while       |                   | readiness, or ready
//!    |                       no process is ready     v     scaled up     |
//!    +------------------------------------------- Draining ---------> Reopening
//!      its process is ready, and moves to `stopping`  ^                  |
//!                                                     +-- scaled down ---+
//! ```

mod exit;
mod stop;
mod timeout;

pub(super) use exit::{ExitedChild, ExitedRole};
pub(super) use timeout::{ReadyTimeout, Timeout};

use std::mem;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;

use super::backoff::{Backoff, Delays};
use super::child::{Child, Phase};
use super::rolling_restart::share_of;
use super::stopping_child::StoppingChild;
use super::{Action, ActionQueue, Config};
use crate::exit::Process;
use crate::report::WorkerReport;

/// Without a ready timeout, a replacement counts as ready once it has lived this long.
const PROBATION: Duration = Duration::from_secs(1);
/// No id ever has more processes than this: one that serves and one that starts or stops.
const MAX_PROCESSES: usize = 2;

#[derive(Debug)]
pub(super) struct Slot {
    id: usize,
    /// The generation of the next process.
    generation: u32,
    state: State,
    bring_up: BringUp,
    queue: Queue,
    backoff: Backoff,
    stopping: Vec<StoppingChild>,
    report: WorkerReport,
    /// The generation whose exit the report holds.
    reported_generation: u32,
}

#[derive(Debug)]
enum State {
    /// No process serves the id, and none will start.
    Stopped,
    /// The next process starts then.
    Backoff { until: Instant, reason: StartReason },
    /// A start was requested and has not been answered yet.
    Starting { reason: StartReason },
    /// This process serves the id, or will once it is ready.
    Running(Child),
    /// The old process serves until the new one, once it has been started, is ready.
    Replacing {
        old: Child,
        /// Boxed, because few slots have one, and every slot is as large as the largest state.
        new: Option<Box<Child>>,
    },
}

/// Why a process is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StartReason {
    /// It is one of the first starts. If the system refuses it, the service stops.
    Initial,
    /// The id was added, or is needed again.
    ScaleUp,
    /// The last process failed. Only this counts as a restart in the report.
    Restart,
    /// It takes the place of a process that was to be replaced.
    Replacement,
}

/// Whether a process of this id has been ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BringUp {
    /// No process has, and the id was there from the beginning.
    Initial,
    /// No process has since the id was added.
    Added,
    /// One has.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    /// It has had no process yet that serves it.
    Unopened,
    /// It gets connections.
    Open,
    /// The id is not needed any more, but a process is started or restarted to serve what is left.
    Draining,
    /// The id is needed again, and connections from before may still be waiting.
    Reopening,
}

impl Slot {
    /// Returns the slot of an id that is there from the beginning.
    pub fn initial(id: usize, now: Instant) -> Slot {
        let state = State::Backoff { until: now, reason: StartReason::Initial };
        Slot { bring_up: BringUp::Initial, queue: Queue::Open, state, ..Slot::added(id, now) }
    }

    /// Returns the slot of a new id, whose first process is due at once.
    pub fn added(id: usize, now: Instant) -> Slot {
        Slot {
            id,
            generation: 0,
            state: State::Backoff { until: now, reason: StartReason::ScaleUp },
            bring_up: BringUp::Added,
            queue: Queue::Unopened,
            backoff: Backoff::default(),
            stopping: Vec::new(),
            report: WorkerReport::new(id),
            reported_generation: 0,
        }
    }

    /// Returns whether the id counts as one of the workers that should run.
    pub fn is_wanted(&self) -> bool {
        !self.is_stopped() && self.queue != Queue::Draining
    }

    pub fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    /// Returns whether the id's own queue should get new connections.
    pub fn is_serving(&self) -> bool {
        !self.is_stopped() && self.queue == Queue::Open
    }

    /// Returns whether no process lives and none will start.
    pub fn is_over(&self) -> bool {
        self.is_stopped() && self.stopping.is_empty()
    }

    /// Returns whether its process is from before the rolling restart `epoch`, and can be replaced.
    pub fn is_outdated(&self, epoch: u64) -> bool {
        match &self.state {
            State::Running(child) => child.epoch < epoch && (child.is_starting() || child.phase == Phase::Ready),
            _ => false,
        }
    }

    /// Returns the time at which its process is too old, if the process could be replaced now.
    pub fn recycle_at(&self) -> Option<Instant> {
        match &self.state {
            State::Running(child) if child.phase == Phase::Ready && self.stopping.is_empty() => child.recycle_at,
            _ => None,
        }
    }

    /// Gives its process one more lifetime.
    pub fn renew_lifetime(&mut self, now: Instant, config: &Config, rng: &mut SmallRng) {
        if let State::Running(child) = &mut self.state {
            child.recycle_at = config.max_lifetime.map(|lifetime| now + share_of(lifetime, rng));
        }
    }

    /// Returns whether a process is still starting or stopping, so that a rolling restart waits.
    pub fn is_in_transition(&self) -> bool {
        let is_starting = match &self.state {
            State::Running(child) => child.is_starting(),
            State::Replacing { .. } | State::Starting { .. } => true,
            State::Stopped | State::Backoff { .. } => false,
        };
        is_starting || !self.stopping.is_empty()
    }

    pub fn is_initial_start(&self) -> bool {
        self.start_reason() == Some(StartReason::Initial)
    }

    fn start_reason(&self) -> Option<StartReason> {
        match self.state {
            State::Backoff { reason, .. } | State::Starting { reason } => Some(reason),
            _ => None,
        }
    }

    pub fn bring_up(&self) -> BringUp {
        self.bring_up
    }

    pub fn deadline(&self) -> Option<Instant> {
        let start = match self.state {
            State::Backoff { until, .. } if !self.is_crowded() => Some(until),
            _ => None,
        };
        let running = self.running().filter_map(Child::deadline);
        let stopping = self.stopping.iter().filter_map(StoppingChild::deadline);
        running.chain(stopping).chain(start).min()
    }

    /// Returns every process of this id that has not exited.
    pub fn processes(&self) -> impl Iterator<Item = Process> {
        let stopping = self.stopping.iter().map(|child| child.process);
        stopping.chain(self.running().map(|child| child.process))
    }

    /// Returns the processes that have got no SIGKILL from the parent.
    pub fn unkilled_processes(&self) -> impl Iterator<Item = Process> {
        let stopping = self.stopping.iter().filter(|child| !child.is_killed()).map(|child| child.process);
        stopping.chain(self.running().filter(|child| !child.is_killed()).map(|child| child.process))
    }

    /// Returns the process that serves the id, or will once it is ready.
    pub fn current(&self) -> Option<Process> {
        self.running().next().map(|child| child.process)
    }

    fn running(&self) -> impl Iterator<Item = &Child> {
        let (current, replacement) = match &self.state {
            State::Running(child) => (Some(child), None),
            State::Replacing { old, new } => (Some(old), new.as_deref()),
            _ => (None, None),
        };
        current.into_iter().chain(replacement)
    }

    fn running_mut(&mut self) -> impl Iterator<Item = &mut Child> {
        let (current, replacement) = match &mut self.state {
            State::Running(child) => (Some(child), None),
            State::Replacing { old, new } => (Some(old), new.as_deref_mut()),
            _ => (None, None),
        };
        current.into_iter().chain(replacement)
    }

    /// Scales the id up again.
    pub fn scale_up(&mut self, now: Instant) {
        if self.bring_up == BringUp::Initial {
            self.bring_up = BringUp::Added;
        }
        if self.queue == Queue::Draining {
            self.queue = Queue::Reopening;
        } else {
            self.queue = Queue::Unopened;
            self.state = State::Backoff { until: now, reason: StartReason::ScaleUp };
        }
    }

    /// Schedules a restart, and returns the delay until then.
    pub fn schedule_restart(&mut self, now: Instant, uptime: Duration, delays: Delays, rng: &mut SmallRng) -> Duration {
        let delay = self.backoff.after_life(uptime, delays, rng);
        self.state = State::Backoff { until: now + delay, reason: StartReason::Restart };
        delay
    }

    /// Starts the first process, unless the id is not needed any more.
    pub fn start_initial(&mut self) -> Option<Action> {
        let State::Backoff { reason: StartReason::Initial, .. } = self.state else { return None };
        self.state = State::Starting { reason: StartReason::Initial };
        Some(self.next_start())
    }

    /// Starts the next process if one is due and fewer than two processes are stopping.
    pub fn start_if_due(&mut self, now: Instant, actions: &mut ActionQueue) {
        match self.state {
            State::Backoff { until, reason } if until <= now && !self.is_crowded() => {
                self.state = State::Starting { reason };
                actions.push(self.next_start());
            }
            _ => {}
        }
    }

    /// Starts a replacement for the process that runs.
    pub fn start_replacement(&mut self, actions: &mut ActionQueue) {
        self.state = match mem::replace(&mut self.state, State::Stopped) {
            State::Running(old) => {
                actions.push(self.next_start());
                State::Replacing { old, new: None }
            }
            other => other,
        };
    }

    fn next_start(&self) -> Action {
        Action::Start { id: self.id, generation: self.generation }
    }

    /// Takes a process that was started. If the slot is stopped, because the stop came while the start was on its way,
    /// the caller must stop the process with [`Slot::stop_now`].
    pub fn handle_started(&mut self, now: Instant, process: Process, epoch: u64, config: &Config, rng: &mut SmallRng) {
        let is_restart = self.start_reason() == Some(StartReason::Restart);
        self.generation = process.generation + 1;
        self.report.processes += 1;
        self.report.restarts += u32::from(is_restart);
        self.report.failed = false;
        if config.ready_timeout.is_none() {
            self.open_queue();
        }
        let recycle_at = config.max_lifetime.map(|lifetime| now + share_of(lifetime, rng));
        let child = |without_readiness| {
            let not_ready = config.ready_timeout.map(|timeout| Phase::NotReady { late_at: now + timeout });
            Child::new(process, now, epoch, not_ready.unwrap_or(without_readiness), recycle_at)
        };
        self.state = match mem::replace(&mut self.state, State::Stopped) {
            State::Replacing { old, new: None } => {
                State::Replacing { old, new: Some(Box::new(child(Phase::Probation { ready_at: now + PROBATION }))) }
            }
            _ => State::Running(child(Phase::Ready)),
        };
    }

    /// Handles a refused start. Returns the delay until the next try, or `None` if it was a replacement, which is not
    /// tried again.
    pub fn handle_start_failed(&mut self, now: Instant, delays: Delays, rng: &mut SmallRng) -> Option<Duration> {
        let reason = match mem::replace(&mut self.state, State::Stopped) {
            State::Replacing { old, new: None } => {
                self.state = State::Running(old);
                return None;
            }
            State::Starting { reason } | State::Backoff { reason, .. } => reason,
            other => {
                self.state = other;
                return None;
            }
        };
        let delay = self.backoff.after_refusal(delays, rng);
        self.state = State::Backoff { until: now + delay, reason };
        Some(delay)
    }

    /// Handles a report of readiness. Returns the old process if a replacement has taken its place.
    #[must_use = "the old process must be stopped"]
    pub fn handle_ready(&mut self, now: Instant, generation: u32, actions: &mut ActionQueue) -> Option<Child> {
        // A process that has been told to stop since has shown too that this id can be brought up.
        if self.stopping.iter().any(|child| child.is(generation)) {
            self.bring_up = BringUp::Done;
        }
        let newest = self.newest()?;
        if newest.is(generation) && newest.is_starting() { self.become_ready(now, actions) } else { None }
    }

    /// Returns the process that may still have to show that it works.
    fn newest(&mut self) -> Option<&mut Child> {
        match &mut self.state {
            State::Running(child) => Some(child),
            State::Replacing { new, .. } => new.as_deref_mut(),
            _ => None,
        }
    }

    fn become_ready(&mut self, now: Instant, actions: &mut ActionQueue) -> Option<Child> {
        self.note_uptime(now);
        self.bring_up = BringUp::Done;
        self.open_queue();
        self.newest()?.become_ready(now, actions);
        match mem::replace(&mut self.state, State::Stopped) {
            State::Replacing { old, new: Some(new) } => {
                self.state = State::Running(*new);
                Some(old)
            }
            other => {
                self.state = other;
                None
            }
        }
    }

    fn open_queue(&mut self) {
        if self.queue != Queue::Draining {
            self.queue = Queue::Open;
        }
    }

    pub fn handle_beat(&mut self, generation: u32, at: Instant) {
        if let Some(child) = self.running_mut().find(|child| child.is(generation)) {
            child.beat(at);
        }
    }

    /// Aborts processes without a heartbeat.
    pub fn check_beats(&mut self, now: Instant, timeout: Duration, doubtful: bool, actions: &mut ActionQueue) {
        self.running_mut().for_each(|child| child.check_beat(now, timeout, doubtful, actions));
    }

    /// Treats every process as if its heartbeat had come just now.
    pub fn forgive_beats(&mut self, now: Instant) {
        self.running_mut().for_each(|child| child.beat(now));
    }

    /// Resets the failure count if the current process has lived long enough. Call this before the process is replaced
    /// or removed, for whatever reason.
    fn note_uptime(&mut self, now: Instant) {
        if let State::Running(child) | State::Replacing { old: child, .. } = &self.state {
            self.backoff.note_uptime(now.saturating_duration_since(child.since));
        }
    }

    /// Records that no process will follow, and whether the last exit was a failure.
    pub fn set_failed(&mut self, failed: bool) {
        self.report.failed = failed;
    }

    pub fn report(&self) -> WorkerReport {
        self.report
    }

    fn is_crowded(&self) -> bool {
        self.stopping.len() >= MAX_PROCESSES
    }
}
