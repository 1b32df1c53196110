//! Replacing processes that serve: all of them, in a rolling restart, or one that is old. Never two at a time, and each
//! replacement is ready before the old process is asked to go.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::SmallRng};

use super::Policy;
use crate::event::Event;

#[derive(Debug, Default)]
pub(super) struct RollingRestart {
    /// Rolling restarts begun so far; a process remembers the count at its start, and with a lower one it is outdated.
    epoch: u64,
    active: bool,
    /// Asked for during a roll: one more after it.
    pending: bool,
    replacement: Option<Replacement>,
    /// In this roll nobody below is outdated any more: who starts now is not.
    next_id: usize,
}

/// The id whose process is being replaced.
#[derive(Clone, Copy, Debug)]
struct Replacement {
    id: usize,
    /// Because of its age.
    recycles: bool,
}

impl RollingRestart {
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A stop overtakes everything.
    pub fn cancel(&mut self) {
        *self = RollingRestart { epoch: self.epoch, ..RollingRestart::default() };
    }

    fn is_replacing(&self, id: usize) -> bool {
        self.replacement.is_some_and(|replacement| replacement.id == id)
    }
}

/// A process's own share of the longest life: something from the last quarter, so that those which were started together
/// do not grow old together.
pub(super) fn share_of(lifetime: Duration, rng: &mut SmallRng) -> Duration {
    lifetime.mul_f64(rng.random_range(0.75..=1.0))
}

impl Policy {
    pub(super) fn roll_or_roll_again(&mut self) {
        if self.roll.active {
            self.roll.pending = true;
        } else {
            self.begin_roll();
        }
    }

    /// Whoever is being replaced because of his age, is first.
    fn begin_roll(&mut self) {
        self.roll = RollingRestart {
            epoch: self.roll.epoch + 1,
            active: true,
            pending: false,
            replacement: self.roll.replacement,
            next_id: 0,
        };
        self.actions.emit(Event::RollingRestartStarted);
    }

    /// Goes on as far as it can: to the next id once the current one has its new process and the old one is gone.
    pub(super) fn advance_roll(&mut self, now: Instant) {
        loop {
            if self.roll.replacement.is_some_and(|replacement| self.slots[replacement.id].is_in_transition()) {
                return;
            }
            self.roll.replacement = None;
            if self.roll.active {
                self.roll_on();
            } else if let Some(id) = self.oldest_overdue(now) {
                self.recycle(id);
            } else {
                return;
            }
        }
    }

    fn roll_on(&mut self) {
        let RollingRestart { epoch, next_id, .. } = self.roll;
        let outdated = self.slots[next_id..].iter().position(|slot| slot.is_outdated(epoch));
        let Some(id) = outdated.map(|id| next_id + id) else {
            self.actions.emit(Event::RollingRestartFinished);
            return self.end_roll();
        };
        (self.roll.replacement, self.roll.next_id) = (Some(Replacement { id, recycles: false }), id);
        if !self.slots[id].is_in_transition() {
            self.slots[id].replace(&mut self.actions);
        }
    }

    fn recycle(&mut self, id: usize) {
        self.roll.replacement = Some(Replacement { id, recycles: true });
        if let Some(child) = self.slots[id].children().next() {
            self.actions.emit(Event::Recycling { process: child.process });
        }
        self.slots[id].replace(&mut self.actions);
    }

    /// The replacement of this id failed. If it is this id's turn, the roll is over; an old process gets one more lifetime.
    pub(super) fn replacement_failed(&mut self, now: Instant, id: usize) {
        match self.roll.replacement {
            Some(Replacement { recycles: true, .. }) if self.roll.is_replacing(id) => {
                self.roll.replacement = None;
                self.actions.emit(Event::RecyclingAborted { id });
                self.slots[id].live_on(now, &self.config, &mut self.rng);
            }
            Some(_) if self.roll.is_replacing(id) => self.abort_roll(id),
            _ => {}
        }
    }

    /// The process that has just taken the place of another one has failed, with the old one gone or going. It is restarted
    /// as any other, but the roll is not to bring more of its kind.
    pub(super) fn successor_failed(&mut self, id: usize) {
        match self.roll.replacement {
            Some(Replacement { recycles: true, .. }) if self.roll.is_replacing(id) => self.roll.replacement = None,
            Some(_) if self.roll.is_replacing(id) => self.abort_roll(id),
            _ => {}
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

    /// When the next process will be too old, if nobody is being replaced.
    pub(super) fn next_replacement(&mut self) -> Option<Instant> {
        let busy = self.config.max_lifetime.is_none() || self.stop.is_some();
        if busy || self.roll.active || self.roll.replacement.is_some() {
            return None;
        }
        self.deadlines.oldest(&self.slots).map(|(at, _)| at)
    }

    fn oldest_overdue(&mut self, now: Instant) -> Option<usize> {
        if self.config.max_lifetime.is_none() || self.stop.is_some() {
            return None;
        }
        self.deadlines.oldest(&self.slots).filter(|(at, _)| *at <= now).map(|(_, id)| id)
    }
}
