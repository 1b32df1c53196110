//! Replaces processes, within the bounds that `max_surge` and `max_unavailable` set.
//!
//! Rolling restarts and the replacement of single processes use the same mechanism, so the bounds hold for all of them
//! together. There are two orders. If a further process may run, the new process starts first, and the old one gets
//! its stop request once the new one is ready. Otherwise, if the worker may be without a ready process, the old process
//! stops first, and the new one starts after the exit of the old one.

use std::collections::BTreeMap;
use std::time::Instant;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::Policy;
use super::child::Child;
use super::deadline::Deadline;
use crate::event::{Event, RecycleReason};
use crate::exit::Process;

/// The workers whose processes are being replaced, and those whose old process drains after its replacement.
#[derive(Debug, Default)]
pub(super) struct Replacements {
    by_id: BTreeMap<usize, Replacement>,
    /// The number of replacements in the stage [`Stage::NewFirst`].
    surging: usize,
    /// The number of replacements that belong to the current rolling restart.
    rolling: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Replacement {
    pub cause: Cause,
    stage: Stage,
}

/// The reason for a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    RollingRestart,
    /// A rolling restart that was aborted while this replacement was under way. The replacement continues.
    AbortedRollingRestart,
    /// Only this process is replaced.
    Single,
}

/// The order of a replacement that is under way, or [`Stage::Draining`] after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The old process serves until the new one is ready.
    NewFirst,
    /// The old process has been asked to stop. The new one starts after the exit of the old one.
    OldFirst,
    /// The new process is ready. The old process has not exited yet.
    Draining,
}

impl Replacements {
    pub fn clear(&mut self) {
        *self = Replacements::default();
    }

    /// Returns whether the process of this worker is being replaced. An old process that still drains does not count.
    pub fn is_under_way(&self, id: usize) -> bool {
        self.by_id.get(&id).is_some_and(|replacement| replacement.stage != Stage::Draining)
    }

    pub fn any_under_way(&self) -> bool {
        self.by_id.values().any(|replacement| replacement.stage != Stage::Draining)
    }

    /// Lets the current rolling restart wait for the exit of the processes of this worker that drain or stop. Has no
    /// effect if the worker has a replacement already.
    pub fn await_exits(&mut self, id: usize) {
        if !self.by_id.contains_key(&id) {
            self.insert(id, Cause::RollingRestart, Stage::Draining);
        }
    }

    #[cfg(test)]
    pub fn begins_with_stop(&self, id: usize) -> bool {
        self.by_id.get(&id).is_some_and(|replacement| replacement.stage == Stage::OldFirst)
    }

    /// Returns whether the current rolling restart has replacements that are under way, or old processes that drain.
    pub fn is_rolling(&self) -> bool {
        self.rolling > 0
    }

    /// Separates all replacements from the rolling restart, because the rolling restart ends. They continue.
    pub fn detach(&mut self) {
        for replacement in self.by_id.values_mut().filter(|replacement| replacement.cause == Cause::RollingRestart) {
            replacement.cause = Cause::AbortedRollingRestart;
        }
        self.rolling = 0;
    }

    pub fn remove(&mut self, id: usize) -> Option<Replacement> {
        let replacement = self.by_id.remove(&id)?;
        self.surging -= usize::from(replacement.stage == Stage::NewFirst);
        self.rolling -= usize::from(replacement.cause == Cause::RollingRestart);
        Some(replacement)
    }

    fn insert(&mut self, id: usize, cause: Cause, stage: Stage) {
        self.remove(id);
        self.by_id.insert(id, Replacement { cause, stage });
        self.surging += usize::from(stage == Stage::NewFirst);
        self.rolling += usize::from(cause == Cause::RollingRestart);
    }
}

impl Policy {
    /// Handles the request of a process to be replaced. Has no effect if the process is being replaced already, or if
    /// it has been asked to stop.
    pub fn handle_retire(&mut self, now: Instant, process: Process) {
        self.handle_worn_out(now, process, RecycleReason::Retired);
    }

    /// Handles the message of a process that it has completed as many units of work as [`Policy::request_limit`]
    /// allows. Has no effect where [`Policy::handle_retire`] has none.
    pub fn handle_work_done(&mut self, now: Instant, process: Process) {
        if let Some(limit) = self.request_limit(process.id, process.generation) {
            self.handle_worn_out(now, process, RecycleReason::Requests { limit });
        }
    }

    pub(super) fn handle_worn_out(&mut self, now: Instant, process: Process, reason: RecycleReason) {
        if self.stop.is_some() {
            return;
        }
        let Some(slot) = self.slots.get_mut(process.id) else { return };
        let was_wanted = slot.is_wanted();
        slot.handle_worn_out(now, process.generation, reason);
        self.after(now, process.id, was_wanted);
    }

    /// Returns the number of units of work after which this process is replaced, or `None` if there is no limit. The
    /// number is random, between three quarters and all of `max_requests`. So processes that were started together are
    /// not replaced at the same time.
    ///
    /// The number follows from the seed of the policy and from the process, so the policy does not store it.
    pub fn request_limit(&self, id: usize, generation: u32) -> Option<u64> {
        let most = self.config.max_requests?;
        let process = (id as u64) << 32 | u64::from(generation);
        Some(SmallRng::seed_from_u64(self.seed ^ process).random_range(most - most / 4..=most))
    }

