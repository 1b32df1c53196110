//! Hands over the policy of a service to a new program, and takes it over there.

use std::time::Instant;

use super::ignored::IgnoredRequests;
use super::pools::{Pool, Pools};
use super::roll::ServiceRoll;
use super::{PoolConfig, Service};
use crate::policy::upgrade::{Upgrade, UpgradePhase};
use crate::policy::{PoolCondition, PoolSnapshot, Request, ServiceSnapshot, UpgradeConfig};

impl Service {
    /// Returns the state that the new program needs.
    pub fn snapshot(&self, now: Instant) -> ServiceSnapshot {
        ServiceSnapshot {
            // A pool that this program does not have and that has ended is unknown to the next program.
            pools: self
                .pools
                .iter()
                .filter(|pool| !(pool.is_removed && Pool::has_ended(pool)))
                .map(|pool| pool.snapshot(now))
                .collect(),
            roll_requested: self.roll.requested,
            upgrade_requested: self.upgrade.requested,
        }
    }

    /// Returns the policy of a service whose processes another program has started. `taken` is the time of the
    /// snapshot. The caller appends a pool with [`PoolConfig::removed`] for each pool of the snapshot that this program
    /// does not have.
    ///
    /// Each trial worker takes over from the old process of its id. The pools then replace the other processes of the
    /// old program, one pool after another.
    ///
    /// # Panics
    ///
    /// If there is no pool.
    pub fn adopt(
        pools: Vec<PoolConfig>,
        upgrade: UpgradeConfig,
        snapshot: ServiceSnapshot,
        seed: u64,
        taken: Instant,
        now: Instant,
    ) -> Service {
        let ServiceSnapshot { pools: snapshots, roll_requested, upgrade_requested } = snapshot;
        let mut pools = Pools::adopt(pools, snapshots, seed, taken, now);
        if pools.is_single() {
            pools[0].is_optional = false;
        }
        let upgrade = Upgrade { requested: upgrade_requested, phase: UpgradePhase::Rolling, ..Upgrade::new(upgrade) };
        let mut service = Service {
            pools,
            stop: None,
            roll: ServiceRoll::default(),
            ignored: IgnoredRequests::default(),
            first_in_turn: 0,
            upgrade,
        };
        service.roll_adopted(now, 0);
        if roll_requested {
            service.handle_request(now, None, Request::Roll);
        }
        service
    }

    /// Returns whether a process that an earlier program has started serves, and was not asked to stop. Call this only
    /// in a service that was adopted.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only Linux has upgrades")
    )]
    pub fn has_adopted_running(&self) -> bool {
        self.pools.iter().any(|pool| !pool.is_closed() && pool.policy.has_adopted_running())
    }
}

impl Pool {
    fn snapshot(&self, now: Instant) -> PoolSnapshot {
        let snapshot = self.policy.snapshot(now);
        let condition = match &self.end {
            Some(reason) if reason.is_failure() => PoolCondition::Failed,
            Some(_) => PoolCondition::Ended,
            // The new program starts the pool after its own rolling restarts.
            None if self.is_waiting() || self.is_removed => PoolCondition::Failed,
            None => snapshot.condition,
        };
        PoolSnapshot { condition, ..snapshot }
    }
}
