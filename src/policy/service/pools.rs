//! The [`Pools`] of a service.

use std::iter;
use std::ops::{Index, IndexMut};
use std::time::Instant;

use super::PoolConfig;
use crate::event::Event;
use crate::policy::{Policy, PoolCondition, PoolSnapshot};
use crate::report::Reason;

/// One pool of a service.
#[derive(Debug)]
pub(super) struct Pool {
    pub policy: Policy,
    /// Whether the service goes on if this pool fails.
    pub is_optional: bool,
    /// The reason why the pool ended. `None` if it has not ended.
    pub end: Option<Reason>,
    /// Whether the last event about a rolling restart that [`Service::poll_action`](super::Service::poll_action) has
    /// returned was its beginning.
    pub shows_roll: bool,
    /// The number of rolling restarts whose last event `poll_action` has returned.
    pub shown_rolls: u64,
    /// The worker whose failed replacement has aborted the last rolling restart, since the pool's turn in an upgrade
    /// began.
    pub aborted_roll: Option<usize>,
    /// Whether only an earlier program has this pool. The pool stops.
    pub is_removed: bool,
    /// Whether the pool starts its workers only when an upgrade has replaced the processes of the other pools.
    waits: bool,
}

impl Pool {
    fn new(config: PoolConfig, seed: u64, now: Instant) -> Pool {
        Pool {
            policy: Policy::new(config.config, seed, now),
            is_optional: config.optional,
            end: None,
            shows_roll: false,
            shown_rolls: 0,
            aborted_roll: None,
            is_removed: config.removed,
            waits: false,
        }
    }

    /// Returns a pool of a service whose processes another program has started. `snapshot` is `None` if that program
    /// does not have the pool.
    fn adopt(config: PoolConfig, snapshot: Option<PoolSnapshot>, seed: u64, taken: Instant, now: Instant) -> Pool {
        let PoolConfig { config, optional, removed } = config;
        let condition = snapshot.as_ref().map_or(PoolCondition::Failed, |snapshot| snapshot.condition);
        let mut policy = match snapshot {
            Some(snapshot) => Policy::adopt(config, snapshot, seed, taken, now),
            None => Policy::idle(config, seed, now),
        };
        if removed && matches!(condition, PoolCondition::Open | PoolCondition::Failed) {
            policy.stop_because(now, Ok(Reason::Stopped));
        }
        Pool {
            shown_rolls: policy.roll.epoch(),
            policy,
            is_optional: optional || removed,
            end: (condition == PoolCondition::Ended).then_some(Reason::Finished),
            shows_roll: false,
            aborted_roll: None,
            is_removed: removed,
            waits: condition == PoolCondition::Failed && !removed,
        }
    }

    /// Returns whether the pool has not been started, because an upgrade is in progress.
    pub fn is_waiting(&self) -> bool {
        self.waits && !self.policy.is_stopping()
    }

    /// Starts the workers of a pool that waits for the end of an upgrade.
    pub fn start_if_waiting(&mut self, now: Instant) {
        if self.is_waiting() {
            self.policy.start_added(now);
        }
        self.waits = false;
    }

    pub fn name(&self) -> &'static str {
        self.policy.config.pool
    }

    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Returns whether the pool is stopping or has ended. Then nothing of it is started any more.
    pub fn is_closed(&self) -> bool {
        self.has_ended() || self.policy.is_stopping()
    }

    /// Records that `poll_action` returns this event.
    pub fn note_event(&mut self, event: &Event) {
        match event {
            Event::RollingRestartStarted { .. } => self.shows_roll = true,
            Event::RollingRestartFinished { .. } | Event::RollingRestartAborted { .. } => {
                self.shows_roll = false;
                self.shown_rolls += 1;
                if let Event::RollingRestartAborted { id, .. } = event {
                    self.aborted_roll = Some(*id);
                }
            }
            Event::Stopping { .. } => self.shows_roll = false,
            _ => {}
        }
    }
}

/// The pools of a service in their order. There is always a first pool.
///
/// The first pool is not in the vector, so that a service with one pool needs no further allocation: the policy writes
/// to the pool between two forks, and each page more would be copied for each worker (copy-on-write).
#[derive(Debug)]
pub(super) struct Pools {
    first: Pool,
    others: Vec<Pool>,
}

impl Pools {
    /// Creates the pools. The random numbers of each pool have a seed of their own.
    ///
    /// # Panics
    ///
    /// If there is no pool. The settings of the service are checked before.
    pub fn new(configs: Vec<PoolConfig>, seed: u64, now: Instant) -> Pools {
        let mut seeds = (0..).map(|index| seed.wrapping_add(index));
        let mut pools = configs.into_iter().zip(&mut seeds).map(|(config, seed)| Pool::new(config, seed, now));
        let first = pools.next().expect("a service has at least one pool");
        Pools { first, others: pools.collect() }
    }

    /// Creates the pools of a service whose processes another program has started. Otherwise as [`Pools::new`].
    ///
    /// # Panics
    ///
    /// If there is no pool.
    pub fn adopt(
        configs: Vec<PoolConfig>,
        mut snapshots: Vec<PoolSnapshot>,
        seed: u64,
        taken: Instant,
        now: Instant,
    ) -> Pools {
        let seeds = (0..).map(|index| seed.wrapping_add(index));
        let mut pools = configs.into_iter().zip(seeds).map(|(config, seed)| {
            let position = snapshots.iter().position(|snapshot| snapshot.name == config.config.pool);
            let snapshot = position.map(|position| snapshots.swap_remove(position));
            Pool::adopt(config, snapshot, seed, taken, now)
        });
        let first = pools.next().expect("a service has at least one pool");
        let others = pools.collect();
        Pools { first, others }
    }

    pub fn len(&self) -> usize {
        1 + self.others.len()
    }

    pub fn is_single(&self) -> bool {
        self.others.is_empty()
    }

    pub fn get_mut(&mut self, index: usize) -> Option<&mut Pool> {
        if index == 0 { Some(&mut self.first) } else { self.others.get_mut(index - 1) }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        iter::once(&self.first).chain(&self.others)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Pool> {
        iter::once(&mut self.first).chain(&mut self.others)
    }

    /// Returns the pools that have not ended.
    pub fn live_mut(&mut self) -> impl Iterator<Item = &mut Pool> {
        self.iter_mut().filter(|pool| !pool.has_ended())
    }
}

impl Index<usize> for Pools {
    type Output = Pool;

    fn index(&self, index: usize) -> &Pool {
        if index == 0 { &self.first } else { &self.others[index - 1] }
    }
}

impl IndexMut<usize> for Pools {
    fn index_mut(&mut self, index: usize) -> &mut Pool {
        if index == 0 { &mut self.first } else { &mut self.others[index - 1] }
    }
}
