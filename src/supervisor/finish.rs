//! What comes of the call: in the parent how it all ended, in a worker the work.

use std::convert::Infallible;
use std::panic::{self, AssertUnwindSafe};
use std::{mem, process};

use log::Level;

use super::descriptors::Descriptors;
use super::log::write;
use crate::error::{Error, Result, WithSources};
use crate::exit::Process;
use crate::policy::Outcome;
use crate::report::{Reason, Report, WorkerReport};
use crate::worker::{WorkResult, Worker};

/// In the parent, when all is over: the signals are still held.
pub(crate) struct Finished {
    pub(super) end: Outcome,
    pub(super) workers: Vec<WorkerReport>,
    pub(super) stale: Vec<Process>,
    pub(super) descriptors: Descriptors,
}

impl Finished {
    /// Exits if it ended as it should, and returns if it did not. The exit is with the signals still held: one more request
    /// to stop, or any other, is not to take the place of this status.
    pub fn exit(self) -> Result<Infallible> {
        let error = match self.end {
            Ok(Reason::Finished | Reason::Stopped | Reason::StoppedByWorker { .. }) => process::exit(0),
            Ok(reason) => Error::ended(reason),
            Err(error) => error,
        };
        Err(self.descriptors.close_after(error))
    }

    /// A request to stop that comes when all have stopped is carried out already.
    pub fn report(self) -> Result<Report> {
        let reason = match self.end {
            Ok(reason) => reason,
            Err(error) => return Err(self.descriptors.close_after(error)),
        };
        let has_stopped = matches!(reason, Reason::Stopped | Reason::StoppedByWorker { .. });
        self.descriptors.close(has_stopped)?;
        Ok(Report::new(reason, self.workers).with_stale(self.stale))
    }
}

/// Does the work of a worker, and ends it.
pub(crate) fn run_and_exit(worker: Worker, work: impl FnOnce(Worker) -> WorkResult) -> ! {
    let id = worker.id();
    let status = panic::catch_unwind(AssertUnwindSafe(|| match work(worker) {
        Ok(()) => 0,
        Err(error) => {
            write(Level::Error, &format_args!("worker {id}: {}", WithSources(&*error)));
            // What happens when it is dropped is not to change the status.
            mem::forget(error);
            1
        }
    }));
    process::exit(status.unwrap_or_else(|payload| {
        // It may be anything, and panic once more.
        mem::forget(payload);
        101
    }))
}
