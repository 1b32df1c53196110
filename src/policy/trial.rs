//! The trial of an upgrade in one pool: one worker of the new program must become ready, before the parent executes the
//! new program.

use std::fmt;
use std::time::{Duration, Instant};

use super::deadline::Deadline;
use super::slot::Slot;
use super::{Policy, WorkerSignal};
use crate::error::Error;
use crate::exit::{Exit, Process};

#[derive(Debug)]
pub(super) struct Trial {
    /// The ready timeout of the new program.
    ready_timeout: Option<Duration>,
    /// The number of workers in the settings of the new program.
    workers: usize,
    /// The worker whose process is the trial. `None` if the trial has not begun. The trial begins again under another
    /// id if this worker is removed or has finished.
    id: Option<usize>,
    /// The reason why the trial has failed.
    failure: Option<String>,
}

/// How far the trial of a pool has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrialProgress {
    /// The trial can begin, with the worker that has this id.
    Due(usize),
    /// No worker is suitable yet, or the process of the trial is not ready yet.
    Waiting,
    /// The process of the trial is ready, or the pool needs no trial.
    Passed,
    Failed,
}

impl TrialProgress {
    pub fn has_passed(self) -> bool {
        self == TrialProgress::Passed
    }

    /// Returns whether the service must do something about the trial.
    pub fn is_due(self) -> bool {
        matches!(self, TrialProgress::Due(_) | TrialProgress::Failed)
    }
}

impl Policy {
    /// Begins no replacement from now on. Replacements that are under way continue.
    pub(super) fn hold_replacements(&mut self) {
        self.is_held = true;
        (0..self.slots.len()).for_each(|id| self.drop_if_current(id));
    }

    /// Returns whether a trial may begin, or the new program may be executed: all initial workers have been started,
    /// and no replacement is under way.
    pub(super) fn is_settled(&self) -> bool {
        self.first_starts.is_empty() && !self.replacements.any_under_way() && !self.has_reserved_queue()
    }

    /// Returns whether a process will be started only to serve the connections left in the queue of a removed worker.
    /// The new program would not know of these connections.
    fn has_reserved_queue(&self) -> bool {
        self.stop.is_none() && self.config.drain.is_some() && self.slots.iter().any(Slot::is_queue_draining)
    }

    /// Plans the trial of this pool. Workers that may not have two processes are not tried.
    pub(super) fn plan_trial(&mut self, ready_timeout: Option<Duration>, workers: usize) {
        if self.config.max_surge > 0 {
            self.trial = Some(Box::new(Trial { ready_timeout, workers, id: None, failure: None }));
        }
    }

    pub(super) fn trial_progress(&self) -> TrialProgress {
        let Some(trial) = &self.trial else { return TrialProgress::Passed };
        if trial.failure.is_some() {
            return TrialProgress::Failed;
        }
        if self.stop.is_some() || self.wanted() == 0 {
            return TrialProgress::Passed;
        }
        match trial.id.and_then(|id| self.slots.get(id)).filter(|slot| slot.is_trial()) {
            Some(slot) if slot.has_passed_trial() => TrialProgress::Passed,
            Some(_) => TrialProgress::Waiting,
            None => self.find_trial(trial.workers).map_or(TrialProgress::Waiting, TrialProgress::Due),
        }
    }

    /// Returns the lowest id with which the trial can begin. If the new program has another number of workers, it keeps
    /// the lowest ids only.
    fn find_trial(&self, workers: usize) -> Option<usize> {
        let kept = if workers == self.config.workers { usize::MAX } else { workers };
        let mut wanted = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_wanted()).take(kept);
        wanted.find(|(_, slot)| slot.can_begin_trial()).map(|(id, _)| id)
    }

    pub(super) fn begin_trial(&mut self, id: usize) {
        let Some(trial) = &mut self.trial else { return };
        trial.id = Some(id);
        self.slots[id].begin_trial(&mut self.actions);
        self.update_slot(id);
    }

    pub(super) fn handle_trial_started(&mut self, now: Instant, process: Process) {
        let ready_timeout = self.trial.as_ref().and_then(|trial| trial.ready_timeout);
        self.slots[process.id].handle_trial_started(now, process, ready_timeout);
    }

    /// Records the failure of the trial. The service aborts the upgrade then.
    pub(super) fn fail_trial(&mut self, reason: TrialFailure) {
        if let Some(trial) = &mut self.trial {
            trial.failure.get_or_insert_with(|| reason.to_string());
        }
    }

    pub(super) fn trial_failure(&self) -> Option<&str> {
        self.trial.as_ref()?.failure.as_deref()
    }

    /// Ends the trial of this pool, and begins replacements again.
    pub(super) fn end_trial(&mut self, now: Instant) {
        self.is_held = false;
        self.trial = None;
        if self.stop.is_some() {
            return;
        }
        let kill_at = Deadline::after(now, self.config.graceful_timeout);
        for id in 0..self.slots.len() {
            if self.slots[id].is_trial() {
                self.slots[id].end_trial(now, kill_at, &mut self.actions);
                self.slots[id].start_if_due(now, &mut self.actions);
                self.update_slot(id);
            }
        }
        self.advance_replacements(now);
    }

    /// Forwards the request to reopen files, which does not wait for the end of an upgrade.
    pub(super) fn execute_reopen(&mut self) {
        if self.requests.take_reopen() {
            self.send_to_all(WorkerSignal::Reopen);
        }
    }
}

/// The reason why a trial has failed. `Display` writes it for the operator.
#[derive(Clone, Copy, Debug)]
pub(super) enum TrialFailure<'a> {
    NotStarted { error: &'a Error },
    Exited { process: Process, exit: Exit, reached_call: bool },
    NotReady { process: Process },
}

impl fmt::Display for TrialFailure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrialFailure::NotStarted { error } => write!(f, "{error:?}"),
            TrialFailure::NotReady { process } => write!(f, "{process} of the new program was not ready in time"),
            TrialFailure::Exited { process, exit, reached_call } => {
                let was = if matches!(exit, Exit::Signal(_)) { "was " } else { "" };
                let before = if *reached_call { "" } else { " before it reached the call" };
                write!(f, "{process} of the new program {was}{exit}{before}")
            }
        }
    }
}
