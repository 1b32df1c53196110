//! A process that no longer serves its id.

use std::time::{Duration, Instant};

use super::{ActionQueue, WorkerSignal};
use crate::event::Event;
use crate::exit::Process;

/// A process that was told to stop, or will be once it has drained. It is only waited for, so that the next start of its
/// id does not depend on it.
#[derive(Debug)]
pub(super) struct StoppingChild {
    pub process: Process,
    pub since: Instant,
    pub phase: StoppingPhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoppingPhase {
    /// Its own queue gets no new connections. It is told to stop at `stop_at`, which moves on while connections are left,
    /// but not beyond `last`.
    Draining { stop_at: Instant, last: Instant },
    /// It was told to stop, and gets SIGKILL then.
    Stopping { kill_at: Instant },
    /// It got SIGKILL from the parent.
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

    /// Returns whether it would be told to stop now, although it may still go on draining.
    pub fn is_drain_due(&self, now: Instant) -> bool {
        matches!(self.phase, StoppingPhase::Draining { stop_at, last } if stop_at <= now && now < last)
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            StoppingPhase::Draining { stop_at: at, .. } | StoppingPhase::Stopping { kill_at: at } => Some(at),
            StoppingPhase::Killed => None,
        }
    }

    /// Continues a drain that is due.
    pub fn drain_longer(&mut self, now: Instant, drain: Duration) {
        match &mut self.phase {
            StoppingPhase::Draining { stop_at, last } if *stop_at <= now => *stop_at = (now + drain).min(*last),
            _ => {}
        }
    }

    /// Sends `signal`, and SIGKILL at `kill_at` or at an earlier deadline that is set already.
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

    /// Kills a process that has not stopped in time, and stops one whose drain is over.
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
