//! The replacement for the change of user and the pinning to CPUs, which this crate does not support on Windows.

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

/// Ends this process. An ordinary exit is enough, because no change of user can be left half done here.
pub(crate) fn exit_now(status: i32) -> ! {
    process::exit(status)
}
