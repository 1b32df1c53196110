//! Starts workers as forks, as new processes of this program, or as threads. A [`Launcher`] only starts worker
//! processes. The supervisor registers, signals and reaps these processes.

#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(crate) mod candidate;
#[cfg(unix)]
mod fork;
mod removed;
mod spawn;
mod thread;

use std::sync::Arc;
use std::time::Duration;

#[cfg(unix)]
pub(crate) use fork::Fork;
pub(crate) use removed::Removed;
pub(crate) use spawn::{Spawn, accept_spawn, check_not_spawned};
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(crate) use spawn::{draw_secret, find_pool, unfit};
pub(crate) use thread::{Thread, Work};

use crate::error::Result;
use crate::exit::{Exit, Process};
use crate::listener::Listeners;
use crate::scoreboard::{SlotHandle, SlotLease};
use crate::setup::WorkerSetup;
use crate::sys::{ChildHandle, ExitNotifier, Lifeline, Program, Signal, WorkerKind};

/// Returns an error if the workers would be forks and this process has more than one thread. Also returns an error if
/// the workers would be spawned and this thread must not change its user. The caller checks this before it opens the
/// sockets of the service.
pub(crate) fn check(kind: WorkerKind, setup: Option<&WorkerSetup>) -> Result<()> {
    match kind {
        #[cfg(unix)]
        WorkerKind::Fork => Fork::check(),
        WorkerKind::Spawn => setup.map_or(Ok(()), |setup| Spawn::check(&setup.for_worker(0))),
        WorkerKind::Thread => Ok(()),
    }
}

/// Starts workers.
///
/// The supervisor registers, signals and reaps each process that a launcher has started. The supervisor does this in
/// the same way for every launcher. Threads differ from processes: a thread has no pid, and the kernel does not report
/// its exit. So the launcher of threads also delivers signals to the threads and reports their exits.
pub(crate) trait Launcher {
    /// Returns whether the workers are forks, which get a copy of the parent's memory. A fork would write the output that
    /// this process has buffered a second time, so the supervisor writes it before the start. It does not do so for
    /// threads and spawned workers, because a write can block. Only a fork can share memory that has no file.
    fn forks(&self) -> bool {
        false
    }

    fn start(&mut self, request: StartRequest<'_>) -> Result<Started>;

    /// Delivers a signal to a worker thread. SIGTERM, SIGINT and SIGQUIT request a stop. SIGABRT and SIGKILL mark the
    /// thread as stale, because a thread cannot be killed. Does nothing if the thread has returned.
    fn signal_thread(&mut self, _worker: Process, _signal: Signal) {}

    /// Closes, in a forked worker of another pool, the descriptors of this launcher that the worker has inherited. The
    /// worker must not use or drop this launcher afterwards.
    #[cfg(unix)]
    fn release_in_child(&self) {}

    /// Returns the exits of threads since the last call. Each exit wakes the parent through the doorbell.
    fn take_thread_exits(&mut self) -> Vec<ChildExit> {
        Vec::new()
    }

    /// Returns whether a process that has exited had called a function that starts workers. Only used for processes
    /// without a status slot.
    fn take_nested_call(&mut self, _process: Process) -> bool {
        false
    }
}

/// What the launchers of all pools share, so that several pools need no more descriptors than one. Each part is opened
/// when the first launcher needs it.
#[derive(Debug, Default)]
pub(crate) struct Common {
    lifeline: Option<Lifeline>,
    program: Option<Arc<Program>>,
}

impl Common {
    /// Returns the lifeline of the workers of one pool.
    fn lifeline(&mut self, graceful_timeout: Duration) -> Result<Lifeline> {
        let lifeline = match &self.lifeline {
            Some(known) => known.clone().with_timeout(graceful_timeout),
            None => Lifeline::new(graceful_timeout)?,
        };
        Ok(self.lifeline.insert(lifeline).clone())
    }

    fn program(&mut self, exit_notifier: &ExitNotifier) -> Result<Arc<Program>> {
        let program = match &self.program {
            Some(known) => Arc::clone(known),
            None => Arc::new(Program::this(exit_notifier.clone())?),
        };
        Ok(Arc::clone(self.program.insert(program)))
    }
}

/// A request to start one worker.
#[derive(Debug)]
pub(crate) struct StartRequest<'a> {
    /// The name of the pool. Empty for a `Prefork` that is used alone.
    pub pool: &'static str,
    pub id: usize,
    pub generation: u32,
    /// The number of workers in the pool.
    pub count: usize,
    /// Gives a thread or a spawned worker access to its status slot. A forked worker does not use this handle, because
    /// it inherits the parent's memory.
    pub slot_handle: Option<SlotHandle<'a>>,
    /// The worker's listeners. The launcher passes them to a thread or a spawned worker. A forked worker inherits them.
    pub listeners: &'a Listeners,
}

/// The process in which [`Launcher::start`] has returned. If the worker is a fork, `start` returns twice, as fork(2)
/// does: in the parent and in the worker.
#[derive(Debug)]
pub(crate) enum Started {
    /// This process is the parent. The value is the handle of the new process, or `None` if the worker is a thread.
    Parent(Option<ChildHandle>),
    /// This process is the new worker. It must leave the supervisor's loop, and must not signal or reap the other
    /// workers.
    #[cfg_attr(not(unix), expect(dead_code, reason = "only a fork returns in the new process"))]
    Child,
}

/// The exit of a worker's process or thread.
#[derive(Debug)]
pub(crate) struct ChildExit {
    pub process: Process,
    pub exit: Exit,
    pub cause: ExitCause,
    /// The lease of a worker thread's status slot. Another thread may still hold a clone of the lease, and then the
    /// slot must not be used again. `None` for a process.
    pub lease: SlotLease,
}

/// The cause of an exit, which the exit status does not show.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ExitCause {
    Exited,
    /// A thread has returned an error. The string is the message of the error.
    Failed(String),
    /// A thread has panicked. The string is the message of the panic.
    Panicked(String),
    /// A thread did not return in time. The supervisor counts the thread as exited, although it still runs.
    Stale,
    /// A thread has returned after it was reported as [`Stale`](ExitCause::Stale).
    ReturnedLate,
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn pools_keep_their_own_timeouts_in_a_shared_lifeline() {
        let mut common = Common::default();
        for timeout in [Duration::from_secs(1), Duration::from_secs(2)] {
            let lifeline = common.lifeline(timeout).expect("a lifeline");
            let text = format!("{lifeline:?}");
            assert!(text.contains(&format!("graceful_timeout: {timeout:?}")), "{text}");
        }
    }
}
