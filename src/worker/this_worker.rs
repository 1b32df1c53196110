//! Which worker this process or this thread is.

use std::cell::{Cell, OnceCell};
#[cfg(unix)]
use std::process;
#[cfg(unix)]
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
#[cfg(unix)]
use std::sync::{Mutex, PoisonError, Weak};

#[cfg(unix)]
use rand::{Rng, rngs::SysRng};

use super::{Status, Worker};
use crate::error::{Error, Result};
#[cfg(unix)]
use crate::scoreboard::NestedCalls;
use crate::scoreboard::StatusWriter;
use crate::sys::CallError;

const NO_WORKER: usize = usize::MAX;

/// The worker that this process is. Set at most once, when the process becomes a worker.
static THIS_WORKER: ThisWorker = ThisWorker {
    id: AtomicUsize::new(NO_WORKER),
    status: OnceLock::new(),
    #[cfg(unix)]
    pid: AtomicU32::new(0),
    #[cfg(unix)]
    mark: AtomicU32::new(0),
};

/// The values are in one static, so that a forked worker writes to only one page for them (copy-on-write).
#[repr(align(64))]
struct ThisWorker {
    /// The worker id of this process, or `NO_WORKER`.
    id: AtomicUsize,
    /// Gives access to the worker's status slot. It is here and not in the [`Worker`], because the program may drop the
    /// `Worker` before it makes a nested call.
    status: OnceLock<StatusWriter>,
    /// The pid of a worker without a status slot. A process that this worker forks has another pid.
    #[cfg(unix)]
    pid: AtomicU32,
    /// The [mark](NestedCalls::mark) of a worker without a status slot.
    #[cfg(unix)]
    mark: AtomicU32,
}

const _: () = assert!(size_of::<ThisWorker>() == 64, "one cache line never spans two pages");

/// The memory in which workers without a status slot record nested calls. The parent sets this before it forks the
/// first worker, so that a worker need not write to it. A fork never happens while the lock is held, because the parent
/// has only one thread.
#[cfg(unix)]
static NESTED_CALLS: Mutex<Weak<NestedCalls>> = Mutex::new(Weak::new());

thread_local! {
    /// The worker id of this thread, or `NO_WORKER`.
    static THREAD_ID: Cell<usize> = const { Cell::new(NO_WORKER) };
    /// The status slot of this worker thread.
    static THREAD_STATUS: OnceCell<Arc<StatusWriter>> = const { OnceCell::new() };
}

pub(crate) fn task_id() -> Option<usize> {
    [THREAD_ID.get(), THIS_WORKER.id.load(Ordering::Relaxed)].into_iter().find(|&id| id != NO_WORKER)
}

/// Marks this thread as this worker.
pub(crate) fn become_thread(worker: &Worker) {
    THREAD_ID.set(worker.id);
    if let Some(Status::OfThread(status)) = &worker.status {
        THREAD_STATUS.with(|own| drop(own.set(Arc::clone(status))));
    }
}

/// Returns an error if the calling process or thread is a worker. Every function that starts workers calls this first.
/// So if there is an error, also records for the parent that this worker has made a nested call: the parent does not
/// restart the worker, because its next process would make the same call.
pub(crate) fn check_no_worker() -> Result<()> {
    let Some(id) = task_id() else { return Ok(()) };
    note_nested_call();
    Err(Error::in_worker(id))
}

fn note_nested_call() {
    if THREAD_ID.get() != NO_WORKER {
        // An error means that the thread is ending, and its slot is gone.
        let _ = THREAD_STATUS.try_with(|status| status.get().map(|status| status.note_nested_call()));
    } else if let Some(status) = THIS_WORKER.status.get() {
        status.note_nested_call();
    } else {
        #[cfg(unix)]
        note_without_slot();
    }
}

#[cfg(unix)]
fn note_without_slot() {
    // A process that the worker has forked is not the worker.
    if process::id() != THIS_WORKER.pid.load(Ordering::Relaxed) {
        return;
    }
    let nested_calls = NESTED_CALLS.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    if let Some(nested_calls) = nested_calls {
        nested_calls.note(THIS_WORKER.mark.load(Ordering::Relaxed));
    }
}

/// Maps the memory in which workers without a status slot record nested calls. These workers find the memory as long as
/// the returned value exists: a forked worker has a copy that it never drops.
#[cfg(unix)]
pub(crate) fn share_nested_calls() -> std::result::Result<Arc<NestedCalls>, CallError> {
    let nested_calls = Arc::new(NestedCalls::new()?);
    *NESTED_CALLS.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&nested_calls);
    Ok(nested_calls)
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

/// Keeps the access to the status slot of this process until the process ends. A process becomes a worker only once.
pub(super) fn keep_status(status: StatusWriter) -> &'static StatusWriter {
    THIS_WORKER.status.get_or_init(|| status)
}

/// Marks this process, which has just been forked or spawned, as this worker. Reseeds its random generator.
#[inline]
pub(crate) fn become_worker(worker: &Worker) -> Result<()> {
    let id = worker.id;
    THIS_WORKER.id.store(id, Ordering::Relaxed);
    #[cfg(unix)]
    if worker.status.is_none() {
        THIS_WORKER.pid.store(process::id(), Ordering::Relaxed);
        THIS_WORKER.mark.store(NestedCalls::mark(id, worker.generation), Ordering::Relaxed);
    }
    // fork(2) has copied the generator's state. Without a new seed, all workers would draw the same random numbers.
    rand::rng().reseed().map_err(|error| Error::from(CallError::new("getrandom", error)).starting(id))
}
