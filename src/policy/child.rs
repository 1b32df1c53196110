//! A [`Child`] is a process that serves its worker id, or that will serve it once it is ready.

use std::time::{Duration, Instant};

use super::deadline::Deadline;
use super::kill_deadline::KillDeadline;
use super::stopping_child::{KILL_TIMEOUT, StoppingChild, StoppingPhase};
use super::{ActionQueue, Config, WorkerSignal};
use crate::event::{Event, RecycleReason};
use crate::exit::Process;

/// A process that the parent has not asked to stop.
#[derive(Debug)]
pub(super) struct Child {
    pub process: Process,
    pub since: Instant,
    /// When the process became ready. `None` if it is not ready yet.
    pub ready_at: Option<Instant>,
    /// The number of rolling restarts that had begun when this process was started.
    pub epoch: u64,
    pub phase: Phase,
    pub last_beat: Instant,
    /// The longest time between two heartbeats. `None` if no heartbeats are expected.
    pub heartbeat_timeout: Option<Duration>,
    /// Whether the last check found no heartbeat, but spared the process because the parent may have been stopped
    /// meanwhile.
    pub suspect: bool,
    /// The reason that the process itself has for its replacement, if any. It stays if a replacement fails.
    pub worn_out: Option<RecycleReason>,
    /// The planned replacement of this process alone.
    pub recycling: Option<Recycling>,
}

/// A planned replacement of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recycling {
    pub at: Instant,
    pub reason: RecycleReason,
}

/// The phase that a process has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The process must report that it is ready before `late_at`.
    NotReady { late_at: Deadline },
    /// The process is a replacement, and no ready timeout is set. The replacement counts as ready if it is still alive
    /// at `ready_at`.
    Probation { ready_at: Deadline },
    /// The process serves.
    Ready,
    /// The parent has sent SIGABRT because the heartbeats stopped. The parent sends SIGKILL at `kill`.
    Aborting { kill: KillDeadline },
    /// The parent has sent SIGKILL.
    /// If it has not exited at `give_up_at`, the policy abandons it. `None` if the policy already has.
    Killed { give_up_at: Option<Deadline> },
}

impl Child {
    pub fn new(process: Process, now: Instant, epoch: u64, phase: Phase, recycling: Option<Recycling>) -> Child {
        let ready_at = (phase == Phase::Ready).then_some(now);
        Child {
            process,
            since: now,
            ready_at,
            epoch,
            phase,
            last_beat: now,
            heartbeat_timeout: None,
            suspect: false,
            worn_out: None,
            recycling,
        }
    }

    pub fn is(&self, generation: u32) -> bool {
        self.process.generation == generation
    }

    pub fn is_killed(&self) -> bool {
        matches!(self.phase, Phase::Killed { .. })
    }

    /// Returns whether the parent has aborted or killed the process. Such a process has failed, whatever its exit
    /// status.
    pub fn was_given_up(&self) -> bool {
        matches!(self.phase, Phase::Aborting { .. } | Phase::Killed { .. })
    }

