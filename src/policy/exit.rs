//! Handles the exits of processes.

use std::time::Instant;

use super::backoff::SOUND_LIFE;
use super::deadline::Deadline;
use super::slot::{ExitedChild, ExitedRole, Slot};
use super::stop::StartupFailure;
use super::trial::TrialFailure;
use super::verdict::{Outlook, Verdict, verdict};
use super::{Policy, WorkerSignal};
use crate::event::{Event, RestartReason};
use crate::exit::{Exit, OutOfMemory, Process};

/// The facts about an exit that the supervisor knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExitedProcess {
    pub process: Process,
    pub exit: Exit,
    pub out_of_memory: OutOfMemory,
    /// Whether the process had reached the call that starts the service. A spawned worker may exit before.
    pub reached_call: bool,
    /// Whether the process had got a stop request that neither the parent nor the terminal made.
    pub stop_noted: bool,
    /// Whether the process had called a function that starts workers.
    pub nested_call: bool,
    /// The number of units of work that the process had started and not completed.
    pub work_in_progress: u64,
}

impl Policy {
    /// Handles the exit of a process. Ignores a process that the policy does not know.
    pub fn handle_exited(&mut self, now: Instant, exited: ExitedProcess) {
        let ExitedProcess { process, exit, out_of_memory, reached_call, nested_call, work_in_progress, .. } = exited;
        let Some(slot) = self.slots.get_mut(process.id) else { return };
        let was_wanted = slot.is_wanted();
        let Some(child) = slot.handle_exited(now, &exited) else { return };
        self.is_sound |= child.uptime >= SOUND_LIFE;
        let outlook =
            Outlook { restarts_left: self.budget.left(now) != Some(0), crash_loops: self.crash_loops(now, process.id) };
        let slot = &self.slots[process.id];
        let failures = slot.failures();
        let verdict = verdict(&child, exit, slot, &self.config, outlook);
        let asked = child.role == ExitedRole::Stopping;
        let restarting = matches!(verdict, Verdict::Restart(_));
        self.actions.emit(Event::Exited {
            process,
            exit,
            out_of_memory,
            reached_call,
            work_in_progress,
            asked,
            restarting,
        });
        let failure = |failures| StartupFailure { process, exit: Some(exit), failures, nested_call };
        match verdict {
            Verdict::StopPool => self.fail_startup(now, failure(None)),
            Verdict::CrashLoop => self.fail_startup(now, failure(Some(failures + 1))),
            Verdict::DropAddition => self.drop_addition(process.id),
            Verdict::Finished { failed } => self.finish_slot(now, process.id, failed),
            Verdict::AbandonDrain => self.stop_slot(now, process.id),
            Verdict::LimitReached => self.give_up(now, process, exit),
            Verdict::Restart(reason) => self.restart(now, &exited, &child, reason),
            Verdict::ReplacementTakesOver | Verdict::NothingMissing => {}
        }
        match child.role {
            ExitedRole::Replacement => self.handle_failed_replacement(now, process.id),
            ExitedRole::Trial => self.fail_trial(TrialFailure::Exited { process, exit, reached_call }),
            ExitedRole::Current => {
                // A process that exits with status 0 again and again before it is ready also blocks a rolling restart.
                let has_failed = match verdict {
                    Verdict::Restart(RestartReason::Failure) => true,
                    Verdict::Restart(RestartReason::NormalExit) => child.was_starting,
                    _ => false,
                };
                self.handle_failed_successor(now, process.id, child.epoch, has_failed);
            }
            ExitedRole::Outgoing | ExitedRole::Draining | ExitedRole::Stopping => {}
        }
        self.slots[process.id].start_if_due(now, &mut self.actions);
        self.after(now, process.id, was_wanted);
    }

    /// Returns whether one more failure of this worker would be a startup failure.
    fn crash_loops(&mut self, now: Instant, id: usize) -> bool {
        let Some(limit) = self.config.startup_failures else { return false };
        if self.is_sound || self.config.ready_timeout.is_some() || self.slots[id].failures() + 1 < limit {
            return false;
        }
        self.is_sound = self.slots.iter().any(|slot| slot.has_lived(now, SOUND_LIFE));
        !self.is_sound
    }

    /// Handles the exit of a process that the supervisor had abandoned. [`Policy::handle_exited`] was called for this
    /// process before.
    pub fn handle_abandoned_exited(&mut self, now: Instant, process: Process) {
        let Some(slot) = self.slots.get_mut(process.id) else { return };
        let was_wanted = slot.is_wanted();
        slot.handle_abandoned_exited();
        slot.start_if_due(now, &mut self.actions);
        self.after(now, process.id, was_wanted);
    }

    /// Returns the processes of worker `id` that have not exited.
    pub fn processes_of(&self, id: usize) -> Vec<Process> {
        self.slots.get(id).into_iter().flat_map(Slot::processes).collect()
    }

    /// Records that a process of worker `id` has reached the call that starts the service. Must be called before
    /// [`Policy::handle_exited`] for a process that has not reached this call.
    pub fn handle_reached_call(&mut self, id: usize) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.handle_reached_call();
        }
    }

    fn restart(&mut self, now: Instant, exited: &ExitedProcess, child: &ExitedChild, reason: RestartReason) {
        let &ExitedProcess { process, exit, out_of_memory, reached_call, work_in_progress, .. } = exited;
        if reason.is_counted() {
            self.budget.take(now);
        }
        let slot = &mut self.slots[process.id];
        if child.role == ExitedRole::Draining {
            slot.reserve_for_queue();
        }
        let delay = slot.schedule_restart(now, child.uptime, reason, self.config.delays, &mut self.rng);
        let left = self.budget.left(now);
        self.actions.emit(Event::Restarting {
            process,
            exit,
            out_of_memory,
            reached_call,
            work_in_progress,
            reason,
            delay,
            left,
        });
    }

    fn finish_slot(&mut self, now: Instant, id: usize, failed: bool) {
        self.slots[id].set_failed(failed);
        self.stop_slot(now, id);
    }

    pub(super) fn stop_slot(&mut self, now: Instant, id: usize) {
        let kill_at = Deadline::after(now, self.config.graceful_timeout);
        self.slots[id].stop_now(WorkerSignal::Stop, kill_at, &mut self.actions);
    }
}
