//! A [`StoppingChild`] is a process that is draining or stopping.

use std::time::{Duration, Instant};

use super::{ActionQueue, WorkerSignal};
use crate::event::Event;
use crate::exit::Process;

/// A process that the parent has asked to stop, or will ask to stop once its queue is empty. The policy only waits for
/// this process to exit. So the next start of the same worker does not depend on how this process exits.
#[derive(Debug)]
pub(super) struct StoppingChild {
    pub process: Process,
    pub since: Instant,
    pub phase: StoppingPhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoppingPhase {
    /// The worker's own queue gets no new connections. The parent asks the process to stop at `stop_at`. This time is
    /// postponed while connections are left in the queue, but never beyond `last`.
    Draining { stop_at: Instant, last: Instant },
    /// The parent has asked the process to stop, and sends SIGKILL at `kill_at`.
    Stopping { kill_at: Instant },
    /// The parent has sent SIGKILL.
    Killed,
}

impl StoppingChild {
    pub fn is(&self, generation: u32) -> bool {
        self.process.generation == generation
    }

    pub fn is_killed(&self) -> bool {
        self.phase == StoppingPhase::Killed
    }

    pub fn is_draining(&self) -> bool {
        matches!(self.phase, StoppingPhase::Draining { .. })
    }

    /// Returns whether `stop_at` has passed but the drain may still be extended.
    pub fn is_drain_due(&self, now: Instant) -> bool {
        matches!(self.phase, StoppingPhase::Draining { stop_at, last } if stop_at <= now && now < last)
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            StoppingPhase::Draining { stop_at: at, .. } | StoppingPhase::Stopping { kill_at: at } => Some(at),
            StoppingPhase::Killed => None,
        }
    }

    /// Postpones `stop_at` by `drain`, but not beyond `last`. Does nothing if `stop_at` has not passed.
    pub fn drain_longer(&mut self, now: Instant, drain: Duration) {
        match &mut self.phase {
            StoppingPhase::Draining { stop_at, last } if *stop_at <= now => *stop_at = (now + drain).min(*last),
            _ => {}
        }
    }

    /// Sends `signal` to the process, and SIGKILL at `kill_at`. If an earlier deadline for SIGKILL is already set, that
    /// deadline stays.
    pub fn stop(&mut self, signal: WorkerSignal, kill_at: Instant, actions: &mut ActionQueue) {
        let kill_at = match self.phase {
            StoppingPhase::Killed => return,
            StoppingPhase::Stopping { kill_at: earlier } => earlier.min(kill_at),
            StoppingPhase::Draining { .. } => kill_at,
        };
        self.phase = StoppingPhase::Stopping { kill_at };
        actions.send(self.process, signal);
    }

    pub fn kill(&mut self, actions: &mut ActionQueue) {
        if self.phase != StoppingPhase::Killed {
            self.phase = StoppingPhase::Killed;
            actions.send(self.process, WorkerSignal::Kill);
        }
    }

    /// Kills the process if it has not stopped in time. Asks it to stop if its drain is over.
    pub fn handle_timeout(&mut self, now: Instant, graceful_timeout: Duration, actions: &mut ActionQueue) {
        match self.phase {
            StoppingPhase::Stopping { kill_at } if kill_at <= now => {
                actions.emit(Event::StopTimedOut { process: self.process });
                self.kill(actions);
            }
            StoppingPhase::Draining { stop_at, .. } if stop_at <= now => {
                self.stop(WorkerSignal::Stop, now + graceful_timeout, actions);
            }
            _ => {}
        }
    }
}
