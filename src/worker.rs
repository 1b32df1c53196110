//! The worker's side.

use std::sync::atomic::{AtomicUsize, Ordering};

use rand::Rng;
use rand::rngs::SysRng;

use crate::error::{Error, Result};
use crate::sys::CallError;

const NO_WORKER: usize = usize::MAX;

/// Set in a worker, once.
static TASK_ID: AtomicUsize = AtomicUsize::new(NO_WORKER);

pub(crate) fn task_id() -> Option<usize> {
    Some(TASK_ID.load(Ordering::Relaxed)).filter(|&id| id != NO_WORKER)
}

/// Whether this process may start workers, as far as its own role goes.
pub(crate) fn check_no_worker() -> Result<()> {
    task_id().map_or(Ok(()), |id| Err(Error::in_worker(id)))
}

/// In the parent, before it forks: makes the thread's generator, so that the workers, which have to reseed it in any case,
/// need not each make one first (which takes them longer than all the rest).
pub(crate) fn prepare() -> Result<()> {
    // The generator panics where this fails.
    let refused = |error: rand::rngs::SysError| Error::from(CallError::new("getrandom", error));
    rand::TryRng::try_next_u32(&mut SysRng).map_err(refused)?;
    rand::rng().next_u32();
    Ok(())
}

/// The process that was just forked becomes worker `id`. It was nobody's worker before: a worker does not fork workers.
pub(crate) fn become_worker(id: usize) -> Result<()> {
    TASK_ID.store(id, Ordering::Relaxed);
    // The generator's state was copied with everything else; without this, siblings draw the same numbers.
    rand::rng().reseed().map_err(|error| Error::from(CallError::new("getrandom", error)).starting(id))
}
