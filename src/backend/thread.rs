//! Starts workers as threads of this process.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::{fmt, mem};

use super::{ChildExit, ExitCause, Launcher, StartRequest, Started};
use crate::error::{Error, Result, WithSources};
use crate::exit::{Exit, Process};
use crate::pool_name::WorkerName;
use crate::scoreboard::{StatusWriter, Waker};
use crate::setup::WorkerSetup;
use crate::stop_flag::StopFlag;
use crate::sys::{self, CallError, Signal};
use crate::waker_thread;
use crate::worker::{self, WorkResult, Worker};

/// The program's closure, which each worker thread runs.
pub(crate) type Work = Arc<dyn Fn(Worker) -> WorkResult + Send + Sync>;

/// Starts worker threads, signals them, and reports their exits.
pub(crate) struct Thread {
    work: Work,
    setup: Option<WorkerSetup>,
    running: Vec<WorkerThread>,
    /// Stale threads. A thread is stale if it did not return in time and still runs.
    stale: Vec<WorkerThread>,
    /// Stale threads that the next call of [`Launcher::take_thread_exits`] will report as exited, each with the lease
    /// of its status slot.
    unreported: Vec<(Process, Arc<()>)>,
    /// The threads that have returned since the last call of [`Launcher::take_thread_exits`]. Each thread adds its own
    /// entry.
    returned: Arc<Mutex<Vec<(Process, Return)>>>,
}

#[derive(Debug)]
struct WorkerThread {
    process: Process,
    stop: Arc<StopFlag>,
    handle: JoinHandle<()>,
    waker: Arc<Waker>,
    lease: Arc<()>,
}

/// The result of a worker's closure. The strings are the messages of the error and of the panic.
#[derive(Debug)]
enum Return {
    Normal,
    Error(String),
    Panic(String),
}

impl Thread {
    pub fn new(work: Work, setup: Option<WorkerSetup>) -> Thread {
        let returned = Arc::default();
        Thread { work, setup, running: Vec::new(), stale: Vec::new(), unreported: Vec::new(), returned }
    }

    /// Marks a thread as stale, because a thread cannot be killed. The thread is then reported as exited, although it
    /// still runs. Does nothing if the thread has returned already.
    fn give_up(&mut self, process: Process) {
        let returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        if returned.iter().any(|(known, _)| *known == process) {
            return;
        }
        if let Some(thread) = take(&mut self.running, process) {
            // Request a stop as well. If the thread is blocked now and continues later, it can notice the request and
            // return.
            thread.stop.make();
            thread.waker.wake();
            self.unreported.push((process, Arc::clone(&thread.lease)));
            self.stale.push(thread);
        }
    }
}

impl Launcher for Thread {
    fn start(&mut self, request: StartRequest<'_>) -> Result<Started> {
        let StartRequest { pool, id, generation, count, slot_handle, listeners } = request;
        let Some(slot_handle) = slot_handle else { return Err(Error::unfit("backend", "a thread needs a handle")) };
        let process = Process { pool, id, generation, pid: None };
        let stop = Arc::<StopFlag>::default();
        let lease = Arc::new(());
        let waker = Arc::clone(slot_handle.waker);
        let status = StatusWriter::at(&slot_handle, &lease);
        let worker = Worker::in_thread(process, count, status, listeners.clone(), Arc::clone(&stop));
        let returned = Arc::clone(&self.returned);
        let exit_waker = Arc::clone(&waker);
        let work = Arc::clone(&self.work);
        let setup = self.setup.as_ref().map(|setup| setup.for_worker(id)).unwrap_or_default();
        let body = move || {
            setup.pin(WorkerName { pool, id });
            EXIT_REPORT.set(Some(ExitReport { process, how: Return::Normal, returned, waker: exit_waker }));
            let how = run(work, worker);
            EXIT_REPORT.with_borrow_mut(|report| report.as_mut().map(|report| report.how = how));
        };
        let builder = thread::Builder::new().name(process.thread_name());
        let refused = |error| Error::from(error).starting(id);
        let spawned = sys::with_requests_blocked(|| builder.spawn(body)).map_err(refused)?;
        let handle = spawned.map_err(|error| refused(CallError::new(sys::THREAD_CALL, error)))?;
        self.running.push(WorkerThread { process, stop, handle, waker, lease });
        Ok(Started::Parent(None))
    }

