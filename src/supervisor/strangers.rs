//! Exited children of this process that are not workers.
//!
//! The kernel makes orphans the children of pid 1, or of an ancestor that is a subreaper (`PR_SET_CHILD_SUBREAPER`,
//! prctl(2)). They stay zombies until this process reaps them. But a stranger may also be a child that the program has
//! started itself and waits for. The kernel does not record which of the two it is. So the parent leaves each stranger
//! to the program for a second, and reaps it only then. A thread of the program that waits for its child at that time
//! always gets the status.
//!
//! A parent that adopts no orphans reaps no strangers.

use std::time::{Duration, Instant};

use super::children::Children;
use crate::error::Result;
use crate::sys;

/// The time for which the parent leaves strangers to the program.
const PATIENCE: Duration = Duration::from_secs(1);

/// The strangers that wait to be reaped, and when they are due. `None` if there are none.
#[derive(Debug, Default)]
pub(super) struct Strangers(Option<Waiting>);

#[derive(Debug)]
struct Waiting {
    until: Instant,
    /// The strangers that had exited when the wait began. `None` if the system does not list them. Then all strangers
    /// are reaped when the wait ends, also those that have exited a moment before.
    pids: Option<Vec<u32>>,
}

impl Strangers {
    pub fn is_due(&self, now: Instant) -> bool {
        self.next_deadline().is_some_and(|until| until <= now)
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.0.as_ref().map(|waiting| waiting.until)
    }

    /// Begins to wait if no wait has begun. Call this when a scan has found a stranger. Lists the exited children only
    /// once in each wait, because the list takes time for each child.
    pub fn note(&mut self, now: Instant) {
        if self.0.is_none() && sys::adopts_orphans() {
            self.0 = Some(Waiting { until: now + PATIENCE, pids: sys::exited_children() });
        }
    }

    /// Reaps the strangers that have waited long enough.
    pub fn reap_due(&mut self, now: Instant, children: &Children) -> Result<()> {
        let Some(Waiting { pids, .. }) = self.0.take_if(|waiting| waiting.until <= now) else { return Ok(()) };
        match pids {
            Some(pids) => {
                let mut strangers = pids.into_iter().filter(|&pid| !children.contains(pid));
                strangers.try_for_each(sys::reap_stranger)?;
            }
            None => {
                while let Some(pid) = sys::peek_exited()?.filter(|&pid| !children.contains(pid)) {
                    sys::reap_stranger(pid)?;
                }
            }
        }
        Ok(())
    }
}
