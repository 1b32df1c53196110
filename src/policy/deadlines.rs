//! A [`DeadlineQueue`] finds the next deadline without a search through all slots.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::slot::Slot;

/// The deadlines of all slots. [`DeadlineQueue::update`] must be called for a slot whenever its deadline may have
/// become earlier.
#[derive(Debug)]
pub(super) struct DeadlineQueue {
    deadlines: Heap,
    /// The times at which single processes must be replaced.
    recyclings: Heap,
}

impl DeadlineQueue {
    pub fn new() -> DeadlineQueue {
        DeadlineQueue { deadlines: Heap::new(Slot::deadline), recyclings: Heap::new(Slot::recycle_at) }
    }

    pub fn update(&mut self, id: usize, slot: &Slot) {
        self.deadlines.update(id, slot);
        self.recyclings.update(id, slot);
    }

    pub fn update_all(&mut self, slots: &[Slot]) {
        self.deadlines.update_all(slots);
        self.recyclings.update_all(slots);
    }

    /// Returns the earliest deadline.
    pub fn next(&mut self, slots: &[Slot]) -> Option<Instant> {
        self.deadlines.next(slots).map(|(at, _)| at)
    }

    /// Removes the deadlines that have passed, and returns the ids of their workers in ascending order. Each of these
    /// workers needs a call of [`DeadlineQueue::update`] afterwards.
    pub fn take_due(&mut self, now: Instant, slots: &[Slot]) -> Vec<usize> {
        let mut due = Vec::new();
        while let Some((_, id)) = self.deadlines.next(slots).filter(|(at, _)| *at <= now) {
            self.deadlines.entries.pop();
            due.push(id);
        }
        due.sort_unstable();
        due.dedup();
        due
    }

    /// Returns the id of the worker that must get a new process first, and that time.
    pub fn next_recycling(&mut self, slots: &[Slot]) -> Option<(Instant, usize)> {
        self.recyclings.next(slots)
    }
}

/// A heap of times with the earliest on top. Each time belongs to a slot. If the time of a slot changes, the old entry
/// stays in the heap until it reaches the top.
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

    /// Returns the earliest time that is still valid, and the id of its worker.
    fn next(&mut self, slots: &[Slot]) -> Option<(Instant, usize)> {
        // Rebuilds the heap if many of its entries are outdated. Some outdated entries never reach the top, so nothing
        // else would remove them.
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
        // The heap is empty now. Shrinks the heap's memory, because every page that the parent writes between two forks
        // is copied for each worker (copy-on-write).
        self.entries.shrink_to(64);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, some_time};
    use super::*;

    /// Returns the number of entries of a heap for 100 slots, after so many entries were added and the earliest time
    /// was taken.
    fn entries_left(added: usize) -> usize {
        let now = some_time();
        let slots: Vec<Slot> = (0..100).map(|id| Slot::added(id, now, &config(1))).collect();
        let mut heap = Heap::new(Slot::deadline);
        (0..added).for_each(|_| heap.update(0, &slots[0]));
        assert_eq!(heap.next(&slots), Some((now, 0)));
        heap.entries.len()
    }

    #[test]
    fn a_heap_is_rebuilt_if_most_entries_are_outdated() {
        assert_eq!(entries_left(180), 180);
        assert_eq!(entries_left(264), 264);
        assert_eq!(entries_left(265), 100);
        assert_eq!(entries_left(10_000), 100);
    }
}
