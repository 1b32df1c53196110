//! When something is due, known without a look at every id.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::slot::Slot;

/// The deadlines of all slots. [`DeadlineQueue::update`] must be called for each slot in which one may have come nearer.
#[derive(Debug)]
pub(super) struct DeadlineQueue {
    deadlines: Heap,
    /// When processes have reached their maximum lifetime.
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

    pub fn update_all(&mut self, slots: &[Slot]) {
        self.deadlines.update_all(slots);
        self.ages.update_all(slots);
    }

    /// Returns the earliest deadline.
    pub fn next(&mut self, slots: &[Slot]) -> Option<Instant> {
        self.deadlines.next(slots).map(|(at, _)| at)
    }

    /// Returns the id whose process is too old first, and when.
    pub fn oldest(&mut self, slots: &[Slot]) -> Option<(Instant, usize)> {
        self.ages.next(slots)
    }
}

/// Every time that a slot has had, the earliest first. A time that has changed or gone since stays until it is the earliest.
#[derive(Debug)]
struct Heap {
    time_of: fn(&Slot) -> Option<Instant>,
    entries: BinaryHeap<Reverse<(Instant, usize)>>,
}

impl Heap {
    fn new(time_of: fn(&Slot) -> Option<Instant>) -> Heap {
        Heap { time_of, entries: BinaryHeap::new() }
    }

    fn update(&mut self, id: usize, slot: &Slot) {
        if let Some(at) = (self.time_of)(slot) {
            self.entries.push(Reverse((at, id)));
        }
    }

    fn update_all(&mut self, slots: &[Slot]) {
        self.entries.clear();
        slots.iter().enumerate().for_each(|(id, slot)| self.update(id, slot));
    }

    /// Returns the earliest time that still holds.
    fn next(&mut self, slots: &[Slot]) -> Option<(Instant, usize)> {
        // Some outdated entries never become the earliest.
        if self.entries.len() > 2 * slots.len() + 64 {
            self.update_all(slots);
        }
        while let Some(&Reverse((at, id))) = self.entries.peek() {
            if (self.time_of)(&slots[id]) == Some(at) {
                return Some((at, id));
            }
            self.entries.pop();
            self.update(id, &slots[id]);
        }
        // Keeps the heap small: every page that the parent writes between two forks is copied for each worker (copy-on-write).
        self.entries.shrink_to(64);
        None
    }
}
