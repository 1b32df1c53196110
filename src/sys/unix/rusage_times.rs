//! The start and the CPU time of a process on macOS.
//!
//! # Safety
//! mach_absolute_time takes no argument and accesses no memory. mach_timebase_info writes two integers.

// The crate that libc recommends instead would be one more dependency, for two functions.
#![allow(deprecated)]

use std::time::Duration;

use super::private_memory::usage;
use crate::sys::ProcessTimes;

/// Returns the time since the system was booted, without the time that it slept.
pub(crate) fn process_clock() -> Duration {
    // SAFETY: see the top of this file.
    duration(unsafe { libc::mach_absolute_time() })
}

/// Returns the times of a process, or `None` if there is no process with this pid, or if it has another user.
pub(crate) fn process_times(pid: u32) -> Option<ProcessTimes> {
    let usage = usage(pid).ok()?;
    let cpu = duration(usage.ri_user_time.saturating_add(usage.ri_system_time));
    Some(ProcessTimes { started: duration(usage.ri_proc_start_abstime), cpu })
}

/// Converts a time in units of mach_absolute_time. On Intel processors, the unit is a nanosecond.
fn duration(time: u64) -> Duration {
    let mut unit = libc::mach_timebase_info { numer: 0, denom: 0 };
    // SAFETY: see the top of this file.
    unsafe { libc::mach_timebase_info(&raw mut unit) };
    let nanoseconds = u128::from(time) * u128::from(unit.numer) / u128::from(unit.denom.max(1));
    Duration::from_nanos(nanoseconds.try_into().unwrap_or(u64::MAX))
}
