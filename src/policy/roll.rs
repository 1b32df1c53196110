//! Replacing processes that serve: all of them, in a rolling restart, or one that is old. Never two at a time, and each
//! replacement is ready before the old process is asked to go.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::SmallRng};

use super::Policy;
use crate::event::Event;

#[derive(Debug, Default)]
pub(super) struct Roll {
    /// Rolling restarts begun so far; a process remembers the count at its start, and with a lower one it is outdated.
    epoch: u64,
    active: bool,
    /// Asked for during a roll: one more after it.
    again: bool,
    turn: Option<Turn>,
    /// In this roll nobody below is outdated any more: who starts now is not.
    from: usize,
}

/// The id whose process is being replaced.
#[derive(Clone, Copy, Debug)]
struct Turn {
    id: usize,
    /// Because of its age.
    recycles: bool,
}

impl Roll {
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A stop overtakes everything.
    pub fn cancel(&mut self) {
        *self = Roll { epoch: self.epoch, ..Roll::default() };
    }

    fn is_turn_of(&self, id: usize) -> bool {
        self.turn.is_some_and(|turn| turn.id == id)
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
            self.roll.again = true;
        } else {
            self.begin_roll();
        }
    }

    /// Whoever is being replaced because of his age, is first.
    fn begin_roll(&mut self) {
        self.roll = Roll { epoch: self.roll.epoch + 1, active: true, again: false, turn: self.roll.turn, from: 0 };
        self.actions.emit(Event::Reloading);
    }

    /// Goes on as far as it can: to the next id once the current one has its new process and the old one is gone.
    pub(super) fn advance_roll(&mut self, now: Instant) {
        loop {
            if self.roll.turn.is_some_and(|turn| self.slots[turn.id].is_in_transition()) {
                return;
            }
            self.roll.turn = None;
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
        let Roll { epoch, from, .. } = self.roll;
        let outdated = self.slots[from..].iter().position(|slot| slot.is_outdated(epoch));
        let Some(id) = outdated.map(|id| from + id) else {
            self.actions.emit(Event::Reloaded);
            return self.end_roll();
        };
        (self.roll.turn, self.roll.from) = (Some(Turn { id, recycles: false }), id);
        if !self.slots[id].is_in_transition() {
            self.slots[id].replace(&mut self.actions);
        }
    }

    fn recycle(&mut self, id: usize) {
        self.roll.turn = Some(Turn { id, recycles: true });
        if let Some(child) = self.slots[id].children().next() {
            self.actions.emit(Event::Recycling { process: child.process });
        }
        self.slots[id].replace(&mut self.actions);
    }

    /// The replacement of this id failed. If it is this id's turn, the roll is over; an old process gets one more lifetime.
    pub(super) fn replacement_failed(&mut self, now: Instant, id: usize) {
        match self.roll.turn {
            Some(Turn { recycles: true, .. }) if self.roll.is_turn_of(id) => {
                self.roll.turn = None;
                self.actions.emit(Event::RecyclingAborted { id });
                self.slots[id].live_on(now, &self.config, &mut self.rng);
            }
            Some(_) if self.roll.is_turn_of(id) => self.abort_roll(id),
            _ => {}
        }
    }

    /// The process that has just taken the place of another one has failed, with the old one gone or going. It is restarted
    /// as any other, but the roll is not to bring more of its kind.
    pub(super) fn successor_failed(&mut self, id: usize) {
        match self.roll.turn {
            Some(Turn { recycles: true, .. }) if self.roll.is_turn_of(id) => self.roll.turn = None,
            Some(_) if self.roll.is_turn_of(id) => self.abort_roll(id),
            _ => {}
        }
    }

    fn abort_roll(&mut self, id: usize) {
        self.actions.emit(Event::ReloadAborted { id });
        self.end_roll();
    }

    fn end_roll(&mut self) {
        self.roll.active = false;
        self.roll.turn = None;
        if self.roll.again {
            self.begin_roll();
        }
    }

    /// When the next process will be too old, if nobody is being replaced.
    pub(super) fn next_turn(&mut self) -> Option<Instant> {
        let busy = self.config.max_lifetime.is_none() || self.stop.is_some();
        if busy || self.roll.active || self.roll.turn.is_some() {
            return None;
        }
        self.agenda.oldest(&self.slots).map(|(at, _)| at)
    }

    fn oldest_overdue(&mut self, now: Instant) -> Option<usize> {
        if self.config.max_lifetime.is_none() || self.stop.is_some() {
            return None;
        }
        self.agenda.oldest(&self.slots).filter(|(at, _)| *at <= now).map(|(_, id)| id)
    }
}
