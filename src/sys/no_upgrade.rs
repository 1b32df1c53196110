//! Replaces `unix/upgrade` on systems on which a parent cannot be upgraded. The values of these types do not exist.

use std::path::Path;
use std::time::Duration;

use super::{BorrowedSocket, ChildHandle, Owned, Secret};

/// Whether a parent can be upgraded on this system.
pub(crate) const CAN_UPGRADE: bool = false;

#[derive(Debug)]
pub(crate) enum NewProgram {}

#[derive(Debug)]
pub(crate) enum TakenState {}

impl NewProgram {
    pub fn open(_: Option<&Path>) -> Result<NewProgram, String> {
        Err("a running service can be upgraded on Linux only".to_owned())
    }

    pub fn path(&self) -> &Path {
        match *self {}
    }

    pub fn start_candidate(&self, _: Secret, _: &str, _: &[BorrowedSocket<'_>]) -> Result<ChildHandle, String> {
        match *self {}
    }

    pub fn exec(&self, _: Secret, _: &str, _: &[BorrowedSocket<'_>], _: Duration) -> String {
        match *self {}
    }
}

/// Returns no state, because no program before this one can have passed one.
pub(crate) fn take_state() -> Result<Option<TakenState>, String> {
    Ok(None)
}

/// Returns no descriptors, because no parent can have started this process as a candidate.
pub(crate) fn take_candidate_fds() -> Option<Vec<Owned>> {
    None
}