    fn signal_thread(&mut self, worker: Process, signal: Signal) {
        match signal {
            Signal::Terminate | Signal::Interrupt | Signal::Quit => {
                if let Some(thread) = self.running.iter().find(|thread| thread.process == worker) {
                    thread.stop.make();
                }
            }
            Signal::Abort | Signal::Kill => self.give_up(worker),
            Signal::Hangup
            | Signal::TerminalInput
            | Signal::TerminalOutput
            | Signal::User1
            | Signal::User2
            | Signal::Child => {}
        }
    }

    fn take_thread_exits(&mut self) -> Vec<ChildExit> {
        let stale =
            |(process, lease)| ChildExit { process, exit: Exit::Stale, cause: ExitCause::Stale, lease: Some(lease) };
        let mut exits: Vec<ChildExit> = self.unreported.drain(..).map(stale).collect();
        let returned = mem::take(&mut *self.returned.lock().unwrap_or_else(PoisonError::into_inner));
        for (process, returned) in returned {
            let (exit, cause) = match returned {
                Return::Normal => (Exit::Code(0), ExitCause::Exited),
                Return::Error(message) => (Exit::Code(1), ExitCause::Failed(message)),
                Return::Panic(message) => (Exit::Code(101), ExitCause::Panicked(message)),
            };
            if let Some(thread) = take(&mut self.running, process) {
                let lease = Some(join(thread));
                exits.push(ChildExit { process, exit, cause, lease });
            } else if let Some(thread) = take(&mut self.stale, process) {
                let lease = Some(join(thread));
                exits.push(ChildExit { process, exit, cause: ExitCause::ReturnedLate, lease });
            }
        }
        exits
    }
}

/// Requests a stop of all running threads, but does not wait until they return. This happens however the supervision
/// ends, also after an error. Waits for the waker thread, because a program may fork workers after this call, and fork
/// requires that the process has no other thread.
impl Drop for Thread {
    fn drop(&mut self) {
        for thread in &self.running {
            thread.stop.make();
        }
        waker_thread::join();
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("running", &self.running).field("stale", &self.stale).finish_non_exhaustive()
    }
}

/// Runs the worker's closure in the current thread. Catches a panic of the closure.
fn run(work: Work, worker: Worker) -> Return {
    worker::become_thread(&worker);
    let returned = panic::catch_unwind(AssertUnwindSafe(move || match work(worker) {
        Ok(()) => Return::Normal,
        Err(error) => {
            let message = WithSources(&*error).to_string();
            discard(error);
            Return::Error(message)
        }
    }));
    returned.unwrap_or_else(|payload| Return::Panic(message_of(payload)))
}

fn message_of(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("with something that is no text").to_owned();
    discard(payload);
    message
}

/// Drops `value` and ignores a panic in its destructor, because such a panic would change the worker's exit status.
fn discard<T>(value: T) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| drop(value))) {
        mem::forget(payload);
    }
}

fn take(threads: &mut Vec<WorkerThread>, process: Process) -> Option<WorkerThread> {
    let at = threads.iter().position(|thread| thread.process == process)?;
    Some(threads.swap_remove(at))
}

/// Joins a thread that has returned. Ignores the result, because `run` has caught any panic of the closure. Also
/// requests a stop: the worker may have moved its [`Worker`] handle to another thread, which then notices the request.
fn join(thread: WorkerThread) -> Arc<()> {
    thread.stop.make();
    let _ = thread.handle.join();
    thread.lease
}

thread_local! {
    /// Reports the exit of this thread when this value is dropped. std drops the thread-local values of a thread in the
    /// reverse order of their first use. The worker thread sets this value before it runs the closure. So the
    /// thread-local values of the closure are dropped before the exit is reported, even if their destructors take long.
    static EXIT_REPORT: RefCell<Option<ExitReport>> = const { RefCell::new(None) };
}

struct ExitReport {
    process: Process,
    how: Return,
    returned: Arc<Mutex<Vec<(Process, Return)>>>,
    waker: Arc<Waker>,
}

impl Drop for ExitReport {
    fn drop(&mut self) {
        let how = mem::replace(&mut self.how, Return::Normal);
        self.returned.lock().unwrap_or_else(PoisonError::into_inner).push((self.process, how));
        self.waker.wake();
    }
}
