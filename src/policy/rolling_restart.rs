//! Replaces processes: all of them in a rolling restart, or a single one that has reached its maximum lifetime, has
//! retired, or was named in a request.
//!
//! Only one process is replaced at a time. The old process is stopped only after its replacement is ready.

use std::time::Instant;

use rand::{RngExt, rngs::SmallRng};

use super::child::{Child, Recycling};
use super::{Config, Policy};
use crate::event::{Event, RecycleReason};
use crate::exit::Process;

#[derive(Debug, Default)]
pub(super) struct RollingRestart {
    /// The number of rolling restarts that have begun. Each process stores this number when it starts. A process that
    /// stores a lower number is outdated.
    epoch: u64,
    active: bool,
    /// Whether another rolling restart was requested during the current one. The requested one begins when the current
    /// one ends.
    pending: bool,
    replacement: Option<Replacement>,
    /// The id at which the search for outdated processes continues. All processes with lower ids are up to date,
    /// because every process that starts during a rolling restart is up to date.
    next_id: usize,
}

/// The id of the worker whose process is being replaced, and the reason.
#[derive(Clone, Copy, Debug)]
struct Replacement {
    id: usize,
    reason: ReplacementReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReplacementReason {
    RollingRestart,
    Recycling,
}

impl RollingRestart {
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Cancels the current rolling restart and the pending one, because the service stops.
    pub fn cancel(&mut self) {
        *self = RollingRestart { epoch: self.epoch, ..RollingRestart::default() };
    }

    /// Returns the reason why the process of this worker is being replaced, or `None` if it is not being replaced.
    fn reason_for(&self, id: usize) -> Option<ReplacementReason> {
        self.replacement.filter(|replacement| replacement.id == id).map(|replacement| replacement.reason)
    }
}

/// Returns the end of the lifetime of a process that starts `now`. The lifetime is a random part of the maximum,
/// between three quarters and all of it. So processes that were started together are not replaced at the same time.
pub(super) fn planned_recycling(now: Instant, config: &Config, rng: &mut SmallRng) -> Option<Recycling> {
    let lifetime = config.max_lifetime?.mul_f64(rng.random_range(0.75..=1.0));
    Some(Recycling { at: now + lifetime, reason: RecycleReason::Lifetime })
}

impl Policy {
    /// Handles the request of a process to be replaced. Has no effect if the process is being replaced already, or if
    /// it has been asked to stop.
    pub fn handle_retire(&mut self, now: Instant, process: Process) {
        if self.stop.is_some() {
            return;
        }
        let Some(slot) = self.slots.get_mut(process.id) else { return };
        let was_wanted = slot.is_wanted();
        slot.handle_retire(now, process.generation);
        self.after(now, process.id, was_wanted);
    }

    /// Plans the replacement of the process of worker `id`, as an operator has requested. If the worker is about to
    /// start a process anyway, does nothing, because that process starts after the request.
    pub(super) fn request_replacement(&mut self, now: Instant, id: usize) {
        match self.slots.get_mut(id).filter(|slot| slot.is_wanted()) {
            Some(slot) => {
                slot.request_recycling(now);
                self.deadlines.update(id, slot);
            }
            None => self.actions.emit(Event::RecyclingRefused { id }),
        }
    }

    /// Begins a rolling restart. If a rolling restart is in progress, schedules one more after it. Only one is
    /// scheduled, however often this is called.
    pub(super) fn request_roll(&mut self) {
        if self.roll.active {
            self.roll.pending = true;
        } else {
            self.begin_roll();
        }
    }

    /// Begins a rolling restart. If a single process is being replaced, that replacement continues.
    /// [`Policy::advance_roll`] waits until that replacement has ended before the rolling restart replaces its first
    /// process.
    fn begin_roll(&mut self) {
        self.roll.epoch += 1;
        self.roll.active = true;
        self.roll.pending = false;
        self.roll.next_id = 0;
        self.actions.emit(Event::RollingRestartStarted);
    }

