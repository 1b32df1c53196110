//! Starts workers as forks of the parent.

use std::time::Duration;

use super::{Common, Launcher, StartRequest, Started};
use crate::error::{Error, Result};
use crate::pool_name::WorkerName;
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

    pub fn new(setup: Option<WorkerSetup>, graceful_timeout: Duration, common: &mut Common) -> Result<Fork> {
        Ok(Fork { setup, lifeline: common.lifeline(graceful_timeout)? })
    }
}

impl Launcher for Fork {
    fn copies_buffers(&self) -> bool {
        true
    }

    fn start(&mut self, StartRequest { pool, id, .. }: StartRequest<'_>) -> Result<Started> {
        match sys::fork() {
            Ok(Forked::Parent(child)) => Ok(Started::Parent(Some(child))),
            Ok(Forked::Child) => {
                if let Some(setup) = &self.setup {
                    setup.for_worker(id).apply(WorkerName { pool, id });
                }
                self.lifeline.hold();
                Ok(Started::Child)
            }
            Err(ForkError::Threads(count)) => Err(Error::threads(count).starting(id)),
            Err(ForkError::Call(error)) => Err(Error::from(error).starting(id)),
        }
    }
}
