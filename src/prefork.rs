//! What can be chosen: every default, and every check.

use std::num::NonZero;
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::policy::{Config, Delays, Restart};
use crate::sys;

/// Tornado's.
pub(crate) const MAX_RESTARTS: u32 = 100;

/// The configuration of `workers` workers (0: one per CPU that this process may use), checked; all else by default.
pub(crate) fn configure(workers: usize, max_restarts: u32) -> Result<Config> {
    let workers = if workers == 0 { cpus() } else { workers };
    check_possible(workers)?;
    Ok(Config {
        workers,
        max_workers: usize::MAX,
        restart: Restart::OnFailure,
        max_restarts,
        restart_window: None,
        delays: Delays { first: Duration::from_millis(10), max: Duration::from_secs(1) },
        fatal_exits: Vec::new(),
        graceful_timeout: Duration::from_secs(30),
        ready_timeout: None,
        heartbeat_timeout: None,
    })
}

/// Refused here is what no system can have; what this user may have is for fork to say.
fn check_possible(workers: usize) -> Result<()> {
    /// No system is set up for less, so it need not be asked.
    const FEW: usize = 256;
    if workers <= FEW {
        return Ok(());
    }
    let limit = sys::process_limit();
    if workers > limit { Err(Error::too_many(workers, limit)) } else { Ok(()) }
}

/// std counts by affinity and by the cgroup's CPU quota, v1 and v2. If it cannot tell, one is never wrong.
fn cpus() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}
