//! The upgrade of a service: when the parent tries the new program, and when it executes it.

use std::time::Duration;

/// The settings of upgrades.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpgradeConfig {
    /// The longest time from the request until the parent executes the new program.
    pub timeout: Duration,
    /// The reason why this service cannot be upgraded at all, if there is one.
    pub refusal: Option<&'static str>,
}

/// A pool that needs a trial worker: one worker of the new program that must become ready before the parent executes
/// the new program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TrialPool {
    /// The position of the pool.
    pub index: usize,
    /// The ready timeout of the pool in the new program.
    pub ready_timeout: Option<Duration>,
    /// The number of workers of the pool in the settings of the new program.
    pub workers: usize,
}
