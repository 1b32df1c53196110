//! The start and the CPU time of a process on FreeBSD.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::private_memory::process_info;
use crate::sys::ProcessTimes;

/// Returns the time since 1970, which is the clock of [`ProcessTimes::started`].
pub(crate) fn process_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns the times of a process, or `None` if there is no process with this pid.
pub(crate) fn process_times(pid: u32) -> Option<ProcessTimes> {
    let info = process_info(pid).ok()?;
    let seconds = u64::try_from(info.ki_start.tv_sec).unwrap_or(0);
    let microseconds = u64::try_from(info.ki_start.tv_usec).unwrap_or(0);
    let started = Duration::from_secs(seconds) + Duration::from_micros(microseconds);
    Some(ProcessTimes { started, cpu: Duration::from_micros(info.ki_runtime) })
}
