//! The replacement for `affinity.rs` on systems other than Linux, where this crate pins no threads.

use std::io;

use crate::sys::CallError;

/// Returns no CPUs, because threads cannot be pinned.
pub(crate) fn usable_cpus() -> Result<Vec<usize>, CallError> {
    Ok(Vec::new())
}

pub(crate) fn pin_to(_: usize) -> Result<(), CallError> {
    Err(CallError::new("sched_setaffinity", io::ErrorKind::Unsupported))
}
