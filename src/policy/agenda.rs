//! When something is due, so that nobody has to look at every id to know.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::slot::Slot;

/// Every deadline that an id got, the earliest first. One that has changed or gone since stays until it is the earliest.
#[derive(Debug, Default)]
pub(super) struct Agenda(BinaryHeap<Reverse<(Instant, usize)>>);

impl Agenda {
    /// To be told of each id whose deadline may have come nearer.
    pub fn note(&mut self, id: usize, slot: &Slot) {
        if let Some(at) = slot.deadline() {
            self.0.push(Reverse((at, id)));
        }
    }

    /// Of all ids.
    pub fn note_all(&mut self, slots: &[Slot]) {
        self.0.clear();
        slots.iter().enumerate().for_each(|(id, slot)| self.note(id, slot));
    }

    /// The earliest that still holds.
    pub fn next(&mut self, slots: &[Slot]) -> Option<Instant> {
        // Some may never be the earliest.
        if self.0.len() > 2 * slots.len() + 64 {
            self.note_all(slots);
        }
        while let Some(&Reverse((at, id))) = self.0.peek() {
            if slots[id].deadline() == Some(at) {
                return Some(at);
            }
            self.0.pop();
            self.note(id, &slots[id]);
        }
        // What is in use between two forks, is copied.
        self.0.shrink_to(64);
        None
    }
}
