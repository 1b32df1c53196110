//! A [`StoppingChild`] is a process that is draining or stopping.

use std::time::{Duration, Instant};

use super::deadline::Deadline;
use super::kill_deadline::KillDeadline;
use super::{ActionQueue, WorkerSignal};
use crate::event::Event;
use crate::exit::Process;

/// A process that the parent has asked to stop, or will ask to stop once its queue is empty. The policy only waits for
/// this process to exit. So the next start of the same worker does not depend on how this process exits.
#[derive(Debug)]
pub(super) struct StoppingChild {
    pub process: Process,
    pub since: Instant,
    /// When the process became ready. `None` if it was not ready before its stop.
    pub ready_at: Option<Instant>,
    pub last_beat: Instant,
    pub heartbeat_timeout: Option<Duration>,
    pub phase: StoppingPhase,
}

/// The longest time that the policy waits for the exit of a process after SIGKILL. Only a process that is blocked
/// inside the kernel takes longer, for example one that waits for a network file system (state D in ps(1)).
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoppingPhase {
    /// The worker's own queue gets no new connections. The parent asks the process to stop at `stop_at`. This time is
    /// postponed while connections are left in the queue, but never beyond `last`.
    Draining { stop_at: Instant, last: Deadline },
    /// The parent has asked the process to stop, and sends SIGKILL at `kill`.
    Stopping { kill: KillDeadline },
    /// The parent has sent SIGKILL.
    /// If it has not exited at `give_up_at`, the policy abandons it. `None` if the policy already has.
    Killed { give_up_at: Option<Deadline> },
}

impl StoppingChild {
    pub fn is(&self, generation: u32) -> bool {
        self.process.generation == generation
    }

    pub fn is_killed(&self) -> bool {
        matches!(self.phase, StoppingPhase::Killed { .. })
    }

    pub fn is_draining(&self) -> bool {
        matches!(self.phase, StoppingPhase::Draining { .. })
    }

    /// Returns whether `stop_at` has passed but the drain may still be extended.
    pub fn is_drain_due(&self, now: Instant) -> bool {
        matches!(self.phase, StoppingPhase::Draining { stop_at, last } if stop_at <= now && !last.has_passed(now))
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            StoppingPhase::Draining { stop_at: at, .. } => Some(at),
            StoppingPhase::Stopping { kill } => Some(kill.at()),
            StoppingPhase::Killed { give_up_at } => give_up_at.map(Deadline::at),
        }
    }

    /// Postpones `stop_at` by `drain`, but not beyond `last`. Does nothing if `stop_at` has not passed.
    pub fn drain_longer(&mut self, now: Instant, drain: Duration) {
        match &mut self.phase {
            StoppingPhase::Draining { stop_at, last } if *stop_at <= now => *stop_at = (now + drain).min(last.at()),
            _ => {}
        }
    }

    /// Sends `signal` to the process, and SIGKILL at `kill_at`. If an earlier deadline for SIGKILL is already set, that
    /// deadline stays.
    pub fn stop(&mut self, signal: WorkerSignal, kill_at: Deadline, actions: &mut ActionQueue) {
        let kill = match self.phase {
            StoppingPhase::Killed { .. } => return,
            StoppingPhase::Stopping { kill } => kill.or_earlier(kill_at),
            StoppingPhase::Draining { .. } => KillDeadline::new(kill_at),
        };
        self.phase = StoppingPhase::Stopping { kill };
        actions.send(self.process, signal);
    }

    /// Returns whether SIGKILL is due, but would be delayed by a core dump.
    pub fn is_kill_due(&self, now: Instant) -> bool {
        matches!(self.phase, StoppingPhase::Stopping { kill } if kill.may_wait(now))
    }

    /// Delays a SIGKILL that is due, because the kernel is writing a core dump of the process.
    pub fn handle_core_dump(&mut self, now: Instant) {
        if let StoppingPhase::Stopping { kill } = &mut self.phase {
            kill.wait(now);
        }
    }

    pub fn kill(&mut self, now: Instant, actions: &mut ActionQueue) {
        if !self.is_killed() {
            self.phase = StoppingPhase::Killed { give_up_at: Some(Deadline::after(now, KILL_TIMEOUT)) };
            actions.send(self.process, WorkerSignal::Kill);
        }
    }

    /// Extends the deadline of this process if the parent was paused or starved ([`Deadline::extend`]).
    pub fn extend(&mut self, now: Instant, interrupted_at: Option<Instant>) -> bool {
        match &mut self.phase {
            StoppingPhase::Draining { last: deadline, .. } | StoppingPhase::Killed { give_up_at: Some(deadline) } => {
                deadline.extend(now, interrupted_at)
            }
            StoppingPhase::Stopping { kill } => kill.extend(now, interrupted_at),
            StoppingPhase::Killed { give_up_at: None } => false,
        }
    }

    /// Kills the process if it has not stopped in time. Asks it to stop if its drain is over. Abandons it if SIGKILL
    /// has not ended it in time.
    pub fn handle_timeout(&mut self, now: Instant, graceful_timeout: Duration, actions: &mut ActionQueue) {
        match self.phase {
            StoppingPhase::Stopping { kill } if kill.at() <= now => {
                actions.emit(Event::StopTimedOut { process: self.process });
                self.kill(now, actions);
            }
            StoppingPhase::Draining { stop_at, .. } if stop_at <= now => {
                self.stop(WorkerSignal::Stop, Deadline::after(now, graceful_timeout), actions);
            }
            StoppingPhase::Killed { give_up_at: Some(at) } if at.has_passed(now) => {
                self.phase = StoppingPhase::Killed { give_up_at: None };
                actions.abandon(self.process);
            }
            _ => {}
        }
    }
}
