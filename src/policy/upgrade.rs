//! The upgrade of a service: when the parent tries the new program, and when it executes it.
//!
//! ```text
//!  old program                                                  | new program
//!                                                               |
//!  request      no replacement   checker has    all trial       |  all rolling     processes of
//!               is under way     succeeded      workers ready   |  restarts have   removed pools
//!                                                               |  ended           have exited
//!  Idle --> Waiting --------> Checking ------> Trying ------> Executing --> Rolling ------> Draining --> Idle
//!             |                  |               |              |  |           |               |
//!             +------------------+---------------+--------------+  |           +---------------+
//!             |   failure, timeout, stop, further request          |           |   failure, stop
//!             v                                                    |           v
//!            Idle (the old program goes on)                      execve       Idle (old processes may stay)
//! ```
//!
//! The phases from `Waiting` to `Executing` hold the service: no replacement begins, and requests wait, except those to
//! stop and to reopen files. Processes that fail are restarted as always.

use std::time::{Duration, Instant};

use super::deadline::Deadline;

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

#[derive(Debug)]
pub(super) struct Upgrade {
    pub config: UpgradeConfig,
    /// Whether an upgrade was requested and has not begun. A request during the trial begins a new trial. A request
    /// after the execution waits for the end of the current upgrade.
    pub requested: bool,
    pub phase: UpgradePhase,
    /// The time of the last refusal that was reported.
    pub refused_at: Option<Instant>,
}

/// How far the upgrade of a service has come. `deadline` is the end of the time that the upgrade has until the
/// execution of the new program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpgradePhase {
    /// No upgrade is in progress.
    Idle,
    /// Initial starts and replacements that have begun before go on. The checker starts after their end.
    Waiting { deadline: Deadline },
    /// The checker runs.
    Checking { deadline: Deadline },
    /// The pools start their trial workers. Once all of them are ready and no action is queued, the parent executes the
    /// new program.
    Trying { deadline: Deadline },
    /// The supervisor executes the new program. Only a failure comes back to this policy.
    Executing,
    /// This is the new program. It replaces the processes of the old one, pool after pool.
    Rolling,
    /// The rolling restarts have ended. Processes of pools that the new program does not have may be left.
    Draining,
}

impl Upgrade {
    pub fn new(config: UpgradeConfig) -> Upgrade {
        Upgrade { config, requested: false, phase: UpgradePhase::Idle, refused_at: None }
    }

    pub fn is_active(&self) -> bool {
        self.phase != UpgradePhase::Idle
    }

    /// Returns whether replacements and requests wait, because the parent may soon execute the new program.
    pub fn holds(&self) -> bool {
        self.phase == UpgradePhase::Executing || self.deadline().is_some()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.phase.deadline().map(Deadline::at)
    }

    /// Extends the deadline if the parent was paused or starved ([`Deadline::extend`]).
    pub fn extend(&mut self, now: Instant, interrupted_at: Option<Instant>) {
        match &mut self.phase {
            UpgradePhase::Waiting { deadline }
            | UpgradePhase::Checking { deadline }
            | UpgradePhase::Trying { deadline } => {
                deadline.extend(now, interrupted_at);
            }
            UpgradePhase::Idle | UpgradePhase::Executing | UpgradePhase::Rolling | UpgradePhase::Draining => {}
        }
    }

    /// Returns the reason for the end of the upgrade if its time is over.
    pub fn late(&self, now: Instant) -> Option<String> {
        self.phase.deadline().filter(|deadline| deadline.has_passed(now))?;
        let what = match self.phase {
            UpgradePhase::Waiting { .. } => "the replacements under way have not ended",
            UpgradePhase::Checking { .. } => "the new program has not reached its call",
            _ => "the new program's workers were not ready",
        };
        Some(format!("{what} within the upgrade timeout of {:?}", self.config.timeout))
    }
}

impl UpgradePhase {
    pub fn deadline(self) -> Option<Deadline> {
        match self {
            UpgradePhase::Waiting { deadline }
            | UpgradePhase::Checking { deadline }
            | UpgradePhase::Trying { deadline } => Some(deadline),
            UpgradePhase::Idle | UpgradePhase::Executing | UpgradePhase::Rolling | UpgradePhase::Draining => None,
        }
    }
}
