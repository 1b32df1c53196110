//! Replaces `unix/reuseport.rs` on systems that do not distribute packets among several sockets with the same port.

use std::io;

use super::{BorrowedSocket, CallError, Instruction};

pub(crate) fn share_port(_: BorrowedSocket<'_>, _: bool) -> Result<(), CallError> {
    Err(CallError::new("setsockopt", io::ErrorKind::Unsupported))
}

pub(crate) fn steer(_: BorrowedSocket<'_>, _: &[Instruction]) -> Result<(), CallError> {
    Err(CallError::new("setsockopt", io::ErrorKind::Unsupported))
}

pub(crate) fn has_waiting(_: BorrowedSocket<'_>) -> bool {
    false
}
