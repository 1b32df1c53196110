//! Plans the replacement of one process of a slot.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::SmallRng};

use super::{Slot, State};
use crate::event::RecycleReason;
use crate::exit::Process;
use crate::policy::Config;
use crate::policy::child::{Child, Phase, Recycling};

/// The age that a process must reach before it is replaced because it is worn out. Otherwise processes that retire at
/// their start would make the parent start processes without a pause.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);
/// The time after which the policy tries again to replace a process that is worn out.
const RETRY_DELAY: Duration = Duration::from_secs(10);

/// Returns the end of the lifetime of a process that starts `now`. The lifetime is a random part of the maximum,
/// between three quarters and all of it. So processes that were started together are not replaced at the same time.
pub(super) fn end_of_lifetime(now: Instant, config: &Config, rng: &mut SmallRng) -> Option<Recycling> {
    let lifetime = config.max_lifetime?.mul_f64(rng.random_range(0.75..=1.0));
    Some(Recycling { at: now + lifetime, reason: RecycleReason::Lifetime })
}

impl Slot {
    /// Returns the time of the planned replacement of the worker's process. Returns `None` if that process cannot be
    /// replaced now.
    pub fn recycle_at(&self) -> Option<Instant> {
        match &self.state {
            State::Running(child) if child.phase == Phase::Ready && self.can_be_replaced() => {
                child.recycling.map(|recycling| recycling.at)
            }
            _ => None,
        }
    }

    /// Returns the worker's process, and the reason of its planned replacement.
    pub fn recycling(&self) -> Option<(Process, RecycleReason)> {
        match &self.state {
            State::Running(child) => child.recycling.map(|recycling| (child.process, recycling.reason)),
            _ => None,
        }
    }

    /// Plans the replacement of the process with this generation, because it is worn out: it has retired, has completed
    /// its requests, uses too much memory, or is left from an aborted upgrade. If that process is being replaced
    /// already, the plan has an effect only if its replacement fails. Does nothing if the process was worn out before.
    pub fn handle_worn_out(&mut self, now: Instant, generation: u32, reason: RecycleReason) {
        let child = self.running_mut().find(|child| child.is(generation) && child.worn_out.is_none());
        if let Some(child) = child {
            child.worn_out = Some(reason);
            child.recycle(now.max(child.since + SHORTEST_LIFE), reason);
        }
    }

    /// Returns whether the process with this generation serves or starts, was not given up, and is not worn out.
    pub fn may_wear_out(&self, generation: u32) -> bool {
        let is_this = |child: &Child| child.is(generation) && !child.was_given_up() && child.worn_out.is_none();
        self.running().any(is_this)
    }

    /// Plans the replacement of the process that was started last. If the next process is about to start, does nothing,
    /// because the next process starts after the request.
    pub fn request_recycling(&mut self, now: Instant) {
        if let Some(child) = self.newest() {
            child.recycle(now, RecycleReason::Requested);
        }
    }

    /// Plans the next replacement of the worker's process after a replacement has failed.
    pub fn renew_recycling(&mut self, now: Instant, config: &Config, rng: &mut SmallRng) {
        let State::Running(child) = &mut self.state else { return };
        child.recycling = match child.worn_out {
            Some(reason) => Some(Recycling { at: now + RETRY_DELAY, reason }),
            None => end_of_lifetime(now, config, rng),
        };
    }
}

impl Child {
    /// Plans the replacement of this process at `at`, unless an earlier one is planned for a reason of the same weight.
    fn recycle(&mut self, at: Instant, reason: RecycleReason) {
        let is_planned =
            self.recycling.is_some_and(|planned| planned.at <= at && planned.reason != RecycleReason::Lifetime);
        if !is_planned {
            self.recycling = Some(Recycling { at, reason });
        }
    }
}
