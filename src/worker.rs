//! The worker's side.

use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::sys::CallError;

/// Set in a worker, once.
static TASK_ID: OnceLock<usize> = OnceLock::new();

pub(crate) fn task_id() -> Option<usize> {
    TASK_ID.get().copied()
}

/// Whether this process may start workers, as far as its own role goes.
pub(crate) fn check_no_worker() -> Result<()> {
    task_id().map_or(Ok(()), |id| Err(Error::in_worker(id)))
}

/// The process that was just forked becomes worker `id`. It was nobody's worker before: a worker does not fork workers.
pub(crate) fn become_worker(id: usize) -> Result<()> {
    TASK_ID.get_or_init(|| id);
    // The generator's state was copied with everything else; without this, siblings draw the same numbers.
    rand::rng().reseed().map_err(|error| Error::from(CallError::new("getrandom", error)).starting(id))
}
