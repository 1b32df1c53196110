//! The parent: it starts the workers, waits for events, and passes them to the policy.
//!
//! # A forked child returns through the parent's own loop
//!
//! fork(2) is called in the middle of the parent's loop, so it returns twice there. The child has a copy of the parent's
//! stack. It leaves the loop as the parent does when the service ends: it returns, frame by frame, from the call in `main`.
//!
//! ```text
//! main -> Prefork::start -> supervise -> Supervisor::run -> execute -> start -> Launcher::start -> fork(2)
//!
//! parent: Started::Parent -> the child is registered, and the loop goes on
//!                            .. until LoopExit::Finished -> the supervisor is dropped   -> Supervised::Parent -> main
//! child:  Started::Child  -> LoopExit::Child(worker)     -> the supervisor is forgotten -> Supervised::Worker -> main
//! ```
//!
//! The child forgets the supervisor (`mem::forget`) for two reasons. Its destructors act for the parent: they would kill the
//! other workers. And freeing memory writes to it, but each page that the child writes to is copied first
//! (copy-on-write). For the same reason the parent writes to few pages between two forks: each is copied for each worker.
//!
//! A spawned worker does not enter the loop, because `Prefork` recognizes it before. A worker thread runs its closure only.
//!
//! # Parts
//!
//! - `event_loop`: waits for events, passes them to the policy, executes the policy's actions.
//! - `children`: the one registry of child processes. `reaper`: their exits, and the searches for more.
//! - `observer`: what receives every event: the log, systemd, `on_event`.
//! - `descriptors`, `poller`: everything that the parent has open and waits for.
//! - `finish`: the end of the call, in the parent and in a worker.

mod children;
mod descriptors;
mod event_loop;
mod finish;
mod log;
mod observer;
mod poller;
mod reaper;
#[cfg(unix)]
mod systemd;

use std::mem;

use ::log::Level;

use self::descriptors::Descriptors;
use self::event_loop::{LoopExit, Supervisor};
use self::log::write;
use self::observer::Observers;
#[cfg(unix)]
use crate::backend::Fork;
use crate::backend::{Launcher, Spawn, Thread, Work};
use crate::error::Result;
use crate::listener::Sockets;
use crate::policy::Config;
use crate::setup::WorkerSetup;
use crate::sys::{self, SupervisorLock, WorkerKind};
use crate::worker::{self, Worker};
pub(crate) use finish::{Finished, run_and_exit};
pub(crate) use observer::OnEvent;
#[cfg(unix)]
pub(crate) use systemd::Systemd;

/// The process in which the call returns.
pub(crate) enum Supervised {
    Worker(Worker),
    Parent(Box<Finished>),
}

/// The parts of a service besides the settings of its policy.
pub(crate) struct SupervisorParts {
    /// Makes the shared memory by which workers report to the parent.
    pub with_scoreboard: bool,
    pub lock: SupervisorLock,
    pub kind: WorkerKind,
    /// The closure that worker threads run; `None` for processes.
    pub work: Option<Work>,
    pub on_event: Option<OnEvent>,
    pub sockets: Sockets,
    pub setup: Option<WorkerSetup>,
    #[cfg(unix)]
    pub systemd: Option<Systemd>,
}

/// Starts the workers, and supervises them until the service ends. Returns at once in each forked worker, with the signal
/// mask and the dispositions from before the call.
pub(crate) fn supervise(config: Config, parts: SupervisorParts) -> Result<Supervised> {
    let SupervisorParts { with_scoreboard, lock, kind, work, on_event, sockets, setup, .. } = parts;
    let (launcher, mut descriptors) = open(lock, kind, work, setup)?;
    let scoreboard = with_scoreboard.then(|| descriptors.open_scoreboard(config.workers, kind)).transpose()?;
    let observers = Observers::new(
        #[cfg(unix)]
        parts.systemd,
        on_event,
    );
    let mut supervisor = Supervisor::new(config, launcher, scoreboard, observers, sockets, &mut descriptors);
    match supervisor.run() {
        Err(error) => {
            drop(supervisor);
            Err(descriptors.close_after(error))
        }
        Ok(LoopExit::Finished(end)) => {
            let (workers, stale) = supervisor.into_reports();
            Ok(Supervised::Parent(Box::new(Finished { end, workers, stale, descriptors })))
        }
        Ok(LoopExit::Child(worker)) => {
            mem::forget(supervisor);
            let worker = enter_worker(worker);
            descriptors.release_in_child();
            Ok(Supervised::Worker(worker))
        }
    }
}

/// Takes over the signals and makes the launcher. This is not inlined: a frame that is in use at a fork is copied.
#[inline(never)]
fn open(
    lock: SupervisorLock,
    kind: WorkerKind,
    work: Option<Work>,
    setup: Option<WorkerSetup>,
) -> Result<(Box<dyn Launcher>, Descriptors)> {
    match (kind, work) {
        #[cfg(unix)]
        (WorkerKind::Fork, _) => {
            let fork = Fork::new(setup)?;
            worker::prepare()?;
            Ok((Box::new(fork), Descriptors::open(lock, kind)?))
        }
        (WorkerKind::Thread, Some(work)) => Ok((Box::new(Thread::new(work, setup)), Descriptors::open(lock, kind)?)),
        (WorkerKind::Spawn | WorkerKind::Thread, _) => {
            let descriptors = Descriptors::open(lock, kind)?;
            match Spawn::new(descriptors.exit_notifier(), setup) {
                Ok(spawn) => Ok((Box::new(spawn), descriptors)),
                Err(error) => Err(descriptors.close_after(error)),
            }
        }
    }
}

/// Turns this process into the worker. An error ends it here, because the parent handles it, not the program.
#[inline]
pub(crate) fn enter_worker(worker: Worker) -> Worker {
    if let Err(error) = worker::become_worker(worker.id()) {
        write(Level::Error, &format_args!("{error:?}"));
        ::log::logger().flush();
        sys::exit_now(1);
    }
    worker
}