    /// Plans the replacement of the process of worker `id`, as an operator has requested. If the worker is about to
    /// start a process anyway, does nothing, because that process starts after the request.
    pub(super) fn request_replacement(&mut self, now: Instant, id: usize) {
        match self.slots.get_mut(id).filter(|slot| slot.is_wanted()) {
            Some(slot) => {
                slot.request_recycling(now);
                self.update_slot(id);
            }
            None => self.actions.emit(Event::RecyclingRefused { pool: self.config.pool, id }),
        }
    }

    /// Begins as many replacements as the bounds allow now: first those of the rolling restart, then those of single
    /// processes that are due.
    pub(super) fn advance_replacements(&mut self, now: Instant) {
        if self.stop.is_some() {
            return;
        }
        loop {
            while let Some(stage) = self.free_stage() {
                if let Some(id) = self.next_outdated() {
                    self.begin_replacement(now, id, Cause::RollingRestart, stage);
                } else if let Some((_, id)) = self.deadlines.next_recycling(&self.slots).filter(|(at, _)| *at <= now) {
                    self.begin_replacement(now, id, Cause::Single, stage);
                } else {
                    break;
                }
            }
            if !self.finish_roll() {
                return;
            }
        }
    }

    /// Returns the order that the next replacement must have. A further process is preferred, because then the number
    /// of ready workers stays the same. Returns `None` if both bounds are reached, or during an upgrade.
    fn free_stage(&self) -> Option<Stage> {
        if self.is_held {
            None
        } else if self.replacements.surging < self.config.max_surge {
            Some(Stage::NewFirst)
        } else if self.unavailable() < self.config.max_unavailable {
            Some(Stage::OldFirst)
        } else {
            None
        }
    }

    fn begin_replacement(&mut self, now: Instant, id: usize, cause: Cause, stage: Stage) {
        let slot = &mut self.slots[id];
        if let (Cause::Single, Some((process, reason))) = (cause, slot.recycling()) {
            self.actions.emit(Event::Recycling { process, reason });
        }
        if stage == Stage::NewFirst {
            slot.start_replacement(&mut self.actions);
        } else {
            let kill_at = Deadline::after(now, self.config.graceful_timeout);
            slot.stop_for_replacement(now, kill_at, &mut self.actions);
        }
        self.replacements.insert(id, cause, stage);
        self.update_slot(id);
    }

    /// Records the progress of a replacement after an event has changed the slot of its worker. Also lets the rolling
    /// restart consider the worker again.
    pub(super) fn update_replacement(&mut self, id: usize) {
        self.roll.reconsider(id);
        if self.is_held {
            self.drop_if_current(id);
        }
        let Some(&Replacement { cause, stage }) = self.replacements.by_id.get(&id) else { return };
        let slot = &self.slots[id];
        if stage != Stage::Draining && slot.is_being_replaced() {
            return;
        }
        if !slot.has_stopping() {
            self.replacements.remove(id);
        } else if stage != Stage::Draining {
            self.replacements.insert(id, cause, Stage::Draining);
        }
    }

    /// Stops the old process after its replacement has become ready.
    pub(super) fn stop_outgoing(&mut self, now: Instant, old: Child) {
        let id = old.process.id;
        let kill_at = Deadline::after(now, self.config.graceful_timeout);
        self.slots[id].stop_outgoing(old, kill_at, &mut self.actions);
    }

    /// Handles the failure of a replacement: its process could not start, or failed before it was ready. Aborts the
    /// rolling restart that made the replacement. If only this process was being replaced and the old one still serves,
    /// plans the next replacement.
    pub(super) fn handle_failed_replacement(&mut self, now: Instant, id: usize) {
        let Some(replacement) = self.replacements.remove(id) else { return };
        match replacement.cause {
            Cause::RollingRestart => self.abort_roll(id),
            Cause::Single if replacement.stage == Stage::NewFirst && self.slots[id].has_process() => {
                self.actions.emit(Event::RecyclingAborted { pool: self.config.pool, id });
                self.slots[id].renew_recycling(now, &self.config, &mut self.rng);
            }
            Cause::Single | Cause::AbortedRollingRestart => {}
        }
    }

    /// Handles the exit of a process that served a worker id and was not asked to stop. `has_failed` is whether the
    /// worker is restarted because of a failure. `epoch` is the number of rolling restarts that had begun when the
    /// process was started.
    ///
    /// If the process was the new one of a replacement, the worker is restarted like any other. But the rolling restart
    /// is aborted, because other new processes might fail in the same way. If no further process may run, any failure
    /// of a new process aborts the rolling restart, because it could not continue without this worker.
    pub(super) fn handle_failed_successor(&mut self, now: Instant, id: usize, epoch: u64, has_failed: bool) {
        let is_blocked = self.config.max_surge == 0 && self.roll.is_current(epoch);
        if self.replacements.is_under_way(id) || has_failed && self.replacements.by_id.contains_key(&id) {
            self.handle_failed_replacement(now, id);
        } else if has_failed && is_blocked {
            self.abort_roll(id);
        }
    }

    /// Returns the time at which the next single process must be replaced. Returns `None` while the bounds allow no
    /// further replacement.
    pub(super) fn next_recycling(&mut self) -> Option<Instant> {
        if self.stop.is_some() || self.free_stage().is_none() {
            return None;
        }
        self.deadlines.next_recycling(&self.slots).map(|(at, _)| at)
    }

    /// Returns the number of workers that should run but have no ready process.
    fn unavailable(&self) -> usize {
        self.unavailable + self.first_starts.end.saturating_sub(self.slots.len())
    }
}
