//! How workers are started. A [`Launcher`] only starts them; the supervisor registers, signals and reaps the processes.

#[cfg(unix)]
mod fork;
mod spawn;
mod thread;

#[cfg(unix)]
pub(crate) use fork::Fork;
pub(crate) use spawn::{Spawn, accept_spawn};
pub(crate) use thread::{Thread, Work};

use crate::error::Result;
use crate::exit::{Exit, Process};
use crate::listener::Listeners;
use crate::scoreboard::{SlotHandle, SlotLease};
use crate::sys::{ChildHandle, Signal, WorkerKind};

/// Refuses forks while there is more than one thread. Call this before anything is created for the service.
pub(crate) fn check(kind: WorkerKind) -> Result<()> {
    match kind {
        #[cfg(unix)]
        WorkerKind::Fork => Fork::check(),
        WorkerKind::Spawn | WorkerKind::Thread => Ok(()),
    }
}

/// Starts workers.
///
/// The supervisor registers each process that a launcher starts, then signals and reaps it in the same way for every
/// launcher. A thread has no pid, and the kernel reports no exit for it. So the launcher of threads also signals them and
/// reports their exits.
pub(crate) trait Launcher {
    /// Writes buffered output. Called before a start if something may have been buffered since the last one. Only a fork
    /// inherits the buffers and would write them again; the other launchers do nothing, because a write can block.
    fn flush(&mut self) {}

    fn start(&mut self, request: StartRequest<'_>) -> Result<Started>;

    /// Signals a worker that is a thread. Does nothing if the thread has returned.
    fn signal_thread(&mut self, _worker: Process, _signal: Signal) {}

    /// Returns the exits of threads since the last call. The doorbell rings for each of them.
    fn take_thread_exits(&mut self) -> Vec<ChildExit> {
        Vec::new()
    }
}

/// The worker to start.
#[derive(Debug)]
pub(crate) struct StartRequest<'a> {
    pub id: usize,
    pub generation: u32,
    /// The number of workers in the pool.
    pub count: usize,
    /// The worker's status slot. A fork inherits it anyway.
    pub slot_handle: Option<SlotHandle<'a>>,
    /// The worker's listeners. A fork inherits them anyway.
    pub listeners: &'a Listeners,
}

/// The two sides of a start, as fork(2) has them.
#[derive(Debug)]
pub(crate) enum Started {
    /// This is the parent. A new process comes with its handle, a thread without one.
    Parent(Option<ChildHandle>),
    /// This is the new process. It leaves the supervisor without changing anything in it.
    #[cfg_attr(not(unix), expect(dead_code, reason = "only a fork returns in the new process"))]
    Child,
}

/// The exit of a worker's process or thread.
#[derive(Debug)]
pub(crate) struct ChildExit {
    pub process: Process,
    pub exit: Exit,
    pub cause: ExitCause,
    /// The lease of its status slot. It can outlive the worker.
    pub lease: SlotLease,
}

/// The part of an exit that the status does not show.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ExitCause {
    Exited,
    /// A thread returned an error or panicked, with this message.
    Failed(String),
    /// A thread did not return in time. It counts as exited, but still runs.
    Stale,
    /// A stale thread has returned.
    ReturnedLate,
}
