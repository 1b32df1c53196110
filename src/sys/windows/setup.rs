//! There is neither of it: no user that a process could become, and no CPU that it is tied to.

use std::{io, process};

use crate::sys::{CallError, Identity};

/// There is no such choice.
pub(crate) fn usable_cpus() -> Result<Vec<usize>, CallError> {
    Ok(Vec::new())
}

pub(crate) fn pin_to(_: usize) -> Result<(), CallError> {
    Err(CallError::new("SetThreadAffinityMask", io::ErrorKind::Unsupported))
}

pub(crate) fn drop_privileges(_: &Identity) -> Result<(), CallError> {
    Err(CallError::new("setuid", io::ErrorKind::Unsupported))
}

/// Nobody is half somebody else here, and in need of it.
pub(crate) fn exit_now(status: i32) -> ! {
    process::exit(status)
}
