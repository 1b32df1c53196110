//! The [`Slot`] of a worker: everything that the policy knows about this worker and its processes.
//!
//! A slot combines three small state machines. Each answers one question about the worker. A transition may depend on
//! the current state of another machine, but never on the history of that machine.
//!
//! # State: which process serves the worker id?
//!
//! A process that the parent has asked to stop moves from `state` to the list `stopping`. The policy then only waits
//! for that process to exit. So the next start never depends on how the previous process exits.
//!
//! | state | start due | started | start refused | ready | ready timeout | process exits | scaled down | scaled up | stop |
//! |---|---|---|---|---|---|---|---|---|---|
//! | Stopped | - | to `stopping` | - | - | - | - | - | Backoff (now) | - |
//! | Backoff | Starting | - | - | - | - | - | Stopped, or stays with Draining | with Draining: Reopening | Stopped |
//! | Starting | - | Running | Initial: stop all; else Backoff | - | - | - | Stopped, or stays with Draining | the same | Stopped |
//! | Running, not ready | - | - | - | ready | by bring-up: stop all, drop, kill | by verdict | to `stopping`, or stays with Draining | the same | to `stopping` |
//! | Running, ready | - | - | - | - | - | by verdict | to `stopping`, draining or stopping | - | to `stopping` |
//! | Replacing | - | new process | Running (old) | old to `stopping`, Running (new); a trial stays | kill new, Running (old) | old: new takes over; new: Running (old) | both to `stopping` | - | both to `stopping` |
//!
//! A replacement begins in the state `Running, ready`. If the new process starts first, the next state is `Replacing`.
//! If the old process must exit first, it moves to `stopping`, and the next state is `Backoff`, whose start is due once
//! `stopping` is empty.
//!
//! The trial of an upgrade is a replacement that does not take over when it is ready: the state stays `Replacing` until
//! the parent executes the new program, or until the trial ends. A worker in the state `Backoff` may have the trial as
//! its next process. If such a process fails, the next state is `Backoff` again, and no verdict is needed.
//!
//! A process that does not exit within [`KILL_TIMEOUT`](super::stopping_child::KILL_TIMEOUT) after SIGKILL is
//! abandoned: the policy handles this as an exit.
//!
//! # Bring-up: what does a failed start mean?
//!
//! With a ready timeout, the bring-up decides what the policy does if a process fails before it is ready:
//!
//! - `Initial`: the policy stops the pool. A worker that the service begins with has this value at first.
//! - `Added`: the policy drops the worker. A worker has this value after it was added, or removed and added again.
//! - `Done`: the policy restarts the worker. Every worker has this value once one of its processes has been ready.
//!
//! # Queue: does the worker's own queue get connections?
//!
//! This state matters only with per-worker sockets, because only then each worker has its own queue of connections.
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
mod recycle;
mod replace;
mod snapshot;
mod start;
mod status;
mod stop;
mod timeout;
mod trial;

pub(super) use exit::{ExitedChild, ExitedRole};
pub(super) use timeout::{ReadyTimeout, Timeout};

use std::mem;
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::child::{Child, Phase};
use super::stopping_child::StoppingChild;
use super::{ActionQueue, Config};
use crate::exit::Process;
use crate::report::WorkerReport;

/// A worker with this many abandoned processes gets no further process until one of them has exited. Otherwise the
/// number of processes would grow without limit, because each new process may be blocked in the same way.
const MAX_ABANDONED: usize = 2;

#[derive(Debug)]
pub(super) struct Slot {
    id: usize,
    /// The generation that the next process of this worker gets.
    generation: u32,
    /// The maximum number of processes that this worker has at the same time. If it is 2, one of them serves, and the
    /// other starts or stops.
    max_processes: usize,
    state: State,
    /// Whether the process that was started last, or the requested start, is the trial of an upgrade.
    is_trial: bool,
    bring_up: BringUp,
    /// Whether a process of this worker is known to have reached the call that starts the service.
    reached_call: bool,
    queue: Queue,
    backoff: Backoff,
    stopping: Vec<StoppingChild>,
    /// The number of processes that SIGKILL has not ended, and that the supervisor has abandoned. The policy does not
    /// wait for them.
    abandoned: usize,
    /// Whether the policy counts this worker as one without a ready process.
    pub counts_as_unavailable: bool,
    report: WorkerReport,
    /// The generation of the process whose exit is in the report.
    reported_generation: u32,
}

