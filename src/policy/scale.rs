//! Adds and removes workers, and drains the queues of removed workers.
//!
//! A worker with its own sockets is removed in two steps. First it gets no new connections, but serves those that
//! already wait in its queue. Once the queue is empty, the parent asks the worker to stop.

use std::time::{Duration, Instant};

use super::Policy;
use super::slot::Slot;
use crate::event::Event;

/// The time during which an equal request for too many or too few workers is not reported again, so that a process that
/// sends signals in a loop does not fill the log.
const QUIET: Duration = Duration::from_secs(1);

/// A request for more or fewer workers than allowed, which was reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScalingLimited {
    asked: usize,
    at: Instant,
}

impl Policy {
    /// Returns the ids of the workers whose own sockets should get new connections. An added worker is included once
    /// one of its processes serves.
    pub fn serving(&self) -> impl Iterator<Item = usize> + Clone {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.is_serving()).map(|(id, _)| id)
    }

    /// Returns the ids of the draining workers whose queues must be checked now. The next [`Policy::handle_timeout`]
    /// asks such a worker to stop, unless the caller calls [`Policy::handle_work_left`] for that worker first.
    pub fn draining(&self, now: Instant) -> Vec<usize> {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.is_drain_due(now)).map(|(id, _)| id).collect()
    }

    /// Lets the draining process of this worker continue, because connections are left in its queue.
    pub fn handle_work_left(&mut self, now: Instant, id: usize) {
        if let (Some(slot), Some(drain)) = (self.slots.get_mut(id), self.config.drain) {
            slot.handle_work_left(now, drain);
        }
    }

    /// Adds one worker. Only reports the request if there are already `max_workers` workers.
    pub(super) fn scale_up(&mut self, now: Instant) {
        self.scale_to(now, self.wanted() + 1);
    }

    /// Removes one worker. Only reports the request if there is one worker. Does nothing if there is none, because then
    /// the service ends.
    pub(super) fn scale_down(&mut self, now: Instant) {
        if let Some(workers) = self.wanted().checked_sub(1) {
            self.scale_to(now, workers);
        }
    }

    /// Adds or removes workers until there are `asked` of them, but at least one and at most `max_workers`. Reports a
    /// request for more or fewer.
    pub(super) fn scale_to(&mut self, now: Instant, asked: usize) {
        let workers = asked.clamp(1, self.config.max_workers);
        if workers != asked {
            self.report_scaling_limit(now, asked, workers);
        }
        let before = self.wanted();
        if before == workers {
            return;
        }
        // Emitted first, so that the log names the new number before the processes that it starts or stops.
        self.actions.emit(Event::Scaled { workers });
        (before..workers).for_each(|_| self.add_worker(now));
        (workers..before).for_each(|_| self.remove_worker(now));
        self.wanted.set(None);
    }

    /// Adds a worker under the lowest free id.
    fn add_worker(&mut self, now: Instant) {
        let id = match self.slots.iter().position(|slot| !slot.is_wanted()) {
            Some(id) => {
                self.slots[id].scale_up(now);
                id
            }
            None => {
                self.slots.push(Slot::added(self.slots.len(), now, &self.config));
                self.slots.len() - 1
            }
        };
        self.slots[id].start_if_due(now, &mut self.actions);
        self.update_slot(id);
    }

    /// Removes the worker with the highest id.
    fn remove_worker(&mut self, now: Instant) {
        if let Some(id) = self.slots.iter().rposition(Slot::is_wanted) {
            self.slots[id].drain(now, &self.config, &mut self.actions);
            self.update_slot(id);
        }
    }

    /// Reports a request for `asked` workers, of which only `limit` are allowed. Does not report a request that repeats
    /// the last one within a second.
    fn report_scaling_limit(&mut self, now: Instant, asked: usize, limit: usize) {
        let is_repeated = |last: ScalingLimited| last.asked == asked && now < last.at + QUIET;
        if !self.scaling_limited.is_some_and(is_repeated) {
            self.scaling_limited = Some(ScalingLimited { asked, at: now });
            self.actions.emit(Event::ScalingLimited { asked, limit });
        }
    }

    /// Reports that an added worker was dropped because none of its processes became ready. The other workers continue.
    pub(super) fn drop_addition(&mut self, id: usize) {
        self.wanted.set(None);
        self.actions.emit(Event::ScalingAborted { id });
        self.actions.emit(Event::Scaled { workers: self.wanted() });
    }
}
