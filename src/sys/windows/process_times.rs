//! The start and the CPU time of a process.
//!
//! # Safety
//! OpenProcess returns a new handle, which nothing else owns. GetProcessTimes writes four `FILETIME`s.

use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use windows_sys::Win32::Foundation::FILETIME;
use windows_sys::Win32::System::Threading::{GetProcessTimes, OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION};

use crate::sys::ProcessTimes;

/// The time from 1601, when the clock of a `FILETIME` begins, to 1970.
const FROM_1601_TO_1970: Duration = Duration::from_secs(11_644_473_600);

/// Returns the time since 1601, which is the clock of [`ProcessTimes::started`].
pub(crate) fn process_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + FROM_1601_TO_1970
}

/// Returns the times of a process, or `None` if there is no process with this pid.
pub(crate) fn process_times(pid: u32) -> Option<ProcessTimes> {
    // SAFETY: OpenProcess takes integers.
    let handle = unsafe { OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid) };
    if handle.is_null() {
        return None;
    }
    // SAFETY: see the top of this file.
    let process = unsafe { OwnedHandle::from_raw_handle(handle.cast()) };
    let mut times = [FILETIME { dwLowDateTime: 0, dwHighDateTime: 0 }; 4];
    let [started, ended, kernel, user] = &mut times;
    // SAFETY: see the top of this file. The handle has the right that GetProcessTimes needs.
    let result = unsafe { GetProcessTimes(process.as_raw_handle().cast(), started, ended, kernel, user) };
    (result != 0).then(|| ProcessTimes { started: duration(*started), cpu: duration(*kernel) + duration(*user) })
}

/// Converts a number of intervals of 100 ns.
fn duration(time: FILETIME) -> Duration {
    let intervals = u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
    Duration::new(intervals / 10_000_000, (intervals % 10_000_000) as u32 * 100)
}
