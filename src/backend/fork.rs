//! Starts workers as forks of the parent.

use std::sync::Arc;
use std::time::Duration;

use super::{Common, Launcher, StartRequest, Started};
use crate::error::{Error, Result};
use crate::exit::Process;
use crate::pool_name::WorkerName;
use crate::scoreboard::NestedCalls;
use crate::setup::WorkerSetup;
use crate::sys::{self, ForkError, Forked, Lifeline, Threads};
use crate::worker;

#[derive(Debug)]
pub(crate) struct Fork {
    setup: Option<WorkerSetup>,
    lifeline: Lifeline,
    /// The nested calls of workers without a status slot. Mapped before the first start of such a worker.
    nested_calls: Option<Arc<NestedCalls>>,
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
        Ok(Fork { setup, lifeline: common.lifeline(graceful_timeout)?, nested_calls: None })
    }
}

impl Launcher for Fork {
    fn forks(&self) -> bool {
        true
    }

    fn start(&mut self, StartRequest { pool, id, slot_handle, .. }: StartRequest<'_>) -> Result<Started> {
        if slot_handle.is_none() && self.nested_calls.is_none() {
            let nested_calls = worker::share_nested_calls().map_err(|error| Error::from(error).starting(id))?;
            self.nested_calls = Some(nested_calls);
        }
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

    fn take_nested_call(&mut self, process: Process) -> bool {
        self.nested_calls.as_ref().is_some_and(|calls| calls.take(process))
    }
}
