//! The rolling restart: one id after the other, each replacement ready before the old process is asked to go.

use super::Policy;
use crate::event::Event;

#[derive(Debug, Default)]
pub(super) struct Roll {
    /// Rolling restarts begun so far; a process remembers the count at its start, and with a lower one it is outdated.
    epoch: u64,
    active: bool,
    /// The id whose process is being replaced.
    current: Option<usize>,
    /// Asked for during a roll: one more after it.
    again: bool,
}

impl Roll {
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A stop overtakes everything.
    pub fn cancel(&mut self) {
        *self = Roll { epoch: self.epoch, ..Roll::default() };
    }
}

impl Policy {
    pub(super) fn roll_or_roll_again(&mut self) {
        if self.roll.active {
            self.roll.again = true;
        } else {
            self.begin_roll();
        }
    }

    fn begin_roll(&mut self) {
        self.roll = Roll { epoch: self.roll.epoch + 1, active: true, current: None, again: false };
        self.out.tell(Event::Reloading);
    }

    /// Goes on as far as it can: to the next id once the current one has its new process and the old one is gone.
    pub(super) fn advance_roll(&mut self) {
        while self.roll.active {
            if let Some(id) = self.roll.current {
                if self.slots[id].is_in_transition() {
                    return;
                }
            }
            let epoch = self.roll.epoch;
            self.roll.current = self.slots.iter().position(|slot| slot.is_outdated(epoch));
            match self.roll.current {
                Some(id) if self.slots[id].is_in_transition() => return,
                Some(id) => self.slots[id].replace(&mut self.out),
                None => {
                    self.out.tell(Event::Reloaded);
                    self.end_roll();
                }
            }
        }
    }

    /// The replacement of this id failed: if it is this id's turn, the roll is over.
    pub(super) fn abort_roll(&mut self, id: usize) {
        if self.roll.active && self.roll.current == Some(id) {
            self.out.tell(Event::ReloadAborted { id });
            self.end_roll();
        }
    }

    fn end_roll(&mut self) {
        self.roll.active = false;
        self.roll.current = None;
        if self.roll.again {
            self.begin_roll();
        }
    }
}
