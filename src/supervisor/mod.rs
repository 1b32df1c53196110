//! The supervisor, which runs in the parent. It starts the workers, waits for events, and passes the events to the
//! policy.
//!
//! # A forked child returns through the parent's own loop
//!
//! The parent calls fork(2) in the middle of its loop. The call returns twice: in the parent and in the child. The
//! child has a copy of the parent's stack. So the child leaves the loop in the same way as the parent does when the
//! service ends: each function on the stack returns, up to the call in `main`.
//!
//! ```text
//! main -> Prefork::start -> supervise -> Supervisor::run -> execute -> start -> Launcher::start -> fork(2)
//!
//! parent: Started::Parent -> the child is registered, and the loop goes on
//!                            .. until LoopExit::Finished -> the supervisor is dropped   -> Supervised::Parent -> main
//! child:  Started::Child  -> LoopExit::Child(worker)     -> the supervisor is forgotten -> Supervised::Worker -> main
//! ```
//!
//! The child does not drop the supervisor but forgets it (`mem::forget`), for two reasons. First, the destructors would
//! kill the other workers. Second, freeing memory writes to that memory, and the kernel copies each page that the child
//! writes to (copy-on-write). Copy-on-write is also the reason why the parent writes to few pages between two forks:
//! each of these pages is copied for each worker.
//!
//! A spawned worker does not enter the loop, because `Prefork` recognizes the worker before the loop begins. A worker
//! thread runs only its closure.
//!
//! # Parts
//!
//! - `event_loop`: waits for events, passes them to the policy, and executes the policy's actions.
//! - `children`: the registry of child processes. `reaper`: finds the children that have exited.
//! - `observer`: the receivers of events: the log, systemd, and the program's `on_event` closure.
//! - `descriptors`: the descriptors that the parent has open. `poller`: the wait for events on these descriptors.
//! - `finish`: the steps after the loop: the parent returns a result, and a worker runs its closure.

mod children;
mod descriptors;
mod event_loop;
mod finish;
mod log;
mod observer;
mod poller;
mod reaper;
mod strangers;
#[cfg(unix)]
mod systemd;

use std::mem;
use std::time::Duration;

use self::descriptors::Descriptors;
use self::event_loop::{LoopExit, Supervisor};
pub(crate) use self::log::warn_of_wait;
use self::observer::{Callback, Observers};
#[cfg(unix)]
use crate::backend::Fork;
use crate::backend::{Common, Launcher, Spawn, Thread, Work};
use crate::error::Result;
use crate::failure;
use crate::handle::HandleReceiver;
use crate::listener::Sockets;
use crate::policy::Config;
use crate::scoreboard::Scoreboard;
use crate::report::{PoolReport, Reason};
use crate::setup::{WorkerSetup, warn_of_name};
use crate::sys::{self, ProcessName, StandardFds, SupervisorLock, WorkerKind};
use crate::worker::{self, Worker};
pub(crate) use finish::{Finished, run_and_exit};
pub(crate) use observer::OnEvent;
#[cfg(unix)]
pub(crate) use systemd::Systemd;

/// The process in which [`supervise`] returns: a worker or the parent.
pub(crate) enum Supervised {
    Worker(Worker),
    Parent(Box<Finished>),
}

/// Everything that [`supervise`] needs besides the settings of the policy.
pub(crate) struct SupervisorParts {
    /// The name of the parent's process, if the program has set one.
    pub name: Option<String>,
    /// Whether to create the shared memory through which workers report to the parent.
    pub with_scoreboard: bool,
    pub lock: SupervisorLock,
    pub standard_fds: StandardFds,
    pub kind: WorkerKind,
    /// The closure that worker threads run. `None` if the workers are processes.
    pub work: Option<Work>,
    pub on_event: Option<OnEvent>,
    pub sockets: Sockets,
    pub setup: Option<WorkerSetup>,
    #[cfg(unix)]
    pub systemd: Option<Systemd>,
}

