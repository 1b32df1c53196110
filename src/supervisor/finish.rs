//! The steps after the loop: the parent returns a result, and a worker runs its closure.

use std::convert::Infallible;
use std::panic::{self, AssertUnwindSafe};
use std::{fmt, mem, process};

use log::Level;

use super::descriptors::Descriptors;
use crate::error::{Error, Result, WithSources};
use crate::exit::Process;
use crate::failure;
use crate::listener;
use crate::policy::Outcome;
use crate::report::{PoolReport, Reason, Report};
use crate::worker::{WorkResult, Worker};

/// The result of the service in the parent. The program's own signal handling is not restored yet.
pub(crate) struct Finished {
    pub(super) end: Outcome,
    pub(super) pools: Vec<PoolReport>,
    pub(super) stale: Vec<Process>,
    pub(super) descriptors: Descriptors,
}

impl Finished {
    /// Exits with status 0 if the service has ended normally, and returns an error otherwise. Does not restore the
    /// program's signal handling before this exit, so that no further signal changes the exit status. The exit drops no
    /// values of the program, so this method removes the files of the program's sockets.
    pub fn exit(self) -> Result<Infallible> {
        let error = match self.end {
            Ok(Reason::Finished | Reason::Stopped | Reason::StoppedByWorker { .. }) => {
                // At the exit, nothing else writes the lines that the logger has buffered.
                ::log::logger().flush();
                listener::remove_files();
                process::exit(0)
            }
            Ok(reason) => Error::ended(reason),
            Err(error) => error,
        };
        Err(self.descriptors.close_after(error))
    }

    /// Returns the report, and restores the program's signal handling. If the service was stopped, drops the pending
    /// stop requests, because they are fulfilled. If the service has failed, and the log does not have the reason,
    /// writes the reason to standard error. Does not do so if this method returns an error, because the program gets
    /// the error, and Rust prints it if `main` returns it.
    pub fn report(self) -> Result<Report> {
        let reason = match self.end {
            Ok(reason) => reason,
            Err(error) => return Err(self.descriptors.close_after(error)),
        };
        let has_stopped = matches!(reason, Reason::Stopped | Reason::StoppedByWorker { .. });
        let closed = self.descriptors.close(has_stopped);
        let report = Report::new(reason, self.pools).with_stale(self.stale);
        // Only now, because the program's signal handling applies again if the write blocks.
        report_reason(&report);
        closed.map(|()| report)
    }
}

/// Reports why the service has failed, unless the log has the reason already.
fn report_reason(report: &Report) {
    let reason = report.reason();
    match report.failed_pool() {
        // The event that began the stop was logged as an error.
        _ if reason.is_failure() => failure::report_unless_logged(Level::Error, reason),
        None => {}
        // The event that ended the pool was logged as an error.
        Some(pool) if pool.reason().is_failure() => {
            let failed = format!("the pool {} {}", pool.name(), pool.reason());
            failure::report_unless_logged(Level::Error, &format_args!("{reason}, but {failed}"));
        }
        // Each exit was logged as a warning.
        Some(pool) => {
            failure::report_unless_logged(Level::Warn, &format_args!("{reason}, but {}", FailedWorkers(pool)));
        }
    }
}

/// Displays the first worker of the pool that has failed, and the number of the others.
struct FailedWorkers<'a>(&'a PoolReport);

impl fmt::Display for FailedWorkers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut failed = self.0.workers().iter().filter(|worker| worker.failed);
        let Some(first) = failed.next() else { return Ok(()) };
        if !first.pool().is_empty() {
            write!(f, "{} ", first.pool())?;
        }
        write!(f, "worker {}", first.id())?;
        if let Some(exit) = first.exit() {
            write!(f, " {exit}")?;
        }
        match failed.count() {
            0 => Ok(()),
            more => write!(f, ", and {more} more failed"),
        }
    }
}

/// Runs the closure of a worker, and ends the process. The exit status is 0 after success, 1 after an error, and 101
/// after a panic.
pub(crate) fn run_and_exit(worker: Worker, work: impl FnOnce(Worker) -> WorkResult) -> ! {
    let name = worker.name();
    let status = panic::catch_unwind(AssertUnwindSafe(|| match work(worker) {
        Ok(()) => 0,
        Err(error) => {
            failure::report(&format_args!("{name}: {}", WithSources(&*error)));
            ::log::logger().flush();
            // Does not drop the error, because a panic in its destructor would change the exit status.
            mem::forget(error);
            1
        }
    }));
    process::exit(status.unwrap_or_else(|payload| {
        // Does not drop the payload, because its destructor may panic again.
        mem::forget(payload);
        101
    }))
}