#[derive(Debug)]
enum State {
    /// No process serves the worker id, and no start is planned.
    Stopped,
    /// The next process starts at `until`.
    Backoff { until: Instant, reason: StartReason },
    /// The policy has requested a start, and the supervisor has not reported the result yet.
    Starting { reason: StartReason },
    /// This process serves the worker id, or will serve it once it is ready.
    Running(Child),
    /// The old process serves until its replacement is ready. `new` is `None` until the replacement has been started.
    Replacing {
        old: Child,
        /// Boxed to keep [`State`] small. Few slots have a replacement, but every slot has the size of the largest
        /// variant.
        new: Option<Box<Child>>,
    },
}

/// The reason for starting a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StartReason {
    /// The first start of a worker that the service begins with. If the system refuses this start, the pool stops.
    Initial,
    /// The worker was added, or was removed and added again.
    ScaleUp,
    /// The previous process has exited, and the worker must be restarted. Only this kind of start counts as a restart
    /// in the report.
    Restart,
    /// The previous process has exited without a failure, and the worker must be restarted.
    UncountedRestart,
    /// The process was requested as a replacement. The old process has exited, or has been asked to stop so that the
    /// replacement can start after the exit.
    Replacement,
}

/// Whether any process of this worker has been ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BringUp {
    /// No process has been ready. The service began with this worker.
    Initial,
    /// No process has been ready. The worker was added, or added again, while the service ran.
    Added,
    /// A process of this worker has been ready.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    /// The queue gets no connections yet. It opens once a process of the worker serves.
    Unopened,
    /// The queue gets connections.
    Open,
    /// The worker was removed, so its queue gets no new connections. But connections may be left in the queue. A
    /// process that is still starting, or that is started for this purpose, must serve them.
    Draining,
    /// The worker was added again while its queue was draining. Connections from before the removal may still be
    /// waiting.
    Reopening,
}

impl Slot {
    /// Returns the slot of a worker that the service begins with.
    pub fn initial(id: usize, now: Instant, config: &Config) -> Slot {
        let state = State::Backoff { until: now, reason: StartReason::Initial };
        Slot { bring_up: BringUp::Initial, queue: Queue::Open, state, ..Slot::added(id, now, config) }
    }

    /// Returns the slot of a worker that is added while the service runs. The first process of this worker is due at
    /// once.
    pub fn added(id: usize, now: Instant, config: &Config) -> Slot {
        Slot {
            id,
            generation: 0,
            max_processes: if config.max_surge == 0 { 1 } else { 2 },
            state: State::Backoff { until: now, reason: StartReason::ScaleUp },
            is_trial: false,
            bring_up: BringUp::Added,
            reached_call: false,
            queue: Queue::Unopened,
            backoff: Backoff::default(),
            stopping: Vec::new(),
            abandoned: 0,
            counts_as_unavailable: false,
            report: WorkerReport::new(id),
            reported_generation: 0,
        }
    }

    /// Returns the slot of a worker that does not run.
    pub fn unused(id: usize, now: Instant, config: &Config) -> Slot {
        Slot { state: State::Stopped, ..Slot::added(id, now, config) }
    }

    /// Returns whether this worker counts as one of the workers that should run.
    pub fn is_wanted(&self) -> bool {
        !self.is_stopped() && self.queue != Queue::Draining
    }

    pub fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    /// Returns whether the worker's own queue should get new connections.
    pub fn is_serving(&self) -> bool {
        !self.is_stopped() && self.queue == Queue::Open
    }

    /// Returns whether no process of this worker is alive and no start is planned.
    pub fn is_over(&self) -> bool {
        self.is_stopped() && self.stopping.is_empty()
    }

    /// Returns whether the worker should run but has no ready process.
    pub fn is_unavailable(&self) -> bool {
        let is_ready = match &self.state {
            State::Running(child) | State::Replacing { old: child, .. } => child.phase == Phase::Ready,
            State::Stopped | State::Backoff { .. } | State::Starting { .. } => false,
        };
        self.is_wanted() && !is_ready
    }

