//! Rolling restarts: which processes are outdated, and when a rolling restart ends.

use std::collections::BTreeSet;

use super::Policy;
use crate::event::Event;

/// The number that the first processes of the new program store after an upgrade.
pub(super) const ADOPTER_EPOCH: u64 = 1;

#[derive(Debug, Default)]
pub(super) struct RollingRestart {
    /// The number of rolling restarts that have begun. Each process stores this number when it starts. A process that
    /// stores a number below `bound` is outdated.
    epoch: u64,
    /// The current rolling restart replaces the processes that store a lower number. This is `epoch`, except after an
    /// upgrade: then it is the number of the first processes of the new program.
    bound: u64,
    active: bool,
    /// Whether another rolling restart was requested during the current one. The requested one begins when the current
    /// one ends.
    pending: bool,
    /// The ids of the workers with processes that may be outdated.
    due: BTreeSet<usize>,
    /// The ids of the workers with outdated processes that cannot be replaced now: the process is not ready yet, or
    /// an earlier one of its worker still drains. Each event of such a worker moves its id to `due`.
    busy: BTreeSet<usize>,
}

/// Whether a rolling restart must replace the process of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outdated {
    /// The worker has no outdated process, or its next process is started anyway.
    No,
    /// The process cannot be replaced now.
    Busy,
    Yes,
}

impl RollingRestart {
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the state of a pool with processes that an earlier program has started. Their number is 0, and that of
    /// the processes of this program is [`ADOPTER_EPOCH`] or more.
    pub fn adopted() -> RollingRestart {
        RollingRestart { epoch: ADOPTER_EPOCH, ..RollingRestart::default() }
    }

    pub fn is_active(&self) -> bool {
        self.active
    }

    /// Returns whether a process with this epoch was started during the current rolling restart.
    pub fn is_current(&self, epoch: u64) -> bool {
        self.active && epoch == self.epoch
    }

    /// Cancels the current rolling restart and the pending one, because the pool stops.
    pub fn cancel(&mut self) {
        *self = RollingRestart { epoch: self.epoch, ..RollingRestart::default() };
    }

    /// Looks at this worker again, because an event has changed it.
    pub fn reconsider(&mut self, id: usize) {
        if self.busy.remove(&id) {
            self.due.insert(id);
        }
    }
}

impl Policy {
    /// Begins a rolling restart. If a rolling restart is in progress, schedules one more after it. Only one is
    /// scheduled, however often this is called.
    pub(super) fn request_roll(&mut self) {
        if self.roll.active {
            self.roll.pending = true;
        } else {
            self.begin_roll();
        }
    }

    /// Begins a rolling restart. Replacements that are under way continue. A worker with such a replacement gets
    /// another process afterwards, because the replacement has begun before the rolling restart.
    fn begin_roll(&mut self) {
        self.begin_roll_of(self.roll.epoch + 1);
    }

    /// Begins a rolling restart of the processes that store a number below `bound`.
    pub(super) fn begin_roll_of(&mut self, bound: u64) {
        self.roll.epoch += 1;
        self.roll.bound = bound;
        self.roll.active = true;
        self.roll.pending = false;
        self.roll.due = (0..self.slots.len()).collect();
        self.actions.emit(Event::RollingRestartStarted { pool: self.config.pool });
    }

    /// Removes the id of the next worker that the rolling restart must replace now, and returns it.
    pub(super) fn next_outdated(&mut self) -> Option<usize> {
        while let Some(id) = self.roll.due.pop_first() {
            let outdated = self.slots[id].outdated(self.roll.bound);
            let is_busy = outdated == Outdated::Busy || self.replacements.is_under_way(id);
            if outdated == Outdated::Yes && !is_busy {
                return Some(id);
            }
            if is_busy {
                self.roll.busy.insert(id);
            }
        }
        None
    }

    /// Lets the rolling restart forget this worker if it has no outdated process. During an upgrade, the rolling
    /// restart looks at no worker by itself, but it ends if the last outdated process exits.
    pub(super) fn drop_if_current(&mut self, id: usize) {
        let slot = &self.slots[id];
        let is_replaced = slot.is_trial() || self.replacements.is_under_way(id);
        if !is_replaced && slot.outdated(self.roll.bound) == Outdated::No {
            self.roll.due.remove(&id);
        }
    }

    /// Ends the rolling restart if all outdated processes have been replaced and have exited. Returns whether the
    /// pending rolling restart has begun.
    pub(super) fn finish_roll(&mut self) -> bool {
        let roll = &self.roll;
        if !roll.active || !roll.due.is_empty() || !roll.busy.is_empty() || self.replacements.is_rolling() {
            return false;
        }
        self.actions.emit(Event::RollingRestartFinished { pool: self.config.pool });
        self.end_roll()
    }

    /// Ends the rolling restart because the replacement of worker `id` has failed. Other replacements that are under
    /// way continue.
    pub(super) fn abort_roll(&mut self, id: usize) {
        self.actions.emit(Event::RollingRestartAborted { pool: self.config.pool, id });
        self.end_roll();
    }

    fn end_roll(&mut self) -> bool {
        self.roll.active = false;
        self.roll.due.clear();
        self.roll.busy.clear();
        self.replacements.detach();
        let pending = self.roll.pending;
        if pending {
            self.begin_roll();
        }
        pending
    }
}
