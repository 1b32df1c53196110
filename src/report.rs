//! [`Report`], the result of a service that has ended, with the result of each pool and the history of each worker.

use std::fmt;
use std::process::{ExitCode, Termination};

use crate::event::write_startup_failure;
use crate::exit::{Exit, Process};

/// The result of a service. [`Prefork::start`](crate::Prefork::start), [`run`](crate::Prefork::run) and
/// [`run_threads`](crate::Prefork::run_threads) return it in the parent after the service has ended, and so do the
/// methods of [`Supervisor`](crate::Supervisor).
///
/// `main` can return a `Report`. Then the exit status of the program is 0 on [success](Report::is_success), 3 if
/// [startup failed](Reason::StartupFailed), and 1 otherwise.
///
/// If the service has failed, the parent has logged the reason, or has [printed](crate#messages) it if there is no
/// logger.
#[derive(Clone, Debug)]
pub struct Report {
    reason: Reason,
    pools: Vec<PoolReport>,
    /// The workers of all pools.
    workers: Vec<WorkerReport>,
    stale: Vec<Process>,
}

/// The result of one pool of a service. [`Report::pools`] returns it.
#[derive(Clone, Debug)]
pub struct PoolReport {
    name: &'static str,
    reason: Reason,
    workers: Vec<WorkerReport>,
    is_optional: bool,
}

/// The reason why the service ended, or why one [pool](PoolReport) of it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// All workers have exited by themselves, and no worker needs a restart. Their last exits were normal, except with
    /// [`RestartPolicy::Never`](crate::RestartPolicy::Never): then workers that failed are not restarted either.
    Finished,
    /// A signal requested the stop, or the program did by [`Handle::stop`](crate::Handle::stop). A handle for one pool
    /// stops only this pool.
    Stopped,
    /// A worker requested the stop, by [`Worker::stop_all`](crate::Worker::stop_all). If this is the reason of a pool,
    /// a worker of the pool may also have called [`Worker::stop_pool`](crate::Worker::stop_pool).
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
        /// The number of restarts of the pool so far.
        restarts: u32,
    },
    /// The parent stopped the service, or only an [optional](crate::Prefork::optional) pool, because one worker failed
    /// and a restart would not have helped. There are five cases:
    ///
    /// - The worker exited with a [`fatal_exit_code`](crate::Prefork::fatal_exit_code).
    /// - A [`ready_timeout`](crate::Prefork::ready_timeout) is set, and the worker failed or was late before any of its
    ///   processes was ready.
    /// - No `ready_timeout` is set, and the worker failed ten times in a row before any process of any worker had lived
    ///   for 10 s. A normal exit of the worker begins a new row. [`fork_processes`](crate::fork_processes) does not end
    ///   for this reason.
    /// - A [spawned](crate::Backend::Spawn) worker exited before it reached the call that starts the service, and none
    ///   of its processes had reached this call before.
    /// - The worker called a function that starts workers, and then exited in a way that would otherwise lead to a
    ///   restart: abnormally, or normally with [`RestartPolicy::Always`](crate::RestartPolicy::Always). A worker cannot
    ///   start workers, and its next process would make the same call.
    StartupFailed {
        /// The process that failed.
        process: Process,
        /// How that process exited, or `None` if it was not ready in time.
        exit: Option<Exit>,
        /// The number of failures in a row in the third case, and `None` in the other cases.
        failures: Option<u32>,
        /// Whether the process had called a function that starts workers, such as
        /// [`fork_processes`](crate::fork_processes) or [`Prefork::start`](crate::Prefork::start). `false` if the
        /// process was not ready in time, because then it has not exited yet.
        nested_call: bool,
    },
    /// The system refused the first start of a worker, and the worker's pool is [optional](crate::Prefork::optional).
    /// So the pool ended, and the service went on without it. This is the reason of a pool only, never of a service: if
    /// the pool is not optional, the call that starts the service returns the system's error.
    StartRefused {
        /// The name of the pool.
        pool: &'static str,
        /// The id of the worker that could not be started.
        id: usize,
    },
}

