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
pub(super) const QUIET: Duration = Duration::from_secs(1);

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

    /// Lowers `max_workers` to the number of processes that the system allows. By default `max_workers` has no limit,
    /// and the policy would create a slot for each worker that a request asks for.
    pub fn limit_workers(&mut self, processes: usize) {
        self.config.max_workers = self.config.max_workers.min(processes).max(self.wanted());
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
        self.actions.emit(Event::Scaled { pool: self.config.pool, workers });
        self.add_workers(now, workers.saturating_sub(before));
        self.remove_workers(now, before.saturating_sub(workers));
        self.wanted.set(None);
    }

    /// Adds workers under the lowest free ids.
    pub(super) fn add_workers(&mut self, now: Instant, count: usize) {
        let mut next = 0;
        for _ in 0..count {
            // Continues where the last search ended, because a search from the first id for each worker would take a
            // time that is quadratic in the number of workers.
            let is_free = |id: &usize| self.slots.get(*id).is_none_or(|slot| !slot.is_wanted());
            let Some(id) = (next..=self.slots.len()).find(is_free) else { return };
            match self.slots.get_mut(id) {
                Some(slot) => slot.scale_up(now),
                None => self.slots.push(Slot::added(id, now, &self.config)),
            }
            self.slots[id].start_if_due(now, &mut self.actions);
            self.update_slot(id);
            next = id + 1;
        }
    }

    /// Removes the workers with the highest ids.
    fn remove_workers(&mut self, now: Instant, count: usize) {
        let mut end = self.slots.len();
        for _ in 0..count {
            let Some(id) = self.slots[..end].iter().rposition(Slot::is_wanted) else { return };
            self.slots[id].drain(now, &self.config, &mut self.actions);
            self.update_slot(id);
            end = id;
        }
    }

    /// Reports a request for `asked` workers, of which only `limit` are allowed. Does not report a request that repeats
    /// the last one within a second.
    fn report_scaling_limit(&mut self, now: Instant, asked: usize, limit: usize) {
        let is_repeated = |last: ScalingLimited| last.asked == asked && now < last.at + QUIET;
        if !self.scaling_limited.is_some_and(is_repeated) {
            self.scaling_limited = Some(ScalingLimited { asked, at: now });
            self.actions.emit(Event::ScalingLimited { pool: self.config.pool, asked, limit });
        }
    }

    /// Reports that an added worker was dropped because none of its processes became ready. The other workers continue.
    pub(super) fn drop_addition(&mut self, id: usize) {
        self.wanted.set(None);
        self.actions.emit(Event::ScalingAborted { pool: self.config.pool, id });
        self.actions.emit(Event::Scaled { pool: self.config.pool, workers: self.wanted() });
    }
}
