//! Stands in for users and CPU affinity, which workers on Windows do not have.

use std::{io, process};

use crate::sys::{CallError, Identity};

/// Returns no CPUs, because workers are not pinned.
pub(crate) fn usable_cpus() -> Result<Vec<usize>, CallError> {
    Ok(Vec::new())
}

pub(crate) fn pin_to(_: usize) -> Result<(), CallError> {
    Err(CallError::new("SetThreadAffinityMask", io::ErrorKind::Unsupported))
}

pub(crate) fn drop_privileges(_: &Identity) -> Result<(), CallError> {
    Err(CallError::new("setuid", io::ErrorKind::Unsupported))
}

/// Ends this process. There is no half-done change of user here, so an ordinary exit is enough.
pub(crate) fn exit_now(status: i32) -> ! {
    process::exit(status)
}
