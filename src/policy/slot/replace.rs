//! Replaces the process of a slot.

use std::mem;
use std::time::Instant;

use super::{MAX_ABANDONED, Queue, Slot, StartReason, State};
use crate::policy::child::{Child, Phase};
use crate::policy::deadline::Deadline;
use crate::policy::rolling_restart::Outdated;
use crate::policy::{ActionQueue, WorkerSignal};

impl Slot {
    /// Returns whether a rolling restart must replace the worker's process, because the process was started before
    /// `epoch`.
    pub fn outdated(&self, epoch: u64) -> Outdated {
        match &self.state {
            State::Running(child) if child.epoch < epoch && self.abandoned < MAX_ABANDONED => match child.phase {
                Phase::Ready if self.can_be_replaced() => Outdated::Yes,
                Phase::Ready | Phase::NotReady { .. } | Phase::Probation { .. } => Outdated::Busy,
                // The worker is restarted after the exit of this process anyway.
                Phase::Aborting { .. } | Phase::Killed { .. } => Outdated::No,
            },
            _ => Outdated::No,
        }
    }

    /// Returns whether no earlier process of this worker still drains or stops.
    pub fn can_be_replaced(&self) -> bool {
        self.stopping.is_empty() && self.abandoned < MAX_ABANDONED
    }

    /// Returns whether a replacement that has begun still waits for its new process to be ready.
    pub fn is_being_replaced(&self) -> bool {
        match &self.state {
            State::Replacing { .. } | State::Starting { .. } => true,
            State::Backoff { reason, .. } => *reason == StartReason::Replacement,
            State::Running(child) => child.phase != Phase::Ready,
            State::Stopped => false,
        }
    }

    /// Returns whether a process serves the worker id, or will serve it once it is ready.
    pub fn has_process(&self) -> bool {
        self.running().next().is_some()
    }

    /// Requests a replacement for the running process.
    pub fn start_replacement(&mut self, actions: &mut ActionQueue) {
        self.state = match mem::replace(&mut self.state, State::Stopped) {
            State::Running(old) => {
                actions.push(self.next_start());
                State::Replacing { old, new: None }
            }
            other => other,
        };
    }

    /// Asks the running process to stop. Its replacement starts after its exit.
    pub fn stop_for_replacement(&mut self, now: Instant, kill_at: Deadline, actions: &mut ActionQueue) {
        self.note_uptime(now);
        if self.queue == Queue::Open {
            // Until the replacement serves, the worker's own queue gets no new connections. Those that wait there are
            // left to the replacement.
            self.queue = Queue::Reopening;
        }
        match mem::replace(&mut self.state, State::Stopped) {
            State::Running(old) => {
                self.stopping.push(old.stop(WorkerSignal::Stop, kill_at, actions));
                self.state = State::Backoff { until: now, reason: StartReason::Replacement };
            }
            other => self.state = other,
        }
    }

    /// Stops the old process after its replacement has taken over.
    pub fn stop_outgoing(&mut self, old: Child, kill_at: Deadline, actions: &mut ActionQueue) {
        self.stopping.push(old.stop(WorkerSignal::Stop, kill_at, actions));
    }
}
