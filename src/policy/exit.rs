//! Handles the exits of processes.

use std::time::Instant;

use super::slot::{ExitedChild, ExitedRole, Slot};
use super::verdict::{Verdict, verdict};
use super::{Policy, WorkerSignal};
use crate::event::Event;
use crate::exit::{Exit, OutOfMemory, Process};

impl Policy {
    /// Handles the exit of a process. Ignores a process that the policy does not know.
    /// `reached_call` is whether the process had reached the call that starts the service. A spawned worker may exit
    /// before.
    pub fn handle_exited(
        &mut self,
        now: Instant,
        process: Process,
        exit: Exit,
        out_of_memory: OutOfMemory,
        reached_call: bool,
    ) {
        let Some(slot) = self.slots.get_mut(process.id) else { return };
        let was_wanted = slot.is_wanted();
        let Some(exited) = slot.handle_exited(now, process.generation, exit, reached_call) else { return };
        let restarts_left = self.budget.left(now) > 0;
        let verdict = verdict(&exited, exit, slot, &self.config, restarts_left);
        let asked = exited.role == ExitedRole::Stopping;
        let restarting = verdict == Verdict::Restart;
        self.actions.emit(Event::Exited { process, exit, out_of_memory, reached_call, asked, restarting });
        match verdict {
            Verdict::StopService => self.fail_startup(now, process, Some(exit)),
            Verdict::DropAddition => self.drop_addition(process.id),
            Verdict::Finished { failed } => self.finish_slot(now, process.id, failed),
            Verdict::AbandonDrain => self.stop_slot(now, process.id),
            Verdict::LimitReached => self.give_up(now, process, exit),
            Verdict::Restart => self.restart(now, &exited, exit, out_of_memory),
            Verdict::ReplacementTakesOver | Verdict::NothingMissing => {}
        }
        if exited.role == ExitedRole::Replacement {
            self.handle_failed_replacement(now, process.id);
        }
        self.slots[process.id].start_if_due(now, &mut self.actions);
        self.after(now, process.id, was_wanted);
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

    fn restart(&mut self, now: Instant, exited: &ExitedChild, exit: Exit, out_of_memory: OutOfMemory) {
        let process = exited.process;
        self.budget.take(now);
        let slot = &mut self.slots[process.id];
        if exited.role == ExitedRole::Draining {
            slot.reserve_for_queue();
        }
        let delay = slot.schedule_restart(now, exited.uptime, self.config.delays, &mut self.rng);
        let left = self.budget.left(now);
        let reached_call = exited.reached_call;
        self.actions.emit(Event::Restarting { process, exit, out_of_memory, reached_call, delay, left });
        if exited.role == ExitedRole::Current && exited.epoch == self.roll.epoch() {
            self.handle_failed_successor(process.id);
        }
    }

    fn finish_slot(&mut self, now: Instant, id: usize, failed: bool) {
        self.slots[id].set_failed(failed);
        self.stop_slot(now, id);
    }

    pub(super) fn stop_slot(&mut self, now: Instant, id: usize) {
        let kill_at = now + self.config.graceful_timeout;
        self.slots[id].stop_now(WorkerSignal::Stop, kill_at, &mut self.actions);
    }
}
