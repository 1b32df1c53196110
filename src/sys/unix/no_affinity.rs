//! Threads are not tied to CPUs here.

use std::io;

use crate::sys::CallError;

/// There is no such choice.
pub(crate) fn usable_cpus() -> Result<Vec<usize>, CallError> {
    Ok(Vec::new())
}

pub(crate) fn pin_to(_: usize) -> Result<(), CallError> {
    Err(CallError::new("sched_setaffinity", io::ErrorKind::Unsupported))
}
