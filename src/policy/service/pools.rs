//! The [`Pools`] of a service.

use std::iter;
use std::ops::{Index, IndexMut};
use std::time::Instant;

use super::PoolConfig;
use crate::event::Event;
use crate::policy::Policy;
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
}

impl Pool {
    fn new(config: PoolConfig, seed: u64, now: Instant) -> Pool {
        Pool {
            policy: Policy::new(config.config, seed, now),
            is_optional: config.optional,
            end: None,
            shows_roll: false,
            shown_rolls: 0,
        }
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
