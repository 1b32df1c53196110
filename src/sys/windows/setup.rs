//! Replaces the functions that change the user of a worker or pin a worker to a CPU. This crate supports neither on
//! Windows.

use std::{io, process};

use crate::sys::{CallError, Identity};

/// Returns no CPUs, because this crate does not pin workers to CPUs on Windows.
pub(crate) fn usable_cpus() -> Result<Vec<usize>, CallError> {
    Ok(Vec::new())
}

pub(crate) fn pin_to(_: usize) -> Result<(), CallError> {
    Err(CallError::new("SetThreadAffinityMask", io::ErrorKind::Unsupported))
}

pub(crate) fn drop_privileges(_: &Identity) -> Result<Option<&'static str>, CallError> {
    Err(CallError::new("setuid", io::ErrorKind::Unsupported))
}

/// Ends this process with an ordinary exit. On Unix, a process must exit at once if a change of its user has failed
/// halfway. On Windows, an ordinary exit is enough, because this crate never changes the user.
pub(crate) fn exit_now(status: i32) -> ! {
    process::exit(status)
}
