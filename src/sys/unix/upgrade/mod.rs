//! An upgrade: this process executes another program and stays the parent of its workers (execve(2)).

mod channel;

pub(crate) use channel::{Channel, Message};

/// Whether a parent can be upgraded on this system.
pub(crate) const CAN_UPGRADE: bool = true;
