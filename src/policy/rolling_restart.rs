//! Replacing processes: all of them in a rolling restart, or one that is too old.
//!
//! Only one process is replaced at a time, and its replacement is ready before the old process is stopped.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::SmallRng};

use super::Policy;
use super::child::Child;
use crate::event::Event;

#[derive(Debug, Default)]
pub(super) struct RollingRestart {
    /// How many rolling restarts have begun. A process remembers the number from its start. With a lower one it is
    /// outdated.
    epoch: u64,
    active: bool,
    /// Another rolling restart was requested during this one, and follows it.
    pending: bool,
    replacement: Option<Replacement>,
    /// No process of a lower id is outdated, because processes that start during a rolling restart are not.
    next_id: usize,
}

/// The id whose process is being replaced, and why.
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

    /// Cancels the rolling restart and the pending one, because of a stop.
    pub fn cancel(&mut self) {
        *self = RollingRestart { epoch: self.epoch, ..RollingRestart::default() };
    }

    /// Returns why this id's process is being replaced, if it is.
    fn reason_for(&self, id: usize) -> Option<ReplacementReason> {
        self.replacement.filter(|replacement| replacement.id == id).map(|replacement| replacement.reason)
    }
}

/// Returns a random part of the maximum lifetime, from three quarters to all of it, so that processes which were
/// started together are not replaced together.
pub(super) fn share_of(lifetime: Duration, rng: &mut SmallRng) -> Duration {
    lifetime.mul_f64(rng.random_range(0.75..=1.0))
}

impl Policy {
    /// Begins a rolling restart. During one, requests another, however often this is called.
    pub(super) fn request_roll(&mut self) {
        if self.roll.active {
            self.roll.pending = true;
        } else {
            self.begin_roll();
        }
    }

    /// Begins a rolling restart. A replacement that is under way because of a process's age stays, and
    /// [`Policy::advance_roll`] waits for it before it replaces the first process.
    fn begin_roll(&mut self) {
        self.roll.epoch += 1;
        self.roll.active = true;
        self.roll.pending = false;
        self.roll.next_id = 0;
        self.actions.emit(Event::RollingRestartStarted);
    }

    /// Goes on as far as possible: to the next id once the current one has its new process and the old process has
    /// exited.
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

    /// Stops the old process, whose replacement is ready.
    pub(super) fn stop_outgoing(&mut self, now: Instant, old: Child) {
        let id = old.process.id;
        let kill_at = now + self.config.graceful_timeout;
        self.slots[id].stop_outgoing(old, kill_at, &mut self.actions);
    }

    /// Handles a replacement of this id that has failed before it took over. The rolling restart is aborted. A process
    /// that was to be replaced because of its age gets one more lifetime.
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

    /// Handles a process of this id that has failed after it took over from an old one. It is restarted like any other,
    /// but the rolling restart starts no more processes of its kind.
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

    /// Returns the time at which the next process is too old, unless a process is being replaced.
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
