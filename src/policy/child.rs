//! A process that serves its id, or will once it is ready.

use std::time::{Duration, Instant};

use super::stopping_child::{StoppingChild, StoppingPhase};
use super::{ActionQueue, WorkerSignal};
use crate::event::Event;
use crate::exit::Process;

/// The time from SIGABRT to SIGKILL. SIGABRT alone is not enough: a stopped process dies only of SIGKILL.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// A process that has not been told to stop.
#[derive(Debug)]
pub(super) struct Child {
    pub process: Process,
    pub since: Instant,
    /// The number of rolling restarts that had begun when this process was started.
    pub epoch: u64,
    pub phase: Phase,
    last_beat: Instant,
    /// The last check found no heartbeat, but the parent may have been stopped meanwhile.
    suspect: bool,
    /// The ready timeout was extended once, because the parent may have been stopped meanwhile.
    extended: bool,
    /// When the process has reached its maximum lifetime.
    pub recycle_at: Option<Instant>,
}

/// How far a process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has until then to report that it is ready.
    NotReady { late_at: Instant },
    /// A replacement without a ready timeout: it counts as ready if it lives until then.
    Probation { ready_at: Instant },
    /// It serves.
    Ready,
    /// It got SIGABRT because its heartbeats stopped, and gets SIGKILL then.
    Aborting { kill_at: Instant },
    /// It got SIGKILL from the parent.
    Killed,
}

impl Child {
    pub fn new(process: Process, now: Instant, epoch: u64, phase: Phase, recycle_at: Option<Instant>) -> Child {
        Child { process, since: now, epoch, phase, last_beat: now, suspect: false, extended: false, recycle_at }
    }

    pub fn is(&self, generation: u32) -> bool {
        self.process.generation == generation
    }

    pub fn is_killed(&self) -> bool {
        self.phase == Phase::Killed
    }

    /// Returns whether the parent has aborted or killed it. Such a process has failed, whatever its exit status.
    pub fn was_given_up(&self) -> bool {
        matches!(self.phase, Phase::Aborting { .. } | Phase::Killed)
    }

    /// Returns whether it has not shown yet that it works.
    pub fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::NotReady { .. } | Phase::Probation { .. })
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::NotReady { late_at: at } | Phase::Probation { ready_at: at } | Phase::Aborting { kill_at: at } => {
                Some(at)
            }
            Phase::Ready | Phase::Killed => None,
        }
    }

    pub fn become_ready(&mut self, now: Instant, actions: &mut ActionQueue) {
        actions.emit(Event::Ready { process: self.process });
        self.phase = Phase::Ready;
        self.beat(now);
    }

    pub fn kill(&mut self, actions: &mut ActionQueue) {
        if self.phase != Phase::Killed {
            self.phase = Phase::Killed;
            actions.send(self.process, WorkerSignal::Kill);
        }
    }

    /// Kills a process that SIGABRT has not ended in time.
    pub fn kill_overdue(&mut self, now: Instant, actions: &mut ActionQueue) {
        if matches!(self.phase, Phase::Aborting { kill_at } if kill_at <= now) {
            actions.emit(Event::StopTimedOut { process: self.process });
            self.kill(actions);
        }
    }

    /// Sends it `signal`, and SIGKILL at `kill_at` or when its abort is due, whichever is earlier. A process that was
    /// killed before gets no other signal.
    pub fn stop(self, signal: WorkerSignal, kill_at: Instant, actions: &mut ActionQueue) -> StoppingChild {
        let phase = match self.phase {
            Phase::Killed => StoppingPhase::Killed,
            Phase::Aborting { kill_at: earlier } => StoppingPhase::Stopping { kill_at: earlier.min(kill_at) },
            _ => StoppingPhase::Stopping { kill_at },
        };
        if phase != StoppingPhase::Killed {
            actions.send(self.process, signal);
        }
        StoppingChild { process: self.process, since: self.since, phase }
    }

    /// Notes a heartbeat.
    pub fn beat(&mut self, at: Instant) {
        self.last_beat = self.last_beat.max(at);
        self.suspect = false;
    }

    /// Aborts a ready process without a heartbeat for `timeout`. If the check is doubtful, because the parent may have been
    /// stopped or starved, the process is aborted at the second such check only.
    pub fn check_beat(&mut self, now: Instant, timeout: Duration, doubtful: bool, actions: &mut ActionQueue) {
        if !matches!(self.phase, Phase::Ready | Phase::Probation { .. }) || now < self.last_beat + timeout {
            return;
        }
        if doubtful && !self.suspect {
            self.suspect = true;
        } else {
            actions.emit(Event::HeartbeatTimedOut { process: self.process });
            self.phase = Phase::Aborting { kill_at: now + ABORT_GRACE };
            actions.send(self.process, WorkerSignal::Abort);
        }
    }

    /// Gives a late process the same time once more, and only once, if the parent may have been stopped meanwhile. Returns
    /// whether it did.
    pub fn extend(&mut self, now: Instant, timeout: Duration, interrupted_at: Option<Instant>) -> bool {
        let Phase::NotReady { late_at } = self.phase else { return false };
        let late = now.saturating_duration_since(late_at);
        let doubtful = interrupted_at.is_some_and(|at| at >= self.since) || late >= timeout / 10;
        if self.extended || !doubtful {
            return false;
        }
        self.extended = true;
        self.phase = Phase::NotReady { late_at: now + timeout };
        true
    }
}
