//! The thread that wakes the tasks which wait for a stop request. A process has at most one such thread.
//!
//! In a worker process, the thread waits for the request of this process. In a process with worker threads, it waits
//! for the requests of all worker threads. The parent requests their stop, and must not wake the tasks itself, because
//! a waker is code of the program that may block or panic.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::sys::{self, CallError};
use crate::waker_set::WakerSet;

/// The requests of worker threads for which tasks wait.
#[derive(Debug)]
struct Requests {
    /// The number of worker threads whose stop was not requested yet and for which a task has waited.
    pending: usize,
    /// The tasks of worker threads whose stop was requested, and which the thread has not woken yet.
    made: Vec<Arc<WakerSet>>,
    is_running: bool,
    /// The thread that was started last.
    thread: Option<JoinHandle<()>>,
}

static REQUESTS: Mutex<Requests> =
    Mutex::new(Requests { pending: 0, made: Vec::new(), is_running: false, thread: None });
/// Notified when `made` or `is_running` changes.
static CHANGED: Condvar = Condvar::new();

/// Starts a thread in which all signals are blocked. So the kernel delivers every signal to a thread of the program.
pub(crate) fn start(body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, CallError> {
    /// A waker is code of the program, and a panic in it may print a backtrace.
    const STACK_SIZE: usize = 256 * 1024;
    let builder = thread::Builder::new().name("taskfork-stop".into()).stack_size(STACK_SIZE);
    let started = sys::with_signals_blocked(|| builder.spawn(body))?;
    started.map_err(|error| CallError::new(sys::THREAD_CALL, error))
}

/// Announces that tasks wait for the request of one more worker thread. Starts the thread if it does not run.
pub(crate) fn expect_request() -> Result<(), CallError> {
    let mut requests = lock();
    if !requests.is_running {
        requests.thread = Some(start(wake_until_done)?);
        requests.is_running = true;
    }
    requests.pending += 1;
    Ok(())
}

/// Passes the tasks of a worker thread to the thread, because its stop is requested now. Call this once for each
/// successful call of [`expect_request`].
pub(crate) fn wake_soon(wakers: Arc<WakerSet>) {
    lock().made.push(wakers);
    CHANGED.notify_all();
}

/// Waits until the thread has woken all tasks and has ended. The stop of all worker threads must have been requested.
/// After a second, returns although the thread still runs, because a waker of the program may block.
pub(crate) fn join() {
    const PATIENCE: Duration = Duration::from_secs(1);
    let waited = CHANGED.wait_timeout_while(lock(), PATIENCE, |requests| requests.is_running);
    let (mut requests, _) = waited.unwrap_or_else(PoisonError::into_inner);
    let ended = if requests.is_running { None } else { requests.thread.take() };
    drop(requests);
    if let Some(thread) = ended {
        let _ = thread.join();
    }
}

/// Wakes the tasks of worker threads until no request is pending.
fn wake_until_done() {
    let mut requests = lock();
    loop {
        if let Some(wakers) = requests.made.pop() {
            requests.pending -= 1;
            drop(requests);
            wakers.wake_all();
            drop(wakers);
            requests = lock();
        } else if requests.pending == 0 {
            requests.is_running = false;
            CHANGED.notify_all();
            return;
        } else {
            requests = CHANGED.wait(requests).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn lock() -> MutexGuard<'static, Requests> {
    REQUESTS.lock().unwrap_or_else(PoisonError::into_inner)
}
