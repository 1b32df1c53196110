//! When something is due, so that nobody has to look at every id to know.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::slot::Slot;

/// To be told of each id for which something may have come nearer.
#[derive(Debug)]
pub(super) struct DeadlineQueue {
    deadlines: Heap,
    /// When the processes that serve are too old.
    ages: Heap,
}

impl DeadlineQueue {
    pub fn new() -> DeadlineQueue {
        DeadlineQueue { deadlines: Heap::new(Slot::deadline), ages: Heap::new(Slot::recycle_at) }
    }

    pub fn update(&mut self, id: usize, slot: &Slot) {
        self.deadlines.update(id, slot);
        self.ages.update(id, slot);
    }

    /// Of all ids.
    pub fn update_all(&mut self, slots: &[Slot]) {
        self.deadlines.update_all(slots);
        self.ages.update_all(slots);
    }

    /// The earliest deadline.
    pub fn next(&mut self, slots: &[Slot]) -> Option<Instant> {
        self.deadlines.next(slots).map(|(at, _)| at)
    }

    /// Who is too old first.
    pub fn oldest(&mut self, slots: &[Slot]) -> Option<(Instant, usize)> {
        self.ages.next(slots)
    }
}

/// Every date that an id got, the earliest first. One that has changed or gone since stays until it is the earliest.
#[derive(Debug)]
struct Heap {
    of: fn(&Slot) -> Option<Instant>,
    noted: BinaryHeap<Reverse<(Instant, usize)>>,
}

impl Heap {
    fn new(of: fn(&Slot) -> Option<Instant>) -> Heap {
        Heap { of, noted: BinaryHeap::new() }
    }

    fn update(&mut self, id: usize, slot: &Slot) {
        if let Some(at) = (self.of)(slot) {
            self.noted.push(Reverse((at, id)));
        }
    }

    fn update_all(&mut self, slots: &[Slot]) {
        self.noted.clear();
        slots.iter().enumerate().for_each(|(id, slot)| self.update(id, slot));
    }

    /// The earliest that still holds.
    fn next(&mut self, slots: &[Slot]) -> Option<(Instant, usize)> {
        // Some may never be the earliest.
        if self.noted.len() > 2 * slots.len() + 64 {
            self.update_all(slots);
        }
        while let Some(&Reverse((at, id))) = self.noted.peek() {
            if (self.of)(&slots[id]) == Some(at) {
                return Some((at, id));
            }
            self.noted.pop();
            self.update(id, &slots[id]);
        }
        // What is in use between two forks, is copied.
        self.noted.shrink_to(64);
        None
    }
}
