//! Scaling, and draining the queues of workers that are not needed any more.
//!
//! A worker with a socket of its own is removed in two steps. At first it gets no new connections, but serves those
//! that are left. Once its queue is empty, it is told to stop.

use std::time::Instant;

use super::Policy;
use super::slot::Slot;
use crate::event::Event;

impl Policy {
    /// Returns the ids whose own sockets should get new connections. An added id is among them once a process serves
    /// it.
    pub fn serving(&self) -> impl Iterator<Item = usize> + Clone {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.is_serving()).map(|(id, _)| id)
    }

    /// Returns the ids with a process whose drain is due. It is told to stop at the next [`Policy::handle_timeout`],
    /// unless [`Policy::handle_work_left`] is called for its id before.
    pub fn draining(&self, now: Instant) -> Vec<usize> {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.is_drain_due(now)).map(|(id, _)| id).collect()
    }

    /// Lets the draining process of this id go on, because connections are left in its queue.
    pub fn handle_work_left(&mut self, now: Instant, id: usize) {
        if let (Some(slot), Some(drain)) = (self.slots.get_mut(id), self.config.drain) {
            slot.handle_work_left(now, drain);
        }
    }

    /// Adds one worker, under the lowest id that is free, unless there are `max_workers`.
    pub(super) fn scale_up(&mut self, now: Instant) {
        if self.wanted() >= self.config.max_workers {
            return;
        }
        let id = match self.slots.iter().position(|slot| !slot.is_wanted()) {
            Some(id) => {
                self.slots[id].scale_up(now);
                id
            }
            None => {
                self.slots.push(Slot::added(self.slots.len(), now));
                self.slots.len() - 1
            }
        };
        self.wanted.set(None);
        self.actions.emit(Event::Scaled { workers: self.wanted() });
        self.slots[id].start_if_due(now, &mut self.actions);
        self.deadlines.update(id, &self.slots[id]);
    }

    /// Removes the worker with the highest id, unless it is the last one.
    pub(super) fn scale_down(&mut self, now: Instant) {
        if self.wanted() <= 1 {
            return;
        }
        if let Some(id) = self.slots.iter().rposition(Slot::is_wanted) {
            self.slots[id].drain(now, &self.config, &mut self.actions);
            self.wanted.set(None);
            self.actions.emit(Event::Scaled { workers: self.wanted() });
            self.deadlines.update(id, &self.slots[id]);
        }
    }

    /// Reports that an added id was dropped, because no process of it became ready. The other workers go on.
    pub(super) fn drop_addition(&mut self, id: usize) {
        self.wanted.set(None);
        self.actions.emit(Event::ScalingAborted { id });
        self.actions.emit(Event::Scaled { workers: self.wanted() });
    }
}