/// Starts the workers and supervises them. In the parent, returns when the service has ended. In each forked worker,
/// returns right after the fork, with the signal mask and the signal dispositions from before the call.
pub(crate) fn supervise(config: Config, parts: SupervisorParts) -> Result<Supervised> {
    let SupervisorParts { with_scoreboard, lock, standard_fds, kind, work, on_event, sockets, setup, .. } = parts;
    let (launcher, mut descriptors) = open(lock, standard_fds, kind, work, setup, config.graceful_timeout)?;
    let waker = with_scoreboard.then(|| descriptors.open_doorbell()).transpose()?;
    let new_scoreboard = |waker| Scoreboard::new(config.workers, kind, waker);
    let scoreboard = waker.clone().map(new_scoreboard).transpose()?;
    // A service without a doorbell has no callback. This moves the waker, so that a forked worker does not drop it.
    let callback = on_event.zip(waker).map(|(on_event, waker)| {
        let requests = HandleReceiver::new(waker, vec![config.pool]);
        let handle = requests.handle();
        (Callback { on_event, handle }, requests)
    });
    let (callback, requests) = callback.unzip();
    let observers = Observers::new(
        #[cfg(unix)]
        parts.systemd,
        callback,
    );
    // Dropped at the end of the service, in the parent only.
    let process_name = parts.name.and_then(name_parent);
    let mut supervisor = Supervisor::new(config, launcher, scoreboard, observers, requests, sockets, &mut descriptors);
    // A forked child runs code of the program before the call returns in it, for example the logger. If this code
    // panics, nothing of the parent must be dropped in the child.
    #[cfg(unix)]
    let _guard = sys::ChildPanicGuard::new();
    match supervisor.run() {
        Err(error) => {
            drop(supervisor);
            Err(descriptors.close_after(error))
        }
        Ok(LoopExit::Finished(end)) => {
            let (workers, stale) = supervisor.into_reports();
            let reason = end.as_ref().map_or(Reason::Finished, Reason::clone);
            let pools = vec![PoolReport::new("", reason, workers, false)];
            Ok(Supervised::Parent(Box::new(Finished { end, pools, stale, descriptors })))
        }
        Ok(LoopExit::Child(worker)) => {
            mem::forget(supervisor);
            if let Some(process_name) = process_name {
                process_name.keep();
            }
            let worker = enter_worker(worker);
            descriptors.release_in_child();
            Ok(Supervised::Worker(worker))
        }
    }
}

/// Names the process of the parent. If that fails, logs a warning and returns `None`.
fn name_parent(name: String) -> Option<ProcessName> {
    ProcessName::set(&name).map_err(|error| warn_of_name(&name, error)).ok()
}

/// Takes over the signals and creates the launcher. Not inlined, so that its stack frame is gone before the first fork:
/// the kernel copies every page of the stack that the parent writes to between two forks (copy-on-write).
#[inline(never)]
fn open(
    lock: SupervisorLock,
    standard_fds: StandardFds,
    kind: WorkerKind,
    work: Option<Work>,
    setup: Option<WorkerSetup>,
    graceful_timeout: Duration,
) -> Result<(Box<dyn Launcher>, Descriptors)> {
    let mut common = Common::default();
    match (kind, work) {
        #[cfg(unix)]
        (WorkerKind::Fork, _) => {
            let fork = Fork::new(setup, graceful_timeout, &mut common)?;
            worker::prepare()?;
            let descriptors = Descriptors::open(lock, kind, standard_fds)?;
            descriptors.warn_of_epolls();
            Ok((Box::new(fork), descriptors))
        }
        (WorkerKind::Thread, Some(work)) => {
            Ok((Box::new(Thread::new(work, setup)), Descriptors::open(lock, kind, standard_fds)?))
        }
        (WorkerKind::Spawn | WorkerKind::Thread, _) => {
            let descriptors = Descriptors::open(lock, kind, standard_fds)?;
            match Spawn::new(descriptors.exit_notifier(), setup, graceful_timeout, &mut common) {
                Ok(spawn) => Ok((Box::new(spawn), descriptors)),
                Err(error) => Err(descriptors.close_after(error)),
            }
        }
    }
}

/// Turns this process into the worker. If that fails, logs the error and ends this process with status 1. The error
/// does not reach the program, because the parent handles the exit.
#[inline]
pub(crate) fn enter_worker(worker: Worker) -> Worker {
    if let Err(error) = worker::become_worker(worker.id()) {
        failure::report(&format_args!("{error:?}"));
        ::log::logger().flush();
        sys::exit_now(1);
    }
    worker
}