    /// Replaces processes as far as possible now: those of the rolling restart, or single ones that are due. Goes on to
    /// the next worker once the current worker has its new process and the old process has exited.
    pub(super) fn advance_roll(&mut self, now: Instant) {
        loop {
            if self.roll.replacement.is_some_and(|replacement| self.slots[replacement.id].is_in_transition()) {
                return;
            }
            self.roll.replacement = None;
            if self.roll.active {
                self.roll_next();
            } else if let Some(id) = self.oldest_overdue(now) {
                self.recycle(id);
            } else {
                return;
            }
        }
    }

    fn roll_next(&mut self) {
        let RollingRestart { epoch, next_id, .. } = self.roll;
        let outdated = self.slots[next_id..].iter().position(|slot| slot.is_outdated(epoch));
        let Some(id) = outdated.map(|id| next_id + id) else {
            self.actions.emit(Event::RollingRestartFinished);
            return self.end_roll();
        };
        self.roll.replacement = Some(Replacement { id, reason: ReplacementReason::RollingRestart });
        self.roll.next_id = id;
        if !self.slots[id].is_in_transition() {
            self.slots[id].start_replacement(&mut self.actions);
        }
    }

    fn recycle(&mut self, id: usize) {
        self.roll.replacement = Some(Replacement { id, reason: ReplacementReason::Recycling });
        if let Some((process, reason)) = self.slots[id].recycling() {
            self.actions.emit(Event::Recycling { process, reason });
        }
        self.slots[id].start_replacement(&mut self.actions);
    }

    /// Stops the old process after its replacement has become ready.
    pub(super) fn stop_outgoing(&mut self, now: Instant, old: Child) {
        let id = old.process.id;
        let kill_at = now + self.config.graceful_timeout;
        self.slots[id].stop_outgoing(old, kill_at, &mut self.actions);
    }

    /// Handles the failure of a replacement that was not ready yet. Aborts the rolling restart that started the
    /// replacement. If only the old process was being replaced, plans its next replacement instead.
    pub(super) fn handle_failed_replacement(&mut self, now: Instant, id: usize) {
        match self.roll.reason_for(id) {
            Some(ReplacementReason::Recycling) => {
                self.roll.replacement = None;
                self.actions.emit(Event::RecyclingAborted { id });
                self.slots[id].renew_recycling(now, &self.config, &mut self.rng);
            }
            Some(ReplacementReason::RollingRestart) => self.abort_roll(id),
            None => {}
        }
    }

    /// Handles the failure of a new process that had already taken over from the old one. The worker is restarted like
    /// any other. But the rolling restart is aborted, because other new processes might fail in the same way.
    pub(super) fn handle_failed_successor(&mut self, id: usize) {
        match self.roll.reason_for(id) {
            Some(ReplacementReason::Recycling) => self.roll.replacement = None,
            Some(ReplacementReason::RollingRestart) => self.abort_roll(id),
            None => {}
        }
    }

    fn abort_roll(&mut self, id: usize) {
        self.actions.emit(Event::RollingRestartAborted { id });
        self.end_roll();
    }

    fn end_roll(&mut self) {
        self.roll.active = false;
        self.roll.replacement = None;
        if self.roll.pending {
            self.begin_roll();
        }
    }

    /// Returns the time at which the next single process must be replaced. Returns `None` while any process is
    /// being replaced.
    pub(super) fn next_recycling(&mut self) -> Option<Instant> {
        if self.roll.active || self.roll.replacement.is_some() {
            return None;
        }
        self.oldest().map(|(at, _)| at)
    }

    fn oldest_overdue(&mut self, now: Instant) -> Option<usize> {
        self.oldest().filter(|(at, _)| *at <= now).map(|(_, id)| id)
    }

    fn oldest(&mut self) -> Option<(Instant, usize)> {
        if self.stop.is_some() { None } else { self.deadlines.next_recycling(&self.slots) }
    }
}
