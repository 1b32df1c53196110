//! [`Report`], the result of a service that has ended, with the history of each worker.

use std::fmt;
use std::process::{ExitCode, Termination};

use crate::event::write_startup_failure;
use crate::exit::{Exit, Process};

/// The result of a service. [`Prefork::start`](crate::Prefork::start), [`run`](crate::Prefork::run) and
/// [`run_threads`](crate::Prefork::run_threads) return it in the parent after the service has ended.
///
/// `main` can return a `Report`. Then the exit status of the program is 0 on [success](Report::is_success), 3 if
/// [startup failed](Reason::StartupFailed), and 1 otherwise.
///
/// If the service has failed, the parent has logged the reason, or has [printed](crate#messages) it if there is no
/// logger.
#[derive(Clone, Debug)]
pub struct Report {
    reason: Reason,
    workers: Vec<WorkerReport>,
    stale: Vec<Process>,
}

/// The reason why the service ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// All workers have exited by themselves, and no worker needs a restart. Their last exits were normal, except with
    /// [`RestartPolicy::Never`](crate::RestartPolicy::Never): then workers that failed are not restarted either.
    Finished,
    /// A signal requested the stop, or the program did by [`Handle::stop`](crate::Handle::stop).
    Stopped,
    /// A worker requested the stop, by [`Worker::stop_all`](crate::Worker::stop_all).
    StoppedByWorker {
        /// The process that requested the stop.
        process: Process,
    },
    /// A worker needed one restart more than [`max_restarts`](crate::Prefork::max_restarts) allows.
    RestartLimitReached {
        /// The process whose exit made one more restart necessary.
        process: Process,
        /// How that process exited.
        exit: Exit,
        /// The number of restarts so far.
        restarts: u32,
    },
    /// The parent stopped the service because one worker failed and a restart would not have helped. There are four
    /// cases:
    ///
    /// - The worker exited with a [`fatal_exit_code`](crate::Prefork::fatal_exit_code).
    /// - A [`ready_timeout`](crate::Prefork::ready_timeout) is set, and the worker failed or was late before any of its
    ///   processes was ready.
    /// - No `ready_timeout` is set, and the worker failed ten times in a row before any process of any worker had lived
    ///   for 10 s. A normal exit of the worker begins a new row. [`fork_processes`](crate::fork_processes) does not end
    ///   for this reason.
    /// - A [spawned](crate::Backend::Spawn) worker exited before it reached the call that starts the service, and none
    ///   of its processes had reached this call before.
    StartupFailed {
        /// The process that failed.
        process: Process,
        /// How that process exited, or `None` if it was not ready in time.
        exit: Option<Exit>,
        /// The number of failures in a row in the third case, and `None` in the other cases.
        failures: Option<u32>,
    },
}

/// The history of one worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerReport {
    id: usize,
    pub(crate) processes: u32,
    pub(crate) restarts: u32,
    pub(crate) exit: Option<Exit>,
    /// Whether the last exit was abnormal and no restart followed.
    pub(crate) failed: bool,
}

impl Report {
    pub(crate) fn new(reason: Reason, workers: Vec<WorkerReport>) -> Report {
        Report { reason, workers, stale: Vec::new() }
    }

    pub(crate) fn with_stale(self, stale: Vec<Process>) -> Report {
        Report { stale, ..self }
    }

    /// Returns whether the service ended normally. This is `true` if all workers exited by themselves with status 0. It
    /// is also `true` if a signal, the program or a worker requested the stop, even if the parent then had to kill
    /// workers.
    pub fn is_success(&self) -> bool {
        match self.reason {
            Reason::Finished => !self.workers.iter().any(|worker| worker.failed),
            Reason::Stopped | Reason::StoppedByWorker { .. } => true,
            Reason::RestartLimitReached { .. } | Reason::StartupFailed { .. } => false,
        }
    }

    /// Returns the number of restarts after failures, added up over all workers. Restarts for another
    /// [reason](crate::RestartReason) do not count, and neither do replacements.
    pub fn restarts(&self) -> u32 {
        self.workers.iter().fold(0, |sum: u32, worker| sum.saturating_add(worker.restarts))
    }

    /// Returns the reason why the service ended.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// Returns the worker threads that still ran when the service ended. The parent abandons a thread that hangs or
    /// does not return in time after a stop request. An abandoned thread runs until it returns or the process ends. The
    /// list also contains the processes that the parent abandoned because they did not exit within 10 s after SIGKILL.
    pub fn stale(&self) -> &[Process] {
        &self.stale
    }

    /// Returns one report for each worker, ordered by id. Workers that were removed are included.
    pub fn workers(&self) -> &[WorkerReport] {
        &self.workers
    }
}

impl Reason {
    /// Returns the process that caused the end of the service. This process requested the stop, could not start, or
    /// needed one restart more than the limit allows. `None` if no single process is the cause.
    pub fn process(&self) -> Option<Process> {
        match *self {
            Reason::Finished | Reason::Stopped => None,
            Reason::StoppedByWorker { process }
            | Reason::RestartLimitReached { process, .. }
            | Reason::StartupFailed { process, .. } => Some(process),
        }
    }

    /// Returns how the [process](Reason::process) exited, if its exit caused the end of the service.
    pub fn exit(&self) -> Option<Exit> {
        match *self {
            Reason::RestartLimitReached { exit, .. } => Some(exit),
            Reason::StartupFailed { exit, .. } => exit,
            Reason::Finished | Reason::Stopped | Reason::StoppedByWorker { .. } => None,
        }
    }
}

impl WorkerReport {
    pub(crate) fn new(id: usize) -> WorkerReport {
        WorkerReport { id, processes: 0, restarts: 0, exit: None, failed: false }
    }

    /// Returns the task id.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Returns the number of restarts of this worker after failures. Restarts for another
    /// [reason](crate::RestartReason) do not count, and neither do replacements.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Returns the number of processes that this worker has had, including replacements.
    pub fn processes(&self) -> u32 {
        self.processes
    }

    /// Returns how the worker's last process exited, or `None` if the worker never had a process. Replacements that
    /// failed are ignored.
    pub fn exit(&self) -> Option<Exit> {
        self.exit
    }
}

/// Exits with status 0 on success, 3 if startup failed, and 1 otherwise.
impl Termination for Report {
    fn report(self) -> ExitCode {
        match self.reason {
            _ if self.is_success() => ExitCode::SUCCESS,
            Reason::StartupFailed { .. } => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Writes the reason as a phrase, for example `stopped` or `gave up after 100 restarts: child 2 (pid 71) exited with
/// status 3`.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Finished => f.write_str("finished"),
            Reason::Stopped => f.write_str("stopped"),
            Reason::StoppedByWorker { process } => write!(f, "stopped, as {process} requested"),
            Reason::RestartLimitReached { process, exit, restarts } => {
                write!(f, "gave up after {restarts} restarts: {process} {exit}")
            }
            Reason::StartupFailed { process, exit, failures } => {
                f.write_str("failed to start: ")?;
                write_startup_failure(f, *process, *exit, *failures)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_restarts_does_not_overflow() {
        let worker = WorkerReport { restarts: u32::MAX, ..WorkerReport::new(0) };
        assert_eq!(Report::new(Reason::Finished, vec![worker, worker]).restarts(), u32::MAX);
    }
}
