//! Starts workers as forks of the parent.

use std::panic::{self, AssertUnwindSafe};

use super::{Launcher, StartRequest, Started};
use crate::error::{Error, Result};
use crate::setup::WorkerSetup;
use crate::sys::{self, ForkError, Forked, Lifeline, Threads};

#[derive(Debug)]
pub(crate) struct Fork {
    setup: Option<WorkerSetup>,
    lifeline: Lifeline,
}

impl Fork {
    /// Returns an error if this process has more than one thread, because forking is safe only in a process with one
    /// thread.
    pub fn check() -> Result<()> {
        match sys::thread_count()? {
            Threads::Several(count) => Err(Error::threads(count)),
            Threads::One => Ok(()),
        }
    }

    pub fn new(setup: Option<WorkerSetup>) -> Result<Fork> {
        Ok(Fork { setup, lifeline: Lifeline::new()? })
    }
}

impl Launcher for Fork {
    fn copies_buffers(&self) -> bool {
        true
    }

    fn start(&mut self, StartRequest { id, .. }: StartRequest<'_>) -> Result<Started> {
        match sys::fork() {
            Ok(Forked::Parent(child)) => Ok(Started::Parent(Some(child))),
            Ok(Forked::Child) => {
                if let Some(setup) = &self.setup {
                    apply_or_exit(setup, id);
                }
                self.lifeline.hold();
                Ok(Started::Child)
            }
            Err(ForkError::Threads(count)) => Err(Error::threads(count).starting(id)),
            Err(ForkError::Call(error)) => Err(Error::from(error).starting(id)),
        }
    }
}

/// Applies the setup in the forked worker. If the program's logger panics during this, the worker exits. The panic must
/// not unwind further: the frames of the parent's loop are still on this stack, and their destructors would kill the
/// other workers.
fn apply_or_exit(setup: &WorkerSetup, id: usize) {
    let applied = panic::catch_unwind(AssertUnwindSafe(|| setup.for_worker(id).apply(id)));
    if applied.is_err() {
        sys::exit_now(101);
    }
}