/// The history of one worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerReport {
    pool: &'static str,
    id: usize,
    pub(crate) processes: u32,
    pub(crate) restarts: u32,
    pub(crate) exit: Option<Exit>,
    /// Whether the last exit was abnormal and no restart followed.
    pub(crate) failed: bool,
}

impl Report {
    pub(crate) fn new(reason: Reason, pools: Vec<PoolReport>) -> Report {
        let workers = pools.iter().flat_map(PoolReport::workers).copied().collect();
        Report { reason, pools, workers, stale: Vec::new() }
    }

    pub(crate) fn with_stale(self, stale: Vec<Process>) -> Report {
        Report { stale, ..self }
    }

    /// Returns whether the service ended normally. This is `true` if all workers exited by themselves with status 0. It
    /// is also `true` if a signal, the program or a worker requested the stop, even if the parent then had to kill
    /// workers.
    ///
    /// In a service with several pools, every pool must have ended [normally](PoolReport::is_success). The failure of
    /// an [optional](crate::Prefork::optional) pool does not count, unless no pool at all has ended normally.
    pub fn is_success(&self) -> bool {
        !self.reason.is_failure() && self.failed_pool().is_none()
    }

    /// Returns the first failed pool that makes the service fail.
    pub(crate) fn failed_pool(&self) -> Option<&PoolReport> {
        let any_success = self.pools.iter().any(PoolReport::is_success);
        self.pools.iter().find(|pool| !(pool.is_success() || (pool.is_optional && any_success)))
    }

    /// Returns the number of restarts after failures, added up over all workers. Restarts for another
    /// [reason](crate::RestartReason) do not count, and neither do replacements.
    pub fn restarts(&self) -> u32 {
        sum_of_restarts(&self.workers)
    }

    /// Returns the reason why the service ended. If a pool that is not [optional](crate::Prefork::optional) has failed
    /// and so stopped the service, this is the reason of that pool. If each of several pools has ended without a stop
    /// of the service, the reason is [`Reason::Finished`], and [`PoolReport::reason`] returns how each pool ended.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// Returns the worker threads that still ran when the service ended. The parent abandons a thread that hangs or
    /// does not return in time after a stop request. An abandoned thread runs until it returns or the process ends. The
    /// list also contains the processes that the parent abandoned because they did not exit within 10 s after SIGKILL.
    pub fn stale(&self) -> &[Process] {
        &self.stale
    }

    /// Returns one report for each worker of all pools. The pools are in the order in which the program has added them,
    /// and the workers of a pool are ordered by id. Workers that were removed are included.
    pub fn workers(&self) -> &[WorkerReport] {
        &self.workers
    }

    /// Returns one report for each pool, in the order in which the program has added the pools. A
    /// [`Prefork`](crate::Prefork) that is used alone has one pool with an empty name.
    pub fn pools(&self) -> &[PoolReport] {
        &self.pools
    }
}

impl PoolReport {
    pub(crate) fn new(
        name: &'static str,
        reason: Reason,
        mut workers: Vec<WorkerReport>,
        is_optional: bool,
    ) -> PoolReport {
        for worker in &mut workers {
            worker.pool = name;
        }
        PoolReport { name, reason, workers, is_optional }
    }

    /// Returns the name of the pool. Empty for a [`Prefork`](crate::Prefork) that is used alone.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Returns the reason why the pool ended. If the service stopped while the pool ran, this is the reason of the
    /// service. So after the failure of another pool, the reason contains a process of that other pool.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// Returns one report for each worker of the pool, ordered by id. Workers that were removed are included.
    pub fn workers(&self) -> &[WorkerReport] {
        &self.workers
    }

    /// Returns the number of restarts after failures in this pool, counted as in [`Report::restarts`].
    pub fn restarts(&self) -> u32 {
        sum_of_restarts(&self.workers)
    }

