//! Hands over the policy of a pool to a new program, and takes it over there.

use std::time::Instant;

use super::rolling_restart::{ADOPTER_EPOCH, RollingRestart};
use super::slot::Slot;
use super::stop::Stop;
use super::{Config, Policy, PoolCondition, PoolSnapshot, SlotSnapshot};
use crate::event::Event;
use crate::report::Reason;

impl Policy {
    /// Returns the state that the new program needs. The pool has not ended.
    pub(super) fn snapshot(&self, now: Instant) -> PoolSnapshot {
        let missing = (self.slots.len()..self.first_starts.end).map(|id| Slot::initial(id, now, &self.config));
        let missing = missing.map(|slot| slot.snapshot(now));
        PoolSnapshot {
            name: self.config.pool.to_owned(),
            configured: self.config.workers,
            graceful_timeout: self.config.graceful_timeout,
            condition: self.condition(),
            slots: self.slots.iter().map(|slot| slot.snapshot(now)).chain(missing).collect(),
            requests: self.requests.list(),
        }
    }

    fn condition(&self) -> PoolCondition {
        match &self.stop {
            None => PoolCondition::Open,
            Some(stop) if stop.outcome.as_ref().map_or(true, Reason::is_failure) => PoolCondition::Failed,
            Some(_) => PoolCondition::Stopping,
        }
    }

    /// Returns the policy of a pool that starts no worker before [`Policy::start_added`].
    pub(super) fn idle(config: Config, seed: u64, now: Instant) -> Policy {
        let mut policy = Policy::new(config, seed, now);
        policy.actions.clear();
        policy.first_starts = 0..0;
        policy
    }

    /// Returns the policy of a pool with processes that another program has started. `taken` is the time of the
    /// snapshot. The number of restarts that are left begins afresh.
    ///
    /// If the new program has another number of workers in its settings, workers are added or removed. Otherwise the
    /// number stays, which scaling may have changed.
    pub(super) fn adopt(config: Config, snapshot: PoolSnapshot, seed: u64, taken: Instant, now: Instant) -> Policy {
        let mut policy = Policy::idle(config, seed, now);
        let PoolSnapshot { configured, condition, slots, requests, .. } = snapshot;
        policy.roll = RollingRestart::adopted();
        // The trial has shown that processes of the new program live. A process that fails again and again from now on
        // does not stop the pool before the restart limit.
        policy.is_sound = true;
        let processes = slots.iter().map(|slot| slot.children.len()).sum();
        if condition == PoolCondition::Open || processes > 0 {
            policy.actions.emit(Event::Adopted { pool: policy.config.pool, processes });
        }
        for slot in slots {
            policy.adopt_slot(slot, taken, now);
        }
        // After the stop requests, so that there are no more processes than necessary at the same time.
        policy.slots.iter_mut().for_each(|slot| slot.start_if_due(now, &mut policy.actions));
        policy.adopt_heartbeats(now);
        policy.deadlines.update_all(&policy.slots);
        match condition {
            PoolCondition::Open => {
                policy.adopt_number(now, configured);
                requests.into_iter().for_each(|request| policy.handle_request(now, request));
            }
            PoolCondition::Stopping | PoolCondition::Ended => policy.stop = Some(Stop::adopted()),
            PoolCondition::Failed => {}
        }
        policy
    }

    fn adopt_slot(&mut self, snapshot: SlotSnapshot, taken: Instant, now: Instant) {
        // Ids without a snapshot were never used.
        while self.slots.len() < snapshot.id {
            let id = self.slots.len();
            self.slots.push(Slot::unused(id, now, &self.config));
        }
        let slot = Slot::adopt(snapshot, taken, now, &self.config, &mut self.rng, &mut self.actions);
        let id = self.slots.len();
        self.slots.push(slot);
        self.update_availability(id);
    }

    /// Checks the heartbeats as often as the processes of both programs need it.
    fn adopt_heartbeats(&mut self, now: Instant) {
        let adopted = self.slots.iter().filter_map(Slot::heartbeat_timeout).min();
        self.beat_interval = adopted.into_iter().chain(self.config.heartbeat_timeout).min();
        self.check_beats_at = self.beat_interval.map(|interval| now + interval);
    }

    fn adopt_number(&mut self, now: Instant, configured: usize) {
        let wanted = self.wanted();
        let workers = if self.config.workers == configured { wanted } else { self.config.workers };
        // A pool in which all workers have finished stays so.
        if wanted > 0 {
            self.scale_to(now, workers.min(self.config.max_workers));
        }
    }

    /// Starts the workers of a pool that the earlier program did not have, or in which the pool had failed. If such a
    /// worker cannot start, it is dropped.
    pub(super) fn start_added(&mut self, now: Instant) {
        let workers = self.config.workers;
        self.actions.emit(Event::Starting { pool: self.config.pool, workers });
        self.add_workers(now, workers);
        self.wanted.set(None);
    }

    /// Returns whether a process that an earlier program has started serves in this pool, and was not asked to stop.
    pub(super) fn has_adopted_running(&self) -> bool {
        self.stop.is_none() && self.slots.iter().any(Slot::has_adopted_running)
    }

    /// Begins to replace the processes of the earlier program, and waits for the exit of those that stop already.
    /// Returns the number of the rolling restart that does so.
    pub(super) fn roll_adopted(&mut self, now: Instant) -> u64 {
        // A rolling restart that is in progress was requested after the upgrade, and replaces the same processes.
        if !self.roll.is_active() {
            self.begin_roll_of(ADOPTER_EPOCH);
            let leaving = (0..self.slots.len()).filter(|&id| self.slots[id].has_adopted_leaving());
            leaving.for_each(|id| self.replacements.await_exits(id));
            self.advance_replacements(now);
        }
        self.roll.epoch()
    }
}
