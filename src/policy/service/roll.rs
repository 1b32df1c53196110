//! The rolling restart of a service, which rolls its pools one after another.

use std::time::Instant;

use super::Service;
use crate::policy::Request;
use crate::policy::upgrade::UpgradePhase;

/// The rolling restart of a service with several pools. In a service with one pool, the pool's own rolling restart is
/// the service's.
#[derive(Debug, Default)]
pub(super) struct ServiceRoll {
    /// Whether a rolling restart of all pools was requested and has not begun. It begins when the current one has
    /// ended.
    pub requested: bool,
    current: Option<PoolRoll>,
}

/// The turn of one pool in a rolling restart of all pools.
#[derive(Clone, Copy, Debug)]
struct PoolRoll {
    pool: usize,
    /// The number of this rolling restart among those of the pool. The pool may have an earlier one in progress, which
    /// a request for this pool alone has begun.
    number: u64,
}

impl ServiceRoll {
    /// Gives a pool its turn. `number` is the number of its rolling restart.
    pub fn begin_turn(&mut self, pool: usize, number: u64) {
        self.current = Some(PoolRoll { pool, number });
    }

    /// Ends the current rolling restart of all pools. The pool whose turn it is goes on.
    pub fn end(&mut self) {
        self.current = None;
    }
}

impl Service {
    /// Returns whether a rolling restart is in progress, of all pools or of a single one. The result fits the last
    /// event that [`Service::poll_action`] has returned: if that event ends the rolling restart of a pool, the result
    /// is `true` as long as further pools follow in the same rolling restart of the service.
    #[cfg_attr(not(unix), allow(dead_code, reason = "only the notification of systemd needs it"))]
    pub fn is_rolling(&self) -> bool {
        if self.stop.is_some() {
            return false;
        }
        let follows = |roll: PoolRoll| self.is_turn_of(roll) || self.next_open(roll.pool + 1).is_some();
        self.roll.current.is_some_and(follows) || self.pools.iter().any(|pool| pool.shows_roll)
    }

    /// Returns whether the pool still has its turn. Its turn ends when the supervisor knows the last event of its
    /// rolling restart, because otherwise the events of the next pool could come before that event. Its turn also ends
    /// if the pool stops or ends.
    fn is_turn_of(&self, roll: PoolRoll) -> bool {
        let pool = &self.pools[roll.pool];
        !pool.is_closed() && pool.shown_rolls < roll.number
    }

    /// Returns the first pool from `index` on that can be rolled.
    fn next_open(&self, index: usize) -> Option<usize> {
        (index..self.pools.len()).find(|&index| !self.pools[index].is_closed())
    }

    /// Returns whether the turn of a pool has ended, or a requested rolling restart can begin.
    pub(super) fn is_roll_due(&self) -> bool {
        match self.roll.current {
            Some(roll) => !self.is_turn_of(roll),
            None => self.roll.requested,
        }
    }

    /// Requests the rolling restart of the pool whose turn comes now, if there is one.
    pub(super) fn advance_roll(&mut self, now: Instant) {
        if !self.is_roll_due() {
            return;
        }
        if let (UpgradePhase::Rolling, Some(roll)) = (self.upgrade.phase, self.roll.current) {
            return self.end_adopted_turn(now, roll.pool);
        }
        let mut next = self.roll.current.and_then(|roll| self.next_open(roll.pool + 1));
        if next.is_none() && self.roll.requested {
            self.roll.requested = false;
            next = self.next_open(0);
        }
        self.roll.current = next.map(|index| {
            let policy = &mut self.pools[index].policy;
            policy.handle_request(now, Request::Roll);
            PoolRoll { pool: index, number: policy.roll.epoch() + 1 }
        });
    }
}