    /// Returns whether the pool ended normally. This is `true` if the exit status of all of its workers was 0 when they
    /// exited by themselves. It is also `true` if a signal, the program or a worker requested the stop of the pool or of
    /// the service, or if the failure of another pool stopped it, even if the parent then had to kill workers. It does
    /// not matter whether the pool is [optional](crate::Prefork::optional).
    pub fn is_success(&self) -> bool {
        match self.reason {
            Reason::Finished => !self.workers.iter().any(|worker| worker.failed),
            _ => !self.reason.is_failure() || self.reason.pool() != Some(self.name),
        }
    }
}

fn sum_of_restarts(workers: &[WorkerReport]) -> u32 {
    workers.iter().fold(0, |sum: u32, worker| sum.saturating_add(worker.restarts))
}

impl Reason {
    /// Returns whether this is the reason of a stop because of a failure.
    pub(crate) fn is_failure(&self) -> bool {
        match self {
            Reason::Finished | Reason::Stopped | Reason::StoppedByWorker { .. } => false,
            Reason::RestartLimitReached { .. } | Reason::StartupFailed { .. } | Reason::StartRefused { .. } => true,
        }
    }

    /// Returns the process that caused the end of the service. This process requested the stop, could not start, or
    /// needed one restart more than the limit allows. `None` if no single process is the cause.
    pub fn process(&self) -> Option<Process> {
        match *self {
            Reason::Finished | Reason::Stopped | Reason::StartRefused { .. } => None,
            Reason::StoppedByWorker { process }
            | Reason::RestartLimitReached { process, .. }
            | Reason::StartupFailed { process, .. } => Some(process),
        }
    }

    /// Returns the name of the pool that caused the end of the service. `None` if no single pool is the cause.
    fn pool(&self) -> Option<&'static str> {
        match self {
            Reason::StartRefused { pool, .. } => Some(pool),
            _ => self.process().map(|process| process.pool),
        }
    }

    /// Returns how the [process](Reason::process) exited, if its exit caused the end of the service.
    pub fn exit(&self) -> Option<Exit> {
        match *self {
            Reason::RestartLimitReached { exit, .. } => Some(exit),
            Reason::StartupFailed { exit, .. } => exit,
            Reason::Finished | Reason::Stopped | Reason::StoppedByWorker { .. } | Reason::StartRefused { .. } => None,
        }
    }
}

impl WorkerReport {
    /// Creates the report of a worker. [`PoolReport::new`] adds the name of the pool.
    pub(crate) fn new(id: usize) -> WorkerReport {
        WorkerReport { pool: "", id, processes: 0, restarts: 0, exit: None, failed: false }
    }

