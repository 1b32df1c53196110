//! Replaces `unix/process_times.rs` and `windows/process_times.rs` on systems where the times of a process are not read.

use std::time::Duration;

use super::ProcessTimes;

pub(crate) fn process_clock() -> Duration {
    Duration::ZERO
}

pub(crate) fn process_times(_: u32) -> Option<ProcessTimes> {
    None
}
