//! [`WorkGuard`], one unit of work in progress.

use std::fmt;

use crate::scoreboard::WorkMeter;

/// A unit of work in progress. [`Worker::begin_work`](crate::Worker::begin_work) returns it. Dropping it completes the
/// unit.
///
/// The guard can be moved to any thread and held across an `.await`, and does not borrow the
/// [`Worker`](crate::Worker). It may outlive the worker's handle, and even a [worker
/// thread](crate::Prefork::run_threads) and its service. A guard that is leaked, for example by [`std::mem::forget`],
/// counts as work in progress until its process or its worker thread ends.
#[must_use = "the unit of work ends when the guard is dropped"]
pub struct WorkGuard {
    /// `None` if the unit does not count.
    meter: Option<WorkMeter>,
}

impl WorkGuard {
    #[inline]
    pub(super) fn begin(meter: Option<&WorkMeter>) -> WorkGuard {
        WorkGuard { meter: meter.filter(|meter| meter.start()).copied() }
    }
}

impl Drop for WorkGuard {
    #[inline]
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            meter.complete();
        }
    }
}

impl fmt::Debug for WorkGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkGuard").finish_non_exhaustive()
    }
}