    /// Returns the name of the worker's pool. Empty for a [`Prefork`](crate::Prefork) that is used alone.
    pub fn pool(&self) -> &str {
        self.pool
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

/// Exits with status 0 on success, 3 if a startup failure ended the service, and 1 otherwise.
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
            Reason::StartupFailed { process, exit, failures, nested_call } => {
                f.write_str("failed to start: ")?;
                write_startup_failure(f, *process, *exit, *failures, *nested_call)
            }
            Reason::StartRefused { pool, id } => {
                let separator = if pool.is_empty() { "" } else { " " };
                write!(f, "failed to start: the system refused to start {pool}{separator}worker {id}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: Process = Process { pool: "web", id: 0, generation: 1, pid: Some(71) };
    const STARTUP_FAILED: Reason =
        Reason::StartupFailed { process: PROCESS, exit: None, failures: None, nested_call: false };
    const GAVE_UP: Reason = Reason::RestartLimitReached { process: PROCESS, exit: Exit::Code(1), restarts: 3 };

    fn pool(name: &'static str, reason: Reason, is_optional: bool) -> PoolReport {
        PoolReport::new(name, reason, vec![WorkerReport::new(0), WorkerReport::new(1)], is_optional)
    }

    /// Returns the report of a pool that has finished after its last worker has failed.
    fn failed(name: &'static str, is_optional: bool) -> PoolReport {
        let worker = WorkerReport { exit: Some(Exit::Code(3)), failed: true, ..WorkerReport::new(0) };
        PoolReport::new(name, Reason::Finished, vec![worker], is_optional)
    }

    #[test]
    fn the_sum_of_restarts_does_not_overflow() {
        let worker = WorkerReport { restarts: u32::MAX, ..WorkerReport::new(0) };
        let pools = ["web", "jobs"].map(|name| PoolReport::new(name, Reason::Finished, vec![worker, worker], false));
        assert_eq!(pools[0].restarts(), u32::MAX);
        assert_eq!(Report::new(Reason::Finished, pools.into()).restarts(), u32::MAX);
    }

    #[test]
    fn workers_name_their_pool_in_order() {
        let report =
            Report::new(Reason::Stopped, ["web", "jobs"].map(|name| pool(name, Reason::Stopped, false)).into());
        let workers: Vec<_> = report.workers().iter().map(|worker| (worker.pool(), worker.id())).collect();
        assert_eq!(workers, [("web", 0), ("web", 1), ("jobs", 0), ("jobs", 1)]);
        let names: Vec<_> = report.pools().iter().map(PoolReport::name).collect();
        assert_eq!(names, ["web", "jobs"]);
        assert!(report.pools()[1].workers().iter().all(|worker| worker.pool() == "jobs"));
    }

    #[test]
    fn the_failure_of_another_pool_is_no_failure_of_a_pool() {
        assert!(!pool("web", GAVE_UP, false).is_success());
        assert!(pool("jobs", GAVE_UP, false).is_success());
        let refused = Reason::StartRefused { pool: "jobs", id: 1 };
        assert!(pool("web", refused.clone(), false).is_success());
        assert!(!pool("jobs", refused, true).is_success());
    }

    #[test]
    fn failures_of_optional_pools_do_not_count() {
        let refused = Reason::StartRefused { pool: "jobs", id: 1 };
        for (is_success, reason, pools) in [
            (true, Reason::Stopped, vec![pool("", Reason::Stopped, false)]),
            (true, Reason::Finished, vec![pool("", Reason::Finished, true)]),
            (false, Reason::Finished, vec![failed("", false)]),
            (false, Reason::Finished, vec![failed("", true)]),
            (false, STARTUP_FAILED, vec![pool("", STARTUP_FAILED, true)]),
            (false, GAVE_UP, vec![pool("web", GAVE_UP, false), pool("jobs", GAVE_UP, true)]),
            (true, Reason::Stopped, vec![pool("web", Reason::Stopped, false), pool("jobs", refused.clone(), true)]),
            (true, Reason::Finished, vec![pool("web", Reason::Finished, false), failed("jobs", true)]),
            (true, Reason::Finished, vec![pool("web", GAVE_UP, true), pool("jobs", Reason::Finished, true)]),
            (false, Reason::Finished, vec![pool("web", GAVE_UP, true), failed("jobs", true)]),
            (false, Reason::Stopped, vec![pool("web", Reason::Stopped, false), failed("jobs", false)]),
            (true, Reason::StoppedByWorker { process: PROCESS }, vec![pool("web", Reason::Stopped, false)]),
        ] {
            let report = Report::new(reason, pools);
            assert_eq!(report.is_success(), is_success, "{report:?}");
        }
    }

    #[test]
    fn reasons_name_the_pool() {
        for (reason, text) in [
            (
                Reason::StartRefused { pool: "jobs", id: 1 },
                "failed to start: the system refused to start jobs worker 1",
            ),
            (GAVE_UP, "gave up after 3 restarts: web child 0 (pid 71) exited with status 1"),
            (STARTUP_FAILED, "failed to start: web child 0 (pid 71) was not ready in time"),
        ] {
            assert_eq!(reason.to_string(), text);
        }
    }
}
