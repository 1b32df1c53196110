//! Which worker this process or this thread is.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(unix)]
use rand::{Rng, rngs::SysRng};

use crate::error::{Error, Result};
use crate::sys::CallError;

const NO_WORKER: usize = usize::MAX;

/// The worker id of this process, or `NO_WORKER`. Set at most once, when the process becomes a worker.
static TASK_ID: AtomicUsize = AtomicUsize::new(NO_WORKER);

thread_local! {
    /// The worker id of this thread, or `NO_WORKER`.
    static THREAD_ID: Cell<usize> = const { Cell::new(NO_WORKER) };
}

pub(crate) fn task_id() -> Option<usize> {
    [THREAD_ID.get(), TASK_ID.load(Ordering::Relaxed)].into_iter().find(|&id| id != NO_WORKER)
}

/// Marks this thread as worker `id`.
pub(crate) fn become_thread(id: usize) {
    THREAD_ID.set(id);
}

/// Returns an error if the calling process or thread is a worker.
pub(crate) fn check_no_worker() -> Result<()> {
    task_id().map_or(Ok(()), |id| Err(Error::in_worker(id)))
}

/// Creates the random generator of this thread (`rand::rng()`) in the parent, before the first fork. A forked worker
/// then only reseeds its copy. If each worker had to create its own generator, this would take longer than the rest of
/// the worker's start.
#[cfg(unix)]
pub(crate) fn prepare() -> Result<()> {
    // Check for an error first: `rand::rng()` panics if the system returns no random numbers.
    let refused = |error: rand::rngs::SysError| Error::from(CallError::new("getrandom", error));
    rand::TryRng::try_next_u32(&mut SysRng).map_err(refused)?;
    rand::rng().next_u32();
    Ok(())
}

/// Marks this process, which has just been forked or spawned, as worker `id`. Reseeds its random generator.
#[inline]
pub(crate) fn become_worker(id: usize) -> Result<()> {
    TASK_ID.store(id, Ordering::Relaxed);
    // fork(2) has copied the generator's state. Without a new seed, all workers would draw the same random numbers.
    rand::rng().reseed().map_err(|error| Error::from(CallError::new("getrandom", error)).starting(id))
}
