//! The upgrade of a service.

use std::time::Instant;

use super::{PoolConfig, Service};
use crate::policy::{ServiceSnapshot, TrialPool, UpgradeConfig};

impl Service {
    /// Handles the success of the checker. `pools` are the pools that need a trial worker.
    pub fn handle_check_passed(&mut self, _now: Instant, _pools: Vec<TrialPool>) {}

    /// Handles the failure of the checker, or of the execution of the new program.
    pub fn handle_upgrade_failed(&mut self, _now: Instant, _reason: String) {}

    /// Returns whether an upgrade is in progress: from [`Event::UpgradeStarted`](crate::Event::UpgradeStarted) to its
    /// end, in both programs.
    pub fn is_upgrading(&self) -> bool {
        false
    }

    /// Returns the state that the new program needs.
    pub fn snapshot(&self, _now: Instant) -> ServiceSnapshot {
        ServiceSnapshot { pools: Vec::new(), roll_requested: false, upgrade_requested: false }
    }

    /// Returns the policy of a service whose processes another program has started. `taken` is the time of the
    /// snapshot.
    pub fn adopt(
        pools: Vec<PoolConfig>,
        upgrade: UpgradeConfig,
        _snapshot: ServiceSnapshot,
        seed: u64,
        _taken: Instant,
        now: Instant,
    ) -> Service {
        Service::new(pools, upgrade, seed, now)
    }
}
