//! How the service ended, and how each worker did.

use std::fmt;
use std::process::{ExitCode, Termination};

use crate::exit::{Exit, Process};

/// The result of a service, which [`Prefork::start`](crate::Prefork::start), [`run`](crate::Prefork::run) and
/// [`run_threads`](crate::Prefork::run_threads) return in the parent once all workers are gone.
///
/// `main` may return it. The exit status of the program is then 0 on [success](Report::is_success), 3 if [startup
/// failed](Reason::StartupFailed), and 1 otherwise.
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
    /// All workers have exited by themselves, and none needs a restart. Their last exits were normal, unless
    /// [`RestartPolicy::Never`](crate::RestartPolicy::Never) turns restarts off.
    Finished,
    /// A signal requested the stop.
    Stopped,
    /// A worker requested the stop, by [`Worker::stop_all`](crate::Worker::stop_all).
    StoppedByWorker {
        /// The process that requested the stop.
        process: Process,
    },
    /// A restart was needed that [`max_restarts`](crate::Prefork::max_restarts) does not allow.
    RestartLimitReached {
        /// The process whose exit needed one more restart.
        process: Process,
        /// How that process ended.
        exit: Exit,
        /// The number of restarts so far.
        restarts: u32,
    },
    /// The service stopped because of one worker, and a restart would not have helped. There are two cases:
    ///
    /// - The worker exited with a [`fatal_exit_code`](crate::Prefork::fatal_exit_code).
    /// - A [`ready_timeout`](crate::Prefork::ready_timeout) is set, no process of the worker's id was ever ready, and
    ///   the worker failed or was not ready in time.
    StartupFailed {
        /// The process that failed.
        process: Process,
        /// How that process ended, or `None` if it was late.
        exit: Option<Exit>,
    },
}

/// The history of one worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerReport {
    id: usize,
    pub(crate) processes: u32,
    pub(crate) restarts: u32,
    pub(crate) exit: Option<Exit>,
    /// The last exit was abnormal and was not followed by a restart.
    pub(crate) failed: bool,
}

impl Report {
    pub(crate) fn new(reason: Reason, workers: Vec<WorkerReport>) -> Report {
        Report { reason, workers, stale: Vec::new() }
    }

    pub(crate) fn with_stale(self, stale: Vec<Process>) -> Report {
        Report { stale, ..self }
    }

    /// Returns whether the service ended as it should: it was stopped by a signal or by a worker, or all workers exited
    /// with status 0 by themselves. After a requested stop this is `true` even if workers had to be killed.
    pub fn is_success(&self) -> bool {
        match self.reason {
            Reason::Finished => !self.workers.iter().any(|worker| worker.failed),
            Reason::Stopped | Reason::StoppedByWorker { .. } => true,
            Reason::RestartLimitReached { .. } | Reason::StartupFailed { .. } => false,
        }
    }

    /// Returns the number of restarts of all workers together. Replacements in a rolling restart or because of a
    /// process's age do not count.
    pub fn restarts(&self) -> u32 {
        self.workers.iter().map(|worker| worker.restarts).sum()
    }

    /// Returns the reason why the service ended.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// Returns the abandoned worker threads that had not returned by the end of the service. They were stopped or hung,
    /// and did not return in time. They run until they return or the process ends. Always empty unless workers are
    /// [threads](crate::Prefork::run_threads).
    pub fn stale(&self) -> &[Process] {
        &self.stale
    }

    /// Returns the reports of all workers, including those that were removed, ordered by id.
    pub fn workers(&self) -> &[WorkerReport] {
        &self.workers
    }
}

impl Reason {
    /// Returns the process that is the reason: the one that requested the stop, that could not start, or whose exit
    /// needed one more restart.
    pub fn process(&self) -> Option<Process> {
        match *self {
            Reason::Finished | Reason::Stopped => None,
            Reason::StoppedByWorker { process }
            | Reason::RestartLimitReached { process, .. }
            | Reason::StartupFailed { process, .. } => Some(process),
        }
    }

    /// Returns how that process ended, if its exit is the reason.
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

    /// Returns the number of restarts of this worker. Replacements do not count.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Returns the number of processes that this worker has had, including replacements.
    pub fn processes(&self) -> u32 {
        self.processes
    }

    /// Returns how the worker's last process ended, or `None` if it never had one. Replacements that failed do not
    /// count.
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

/// Completes a sentence: `stopped`, `gave up after 100 restarts: child 2 (pid 71) exited with status 3`.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Finished => f.write_str("finished"),
            Reason::Stopped => f.write_str("stopped"),
            Reason::StoppedByWorker { process } => write!(f, "stopped, as {process} asked"),
            Reason::RestartLimitReached { process, exit, restarts } => {
                write!(f, "gave up after {restarts} restarts: {process} {exit}")
            }
            Reason::StartupFailed { process, exit: Some(exit) } => {
                write!(f, "failed to start: {process} {exit}")
            }
            Reason::StartupFailed { process, exit: None } => {
                write!(f, "failed to start: {process} was not ready in time")
            }
        }
    }
}
