//! How the whole service ended, and each worker of it.

use std::fmt;
use std::process::{ExitCode, Termination};

use crate::exit::{Exit, Process};

/// What [`Prefork::start`](crate::Prefork::start) and [`run`](crate::Prefork::run) return in the parent: how it all went,
/// when nobody lives any more.
///
/// `main` may return it. The status of the program is then 0 on [success](Report::is_success), 3 if
/// [startup failed](Reason::StartupFailed), and 1 otherwise.
#[derive(Clone, Debug)]
pub struct Report {
    reason: Reason,
    workers: Vec<WorkerReport>,
    stale: Vec<Process>,
}

/// Why the whole service ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// All workers have ended by themselves, and none was to be restarted. Normally, all of them, unless restarts were
    /// switched off by [`RestartPolicy::Never`](crate::RestartPolicy::Never).
    Finished,
    /// The parent was asked to stop, by a signal.
    Stopped,
    /// A worker has asked for it, by [`Worker::stop_all`](crate::Worker::stop_all).
    StoppedByWorker {
        /// Which process it was.
        process: Process,
    },
    /// One restart more was needed than the budget allows.
    RestartLimitReached {
        /// The process whose end was one too many.
        process: Process,
        /// How it ended.
        exit: Exit,
        /// How many restarts there have been.
        restarts: u32,
    },
    /// A worker could not be brought up: with a `ready_timeout`, it ended or was late before any process of its id was
    /// ready; or it exited with a [`fatal_exit_code`](crate::Prefork::fatal_exit_code) code.
    StartupFailed {
        /// The process.
        process: Process,
        /// How it ended; `None`: it was late.
        exit: Option<Exit>,
    },
}

/// What became of one worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerReport {
    id: usize,
    pub(crate) processes: u32,
    pub(crate) restarts: u32,
    pub(crate) exit: Option<Exit>,
    /// That end was a failure, and nobody was to take its place.
    pub(crate) failed: bool,
}

impl Report {
    pub(crate) fn new(reason: Reason, workers: Vec<WorkerReport>) -> Report {
        Report { reason, workers, stale: Vec::new() }
    }

    pub(crate) fn with_stale(self, stale: Vec<Process>) -> Report {
        Report { stale, ..self }
    }

    /// Whether all workers have ended normally by themselves, or were asked to stop and did, however they took that.
    pub fn is_success(&self) -> bool {
        match self.reason {
            Reason::Finished => !self.workers.iter().any(|worker| worker.failed),
            Reason::Stopped | Reason::StoppedByWorker { .. } => true,
            Reason::RestartLimitReached { .. } | Reason::StartupFailed { .. } => false,
        }
    }

    /// How many restarts there were, of all workers together. Replacements in a rolling restart or for their age are none.
    pub fn restarts(&self) -> u32 {
        self.workers.iter().map(|worker| worker.restarts).sum()
    }

    /// Why it ended.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// The worker threads that were given up, because they did not return in time or gave no sign of life, and had not
    /// returned by the end: they still run, until they do or the process ends. Empty unless workers are
    /// [threads](crate::Backend::Thread).
    pub fn stale(&self) -> &[Process] {
        &self.stale
    }

    /// Every worker there ever was, by id.
    pub fn workers(&self) -> &[WorkerReport] {
        &self.workers
    }
}

impl Reason {
    /// The process that it is about: the one that has asked, or that could not be brought up, or whose end was one too many.
    pub fn process(&self) -> Option<Process> {
        match *self {
            Reason::Finished | Reason::Stopped => None,
            Reason::StoppedByWorker { process }
            | Reason::RestartLimitReached { process, .. }
            | Reason::StartupFailed { process, .. } => Some(process),
        }
    }

    /// How that process ended, if that is the reason.
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

    /// Its task id.
    pub fn id(&self) -> usize {
        self.id
    }

    /// How often it was restarted after it had failed.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// How many processes there have been of it, replacements included.
    pub fn processes(&self) -> u32 {
        self.processes
    }

    /// How its last process ended, not counting replacements that failed; `None` if it never had one.
    pub fn exit(&self) -> Option<Exit> {
        self.exit
    }
}

/// 0 on success, 3 if startup failed, 1 otherwise.
impl Termination for Report {
    fn report(self) -> ExitCode {
        match self.reason {
            _ if self.is_success() => ExitCode::SUCCESS,
            Reason::StartupFailed { .. } => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Reads on from a subject: `stopped`, `gave up after 100 restarts: child 2 (pid 71) exited with status 3`.
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
