//! The trial of an upgrade: a process of the new program beside the process of the old one, or instead of it.

use std::mem;
use std::time::{Duration, Instant};

use super::start::PROBATION;
use super::{Slot, StartReason, State};
use crate::event::RecycleReason;
use crate::exit::Process;
use crate::policy::child::{Child, Phase};
use crate::policy::deadline::Deadline;
use crate::policy::{Action, ActionQueue, WorkerSignal};

impl Slot {
    /// Returns whether the process that was started last, or the process that is about to start, is the trial of an
    /// upgrade.
    pub fn is_trial(&self) -> bool {
        self.is_trial
    }

    /// Returns whether the trial of an upgrade can begin now: the worker has a ready process or waits for its next one,
    /// and no earlier process drains or stops.
    pub fn can_begin_trial(&self) -> bool {
        let is_settled = match &self.state {
            State::Running(child) => child.phase == Phase::Ready,
            State::Backoff { reason, .. } => *reason != StartReason::Initial,
            State::Stopped | State::Starting { .. } | State::Replacing { .. } => false,
        };
        is_settled && self.is_wanted() && self.can_be_replaced()
    }

    /// Requests the trial. If a process serves the worker id, the trial starts beside it. Otherwise the trial is the
    /// next process of the worker.
    pub fn begin_trial(&mut self, actions: &mut ActionQueue) {
        self.is_trial = true;
        self.state = match mem::replace(&mut self.state, State::Stopped) {
            State::Running(old) => State::Replacing { old, new: None },
            _ => State::Starting { reason: StartReason::UncountedRestart },
        };
        actions.push(Action::StartTrial { id: self.id, generation: self.generation });
    }

    /// Records the process of the trial. `ready_timeout` is the setting of the new program. No heartbeats are expected
    /// from this process, because the settings of the new program decide about them.
    pub fn handle_trial_started(&mut self, now: Instant, process: Process, ready_timeout: Option<Duration>) {
        self.note_start(process);
        let phase = match ready_timeout {
            Some(timeout) => Phase::NotReady { late_at: Deadline::after(now, timeout) },
            None => Phase::Probation { ready_at: Deadline::after(now, PROBATION) },
        };
        // Each rolling restart replaces this process, if it stays after the trial.
        let child = Child::new(process, now, 0, phase, None);
        self.state = match mem::replace(&mut self.state, State::Stopped) {
            State::Replacing { old, new: None } => State::Replacing { old, new: Some(Box::new(child)) },
            _ => State::Running(child),
        };
    }

    /// Returns whether the process of the trial is ready.
    pub fn has_passed_trial(&self) -> bool {
        let newest = match &self.state {
            State::Running(child) => Some(child),
            State::Replacing { new, .. } => new.as_deref(),
            _ => None,
        };
        self.is_trial && newest.is_some_and(|child| child.phase == Phase::Ready)
    }

    /// Ends the trial, and asks its process to stop. If this process is ready and no other process serves the worker
    /// id, plans its replacement instead.
    pub fn end_trial(&mut self, now: Instant, kill_at: Deadline, actions: &mut ActionQueue) {
        if !mem::take(&mut self.is_trial) {
            return;
        }
        let mut successor = None;
        self.state = match mem::replace(&mut self.state, State::Stopped) {
            State::Replacing { old, new } => {
                match new {
                    Some(new) => self.stopping.push(new.stop(WorkerSignal::Stop, kill_at, actions)),
                    None => actions.cancel_starts(Some(self.id)),
                }
                State::Running(old)
            }
            State::Running(child) if child.is_starting() => {
                self.stopping.push(child.stop(WorkerSignal::Stop, kill_at, actions));
                after_trial(now)
            }
            State::Starting { .. } => {
                actions.cancel_starts(Some(self.id));
                after_trial(now)
            }
            State::Running(child) => {
                successor = Some(child.process.generation);
                State::Running(child)
            }
            other => other,
        };
        if let Some(generation) = successor {
            self.handle_worn_out(now, generation, RecycleReason::UpgradeAborted);
        }
    }
}

/// Returns the state of a worker whose trial has failed and that has no other process. The next process runs the old
/// program.
pub(super) fn after_trial(now: Instant) -> State {
    State::Backoff { until: now, reason: StartReason::UncountedRestart }
}
