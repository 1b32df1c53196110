//! Replaces processes: all of them in a rolling restart, or a single one that has reached its maximum lifetime.
//!
//! Only one process is replaced at a time. The old process is stopped only after its replacement is ready.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::SmallRng};

use super::Policy;
use super::child::Child;
use crate::event::Event;

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
    Age,
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

/// Returns a random part of the maximum lifetime, between three quarters and all of it. So processes that were started
/// together are not replaced at the same time.
pub(super) fn share_of(lifetime: Duration, rng: &mut SmallRng) -> Duration {
    lifetime.mul_f64(rng.random_range(0.75..=1.0))
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

    /// Begins a rolling restart. If a process is being replaced because of its age, that replacement continues.
    /// [`Policy::advance_roll`] waits until that replacement has ended before the rolling restart replaces its first
    /// process.
    fn begin_roll(&mut self) {
        self.roll.epoch += 1;
        self.roll.active = true;
        self.roll.pending = false;
        self.roll.next_id = 0;
        self.actions.emit(Event::RollingRestartStarted);
    }

    /// Replaces processes as far as possible now: those of the rolling restart, or those that are too old. Goes on to
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
        self.roll.replacement = Some(Replacement { id, reason: ReplacementReason::Age });
        if let Some(process) = self.slots[id].current() {
            self.actions.emit(Event::Recycling { process });
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
    /// replacement. If the old process was being replaced because of its age, gives the old process one more lifetime
    /// instead.
    pub(super) fn handle_failed_replacement(&mut self, now: Instant, id: usize) {
        match self.roll.reason_for(id) {
            Some(ReplacementReason::Age) => {
                self.roll.replacement = None;
                self.actions.emit(Event::RecyclingAborted { id });
                self.slots[id].renew_lifetime(now, &self.config, &mut self.rng);
            }
            Some(ReplacementReason::RollingRestart) => self.abort_roll(id),
            None => {}
        }
    }

    /// Handles the failure of a new process that had already taken over from the old one. The worker is restarted like
    /// any other. But the rolling restart is aborted, because other new processes might fail in the same way.
    pub(super) fn handle_failed_successor(&mut self, id: usize) {
        match self.roll.reason_for(id) {
            Some(ReplacementReason::Age) => self.roll.replacement = None,
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

    /// Returns the time at which the next process reaches its maximum lifetime. Returns `None` while any process is
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
        if self.config.max_lifetime.is_none() || self.stop.is_some() {
            return None;
        }
        self.deadlines.oldest(&self.slots)
    }
}