    /// Returns whether a process of this worker drains or stops.
    pub fn has_stopping(&self) -> bool {
        !self.stopping.is_empty()
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

    /// Returns whether a process of this worker is known to have reached the call that starts the service.
    pub fn reached_call(&self) -> bool {
        self.reached_call
    }

    pub fn handle_reached_call(&mut self) {
        self.reached_call = true;
    }

    pub fn bring_up(&self) -> BringUp {
        self.bring_up
    }

    pub fn deadline(&self) -> Option<Instant> {
        let start = match self.state {
            State::Backoff { until, reason } if self.can_start(reason) => Some(until),
            _ => None,
        };
        let running = self.running().filter_map(Child::deadline);
        let stopping = self.stopping.iter().filter_map(StoppingChild::deadline);
        running.chain(stopping).chain(start).min()
    }

    /// Returns the number of failures in a row after which this worker was restarted.
    pub fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// Returns whether a process of this worker has lived for this long.
    pub fn has_lived(&self, now: Instant, time: Duration) -> bool {
        let since = self.stopping.iter().map(|child| child.since).chain(self.running().map(|child| child.since));
        since.min().is_some_and(|since| now.saturating_duration_since(since) >= time)
    }

    /// Returns every process of this worker that has not exited.
    pub fn processes(&self) -> impl Iterator<Item = Process> {
        let stopping = self.stopping.iter().map(|child| child.process);
        stopping.chain(self.running().map(|child| child.process))
    }

    /// Returns the processes of this worker to which the parent has not sent SIGKILL.
    pub fn unkilled_processes(&self) -> impl Iterator<Item = Process> {
        let stopping = self.stopping.iter().filter(|child| !child.is_killed()).map(|child| child.process);
        stopping.chain(self.running().filter(|child| !child.is_killed()).map(|child| child.process))
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

    /// Adds this worker again, after it was removed or has finished.
    pub fn scale_up(&mut self, now: Instant) {
        if self.bring_up == BringUp::Initial {
            self.bring_up = BringUp::Added;
        }
        self.backoff.forget_failures();
        if self.queue == Queue::Draining {
            self.queue = Queue::Reopening;
        } else {
            self.queue = Queue::Unopened;
            self.state = State::Backoff { until: now, reason: StartReason::ScaleUp };
        }
    }

    /// Handles a process's report that it is ready. If this process is a replacement, returns the old process. The
    /// trial of an upgrade does not take over: the old process serves on.
    #[must_use = "the old process must be stopped"]
    pub fn handle_ready(&mut self, now: Instant, generation: u32, actions: &mut ActionQueue) -> Option<Child> {
        // A process that was ready but has been asked to stop counts as well: it shows that this worker can become
        // ready.
        if self.stopping.iter().any(|child| child.is(generation)) {
            self.bring_up = BringUp::Done;
        }
        let newest = self.newest()?;
        if newest.is(generation) && newest.is_starting() { self.become_ready(now, actions) } else { None }
    }

    /// Returns the process that was started last. During a replacement this is the new process, or `None` if the new
    /// process has not been started yet.
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
            State::Replacing { old, new: Some(new) } if !self.is_trial => {
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

    /// Aborts the processes of this worker that have sent no heartbeat for `timeout`.
    pub fn check_beats(&mut self, now: Instant, config: &Config, doubtful: bool, actions: &mut ActionQueue) {
        self.running_mut().for_each(|child| child.check_beat(now, config, doubtful, actions));
    }

    /// Treats every process of this worker as if it had just sent a heartbeat.
    pub fn forgive_beats(&mut self, now: Instant) {
        self.running_mut().for_each(|child| child.beat(now));
    }

    /// Resets the failure count of this worker if its current process has lived long enough ([`Backoff::note_uptime`]).
    /// Must be called before that process is replaced or removed.
    fn note_uptime(&mut self, now: Instant) {
        if let State::Running(child) | State::Replacing { old: child, .. } = &self.state {
            self.backoff.note_uptime(now.saturating_duration_since(child.since));
        }
    }

    /// Records that no further process will be started for this worker, and whether its last exit was a failure.
    pub fn set_failed(&mut self, failed: bool) {
        self.report.failed = failed;
    }

    pub fn report(&self) -> WorkerReport {
        self.report
    }

    /// Returns whether the number of the worker's processes allows a start for this reason.
    fn can_start(&self, reason: StartReason) -> bool {
        // The old process of a replacement must have exited, although two processes may be allowed.
        let limit = if reason == StartReason::Replacement { 1 } else { self.max_processes };
        self.stopping.len() < limit && self.abandoned < MAX_ABANDONED
    }
}