    /// Returns whether the process is not ready yet.
    pub fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::NotReady { .. } | Phase::Probation { .. })
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::NotReady { late_at: deadline } | Phase::Probation { ready_at: deadline } => Some(deadline.at()),
            Phase::Aborting { kill } => Some(kill.at()),
            Phase::Killed { give_up_at } => give_up_at.map(Deadline::at),
            Phase::Ready => None,
        }
    }

    pub fn become_ready(&mut self, now: Instant, actions: &mut ActionQueue) {
        actions.emit(Event::Ready { process: self.process });
        self.phase = Phase::Ready;
        self.ready_at = Some(now);
        self.beat(now);
    }

    pub fn kill(&mut self, now: Instant, actions: &mut ActionQueue) {
        if !self.is_killed() {
            self.phase = Phase::Killed { give_up_at: Some(Deadline::after(now, KILL_TIMEOUT)) };
            actions.send(self.process, WorkerSignal::Kill);
        }
    }

    /// Returns whether SIGKILL is due, but would be delayed by a core dump.
    pub fn is_kill_due(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Aborting { kill } if kill.may_wait(now))
    }

    /// Delays a SIGKILL that is due, because the kernel is writing a core dump of the process.
    pub fn handle_core_dump(&mut self, now: Instant) {
        if let Phase::Aborting { kill } = &mut self.phase {
            kill.wait(now);
        }
    }

    /// Sends SIGKILL if SIGABRT has not ended the process in time.
    pub fn kill_overdue(&mut self, now: Instant, actions: &mut ActionQueue) {
        if matches!(self.phase, Phase::Aborting { kill } if kill.at() <= now) {
            actions.emit(Event::StopTimedOut { process: self.process });
            self.kill(now, actions);
        }
    }

    /// Abandons the process if SIGKILL has not ended it in time.
    pub fn abandon_overdue(&mut self, now: Instant, actions: &mut ActionQueue) {
        if matches!(self.phase, Phase::Killed { give_up_at: Some(at) } if at.has_passed(now)) {
            self.phase = Phase::Killed { give_up_at: None };
            actions.abandon(self.process);
        }
    }

    /// Sends `signal` to the process, and SIGKILL at `kill_at`. If the process was aborted before and its SIGKILL is
    /// due earlier, the earlier time stays. A process that was killed before gets no other signal.
    pub fn stop(self, signal: WorkerSignal, kill_at: Deadline, actions: &mut ActionQueue) -> StoppingChild {
        let phase = match self.phase {
            Phase::Killed { give_up_at } => StoppingPhase::Killed { give_up_at },
            Phase::Aborting { kill } => StoppingPhase::Stopping { kill: kill.or_earlier(kill_at) },
            _ => StoppingPhase::Stopping { kill: KillDeadline::new(kill_at) },
        };
        if !matches!(phase, StoppingPhase::Killed { .. }) {
            actions.send(self.process, signal);
        }
        self.into_stopping(phase)
    }

    /// Returns this process as one that drains or stops.
    pub fn into_stopping(self, phase: StoppingPhase) -> StoppingChild {
        let Child { process, since, ready_at, last_beat, heartbeat_timeout, .. } = self;
        StoppingChild { process, since, ready_at, last_beat, heartbeat_timeout, phase }
    }

    /// Records a heartbeat.
    pub fn beat(&mut self, at: Instant) {
        self.last_beat = self.last_beat.max(at);
        self.suspect = false;
    }

    /// Aborts the process if it is ready or on probation and has sent no heartbeat for the heartbeat timeout.
    /// `doubtful` means that the parent itself may have been stopped or starved. In this case the first check without a
    /// heartbeat only marks the process, and the second such check aborts it.
    pub fn check_beat(&mut self, now: Instant, config: &Config, doubtful: bool, actions: &mut ActionQueue) {
        let Some(timeout) = self.heartbeat_timeout else { return };
        if !matches!(self.phase, Phase::Ready | Phase::Probation { .. }) || now < self.last_beat + timeout {
            return;
        }
        if doubtful && !self.suspect {
            self.suspect = true;
        } else {
            actions.emit(Event::HeartbeatTimedOut { process: self.process });
            self.phase = Phase::Aborting { kill: KillDeadline::new(Deadline::after(now, config.abort_timeout)) };
            actions.send(self.process, WorkerSignal::Abort);
        }
    }

    /// Extends the deadline of this process if the parent was paused or starved ([`Deadline::extend`]).
    pub fn extend(&mut self, now: Instant, interrupted_at: Option<Instant>) -> bool {
        match &mut self.phase {
            Phase::NotReady { late_at: deadline }
            | Phase::Probation { ready_at: deadline }
            | Phase::Killed { give_up_at: Some(deadline) } => deadline.extend(now, interrupted_at),
            Phase::Aborting { kill } => kill.extend(now, interrupted_at),
            Phase::Ready | Phase::Killed { give_up_at: None } => false,
        }
    }
}
