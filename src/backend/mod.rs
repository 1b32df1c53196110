//! The one seam: how a worker is started, told something, and found to have ended.

mod children;
#[cfg(unix)]
mod fork;
mod spawn;
mod thread;

#[cfg(unix)]
pub(crate) use fork::Fork;
pub(crate) use spawn::{Spawn, accept_spawn};
pub(crate) use thread::{Thread, Work};

use std::time::Instant;

use crate::error::Result;
use crate::exit::{Exit, Process};
use crate::listener::Listeners;
use crate::scoreboard::{SlotHandle, SlotLease};
use crate::sys::{Signal, WorkerKind};

/// Refuses forks while there is more than one thread, before anything is made or taken.
pub(crate) fn check(kind: WorkerKind) -> Result<()> {
    match kind {
        #[cfg(unix)]
        WorkerKind::Fork => Fork::check(),
        WorkerKind::Spawn | WorkerKind::Thread => Ok(()),
    }
}

/// What is to be started.
#[derive(Debug)]
pub(crate) struct StartRequest<'a> {
    pub id: usize,
    pub generation: u32,
    /// How many workers are wanted.
    pub count: usize,
    /// Where it can tell the parent something. A fork has it anyway.
    pub slot_handle: Option<SlotHandle<'a>>,
    /// What it listens on. The same.
    pub listeners: &'a Listeners,
}

/// What came of a start.
#[derive(Debug)]
pub(crate) enum Started {
    /// A process, with this pid; a thread, if it is 0.
    Parent(Option<u32>),
    /// This is the process that was to be started. Whoever sees this leaves the supervisor, touching nothing of it.
    #[cfg_attr(not(unix), expect(dead_code, reason = "nobody is forked there"))]
    Child,
}

/// Somebody has ended.
#[derive(Debug)]
pub(crate) struct ChildExit {
    pub process: Process,
    pub exit: Exit,
    pub cause: ExitCause,
    /// Of its line, which may be longer than its life.
    pub lease: SlotLease,
}

/// What is to be said of an end, beside the exit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ExitCause {
    Exited,
    /// In its own words.
    Failed(String),
    /// It has not ended at all, but is given up.
    Stale,
    /// It had been given up before.
    ReturnedLate,
}

/// How workers come into being and end. The supervisor is the same whatever the answer is.
pub(crate) trait Launcher {
    /// Before a start, if something may have been buffered since the last one. Only a fork gets a copy of it; for others, to
    /// write it would be to wait for whoever has the output.
    fn flush(&mut self) {}

    fn start(&mut self, request: StartRequest<'_>) -> Result<Started>;

    /// Nothing is done to a process that has ended.
    fn send(&mut self, process: Process, signal: Signal) -> Result<()>;

    /// Whether this one has ended, if it is a worker, without a look at the others.
    fn reap_one(&mut self, pid: u32) -> Result<Option<ChildExit>>;

    /// Every worker whose end may not be told in time, because it is told by a thread that may be behind, or at all, because
    /// somebody else has reaped it.
    fn reap_missed(&mut self) -> Result<Vec<ChildExit>>;

    /// Every worker that has ended and was not told yet.
    fn reap_all(&mut self) -> Result<Vec<ChildExit>>;

    /// When these are to be looked for, if that was put off.
    fn next_look(&self) -> Option<Instant> {
        None
    }

    /// Whether who ends rings the doorbell, and nobody else tells of it.
    fn ends_ring(&self) -> bool {
        false
    }
}
