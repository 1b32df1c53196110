//! Replaces `affinity.rs` on systems other than Linux, because this crate can pin threads to CPUs only on Linux.

use std::io;

use crate::sys::CallError;

/// Returns an empty list, because this crate cannot pin threads on this system.
pub(crate) fn usable_cpus() -> Result<Vec<usize>, CallError> {
    Ok(Vec::new())
}

pub(crate) fn pin_to(_: usize) -> Result<(), CallError> {
    Err(CallError::new("sched_setaffinity", io::ErrorKind::Unsupported))
}
