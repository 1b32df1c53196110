//! [`Event`], the changes in the service that the parent reports, and their log lines.

mod line;

use std::fmt;
use std::time::Duration;

use crate::error::Error;
use crate::exit::{Exit, OutOfMemory, Process};
use crate::report::Reason;
pub(crate) use line::write_startup_failure;

/// A change in the service. The parent passes each event to the callback of
/// [`Prefork::on_event`](crate::Prefork::on_event). `Display` writes the event's log line. If Tornado logs the same
/// change, the wording is the same as Tornado's.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A socket that [`Prefork::listen`](crate::Prefork::listen) has added is now open.
    Listening {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The position of the listener: 0 for the first call of `listen`, 1 for the second.
        listener: usize,
        /// The address, for example `127.0.0.1:8000`, `udp:[::]:53` or `unix:/run/service.sock`. If the requested port
        /// was 0, the address contains the port that the system has chosen.
        address: String,
    },
    /// A listener has been shut down by shutdown(2), most likely in a worker: all workers share its socket. So no
    /// worker could accept connections from it. The parent finds this before it starts a worker, except before the
    /// initial starts. Linux only.
    ListenerShutDown {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The position of the listener, as in [`Event::Listening`].
        listener: usize,
        /// The address of the listener.
        address: String,
        /// Whether the parent has let the socket listen again. This works for TCP listeners, unless they are
        /// [per worker](crate::ListenConfig::per_worker). Connections that were waiting were reset. If `false`, the
        /// listener stays unusable until the service is restarted, and the event is not reported again.
        restored: bool,
    },
    /// The workers are about to be started.
    Starting {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The number of workers.
        workers: usize,
    },
    /// A process was started.
    Started {
        /// The process.
        process: Process,
    },
    /// A process has called [`Worker::ready`](crate::Worker::ready) within the `ready_timeout`. If no `ready_timeout`
    /// is set, the parent reports this event only for replacements: when a replacement calls `Worker::ready`, or one
    /// second after its start.
    Ready {
        /// The process.
        process: Process,
    },
    /// A process has exited and has been reaped.
    Exited {
        /// The process.
        process: Process,
        /// How the process exited.
        exit: Exit,
        /// Whether the kernel's out-of-memory killer killed the process.
        out_of_memory: OutOfMemory,
        /// Whether the process had reached the call that starts the service. This is false only for a
        /// [spawned](crate::Backend::Spawn) worker that exited in the code before this call, for example because the
        /// program forks there and exits, as a daemon does.
        reached_call: bool,
        /// The number of units of work ([`Worker::begin_work`](crate::Worker::begin_work)) that the process had begun
        /// and not completed when it exited. 0 if the process has not called this method.
        work_in_progress: u64,
        /// Whether the parent caused the exit. This is true after a stop request. It is also true if the parent killed
        /// a replacement or an added worker that was not ready in time.
        asked: bool,
        /// Whether a restart follows. If so, the next event is [`Event::Restarting`], and one log line reports both
        /// events.
        restarting: bool,
    },
    /// A worker thread has returned an error or panicked. [`Event::Exited`] follows. The parent does not report this
    /// event for worker processes, because they log their failures themselves, or [print](crate#messages) them if there
    /// is no logger.
    Failed {
        /// The worker thread.
        process: Process,
        /// The error that the thread returned, with its sources. After a panic, `panicked: ` and the panic's message.
        message: String,
    },
    /// A worker thread did not return after a stop request, was not ready in time, or sent no heartbeat in time. A
    /// thread cannot be killed, so the parent abandons the thread. [`Event::Exited`] follows, although the thread still
    /// runs.
    Stale {
        /// The worker thread.
        process: Process,
    },
    /// A worker thread or a process that the parent had abandoned ([`Event::Stale`], [`Event::KillTimedOut`]) has ended
    /// after all.
    Returned {
        /// The worker thread or the process.
        process: Process,
    },
    /// A process has exited, and its worker will be restarted.
    Restarting {
        /// The process that has exited.
        process: Process,
        /// How the process exited.
        exit: Exit,
        /// Whether the kernel's out-of-memory killer killed the process.
        out_of_memory: OutOfMemory,
        /// Whether the process had reached the call that starts the service: see [`Event::Exited`].
        reached_call: bool,
        /// The number of units of work that the process had in progress: see [`Event::Exited`].
        work_in_progress: u64,
        /// The reason for the restart. Only a failure counts towards the restart limit.
        reason: RestartReason,
        /// The delay before the restart.
        delay: Duration,
        /// The number of restarts that the limit still allows after this restart. `None` if there is no
        /// [limit](crate::Prefork::max_restarts).
        left: Option<u32>,
    },
    /// The system refused to start a process. If the first start of an initial worker is refused, and its pool is not
    /// [optional](crate::Prefork::optional), the parent does not report this event:
    /// [`Prefork::start`](crate::Prefork::start) returns the error instead.
    StartFailed {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The system's error. [`Error::worker`] returns the worker that could not be started.
        error: Error,
        /// The delay before the parent tries again. `None` if the parent does not try again. There are two cases: if
        /// the process would have been a replacement, the old process stays. If it was the first start of an initial
        /// worker of an optional pool, the pool stops.
        retry: Option<Duration>,
    },
    /// A process sent no heartbeat in time. The parent now sends SIGABRT to it, and SIGKILL after the
    /// [`abort_timeout`](crate::Prefork::abort_timeout). If the
    /// worker is a thread, the parent abandons the thread instead ([`Event::Stale`]).
    HeartbeatTimedOut {
        /// The process.
        process: Process,
    },
    /// A process was not ready within the [`ready_timeout`](crate::Prefork::ready_timeout).
    ReadyTimedOut {
        /// The process.
        process: Process,
    },
    /// A process did not exit in time after a stop request or a SIGABRT. The parent now sends SIGKILL to it. If the
    /// worker is a thread, the parent abandons the thread instead ([`Event::Stale`]).
    StopTimedOut {
        /// The process.
        process: Process,
    },
    /// A process did not exit within 10 s after SIGKILL, so the parent abandons it. Such a process is blocked inside
    /// the kernel, for example by a network file system that does not respond. [`Event::Exited`] follows, with
    /// [`Exit::Stale`], although the process still exists. Another process takes its place, and a stop does not wait
    /// for it. But a worker with two abandoned processes gets no further process until one of them has exited.
    KillTimedOut {
        /// The process.
        process: Process,
    },
    /// The number of workers has changed. A worker was added, removed, or dropped because it could not start.
    Scaled {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The new number of workers.
        workers: usize,
    },
    /// More workers than [`max_workers`](crate::Prefork::max_workers) were requested, for example by SIGTTIN, or no
    /// worker at all, by SIGTTOU. If the same request is repeated within a second, the parent does not report it again.
    ScalingLimited {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The requested number of workers.
        asked: usize,
        /// The allowed number of workers: `max_workers`, the number of processes that the system allows, or 1.
        limit: usize,
    },
    /// A worker that SIGTTIN or [`Handle::scale`](crate::Handle::scale) added could not start, for a reason that would
    /// be a [startup failure](crate::Reason::StartupFailed) of one of the first workers. The parent removes the worker,
    /// and [`Event::Scaled`] follows.
    ScalingAborted {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The id of the worker.
        id: usize,
    },
    /// A rolling restart begins.
    RollingRestartStarted {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
    },
    /// A rolling restart has ended. Every process that served when the rolling restart began has been replaced and has
    /// exited, or had already exited by the time that its turn came.
    RollingRestartFinished {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
    },
    /// A rolling restart has ended early because a replacement failed. The processes that it has not replaced yet stay.
    /// Other replacements that have begun continue.
    ///
    /// If the replacement failed before it was ready, its old process stays too, unless the old process had to exit
    /// first ([`Prefork::max_unavailable`](crate::Prefork::max_unavailable)). If the replacement failed while its old
    /// process was stopping, or after the exit of the old process, the worker is restarted.
    RollingRestartAborted {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The id of the worker whose replacement failed.
        id: usize,
    },
    /// The parent now replaces one process, outside of a rolling restart.
    Recycling {
        /// The old process.
        process: Process,
        /// The reason for the replacement.
        reason: RecycleReason,
    },
    /// The parent has started to replace a process ([`Event::Recycling`]), but the replacement failed. The old process
    /// stays. If it had reached its maximum lifetime, it stays for one more lifetime. If it had retired, had completed
    /// its requests or used too much memory, the parent tries again after 10 s. A replacement that an operator
    /// requested is not tried again.
    RecyclingAborted {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The id of the worker whose replacement failed.
        id: usize,
    },
    /// The replacement of a worker was requested, but there is no such worker: it was never started, has finished, or
    /// was removed. So the request has no effect.
    RecyclingRefused {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The id that the request named.
        id: usize,
    },
    /// The parent begins to stop all workers of a pool. If the whole service stops, the parent reports this event for
    /// each pool that was not stopping before.
    Stopping {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The number of processes that still run.
        workers: usize,
        /// Whether this is a quick stop. In a quick stop the parent sends SIGQUIT, and SIGKILL after 2 s.
        quick: bool,
        /// The process that requested the stop by [`Worker::stop_pool`](crate::Worker::stop_pool) or
        /// [`Worker::stop_all`](crate::Worker::stop_all). After `stop_all`, the process may belong to another pool.
        /// `None` if the stop has another reason.
        by: Option<Process>,
    },
    /// A second stop was requested. The parent now sends SIGKILL to all remaining processes of a pool. If workers are
    /// threads, the parent abandons the threads instead ([`Event::Stale`]).
    KillingAll {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The number of processes that get SIGKILL.
        workers: usize,
    },
    /// A worker could not start or exited with a [`fatal_exit_code`](crate::Prefork::fatal_exit_code), so the service
    /// stops. If the pool is [optional](crate::Prefork::optional), only the pool stops.
    /// [`Reason::StartupFailed`](crate::Reason::StartupFailed) lists the cases.
    StartupFailed {
        /// The process.
        process: Process,
        /// How the process exited. `None` if the process still runs but was not ready in time.
        exit: Option<Exit>,
        /// The number of failures of this worker in a row, if the stop follows because there were too many. `None` if
        /// one failure was enough.
        failures: Option<u32>,
        /// Whether the process had called a function that starts workers, as in
        /// [`Reason::StartupFailed`](crate::Reason::StartupFailed).
        nested_call: bool,
    },
    /// A worker needed one restart more than the restart limit allows, so the service stops. If the pool is
    /// [optional](crate::Prefork::optional), only the pool stops.
    RestartLimitReached {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The number of restarts that the pool has had.
        restarts: u32,
    },
    /// A pool has ended: none of its processes runs, and none will be started. The other pools of the service go on,
    /// unless the whole service stops. The parent reports this event only if the service has several pools.
    PoolEnded {
        /// The name of the pool.
        pool: &'static str,
        /// The reason why the pool has ended.
        reason: Reason,
        /// Whether the pool ended normally, as in [`PoolReport::is_success`](crate::PoolReport::is_success).
        success: bool,
    },
    /// A request for a pool had no effect, because there is no such pool, or because the pool is stopping or has ended.
    /// The request was made through a [`Handle`](crate::Handle), or it was a signal that concerns the first pool. If the
    /// same request is repeated within a second, the parent does not report it again. The parent never reports a request
    /// to stop a pool that is stopping or has ended, nor any request while the whole service stops.
    RequestIgnored {
        /// The name of the pool that the request concerned.
        pool: String,
        /// Whether the pool is stopping or has ended. If `false`, the service has no pool of this name.
        has_ended: bool,
    },
    /// An [upgrade](crate::Handle::upgrade) begins: the parent tries the program that is on disk now. The event
    /// concerns the service, so its pool is empty.
    ///
    /// If the trial fails, [`Event::UpgradeAborted`] follows. Otherwise the parent executes the new program, and the
    /// callback of the old program gets no further event. The new program begins with [`Event::Listening`] and
    /// [`Event::Adopted`].
    UpgradeStarted,
    /// An upgrade has failed or was refused. The event concerns the service, so its pool is empty. Logged as an error.
    ///
    /// - In the old program, nothing has changed: the parent and the workers go on. This is the case if no
    ///   [`Event::Adopted`] precedes. If the upgrade was refused, not even [`Event::UpgradeStarted`] precedes.
    /// - In the new program, a replacement has failed. The new program supervises all workers, and the processes of the
    ///   old program that have not been replaced stay.
    UpgradeAborted {
        /// The reason, in words for an operator. It may contain text that the new program has written.
        reason: String,
    },
    /// The parent has executed a new program, which now supervises the processes that the old program has started.
    /// Reported once for each pool, before the first event of a process. A rolling restart follows, except in a pool
    /// that the new program does not have: its processes are stopped.
    Adopted {
        /// The name of the pool. Empty for a `Prefork` that is used alone.
        pool: &'static str,
        /// The number of processes that have not exited, those that are stopping included.
        processes: usize,
    },
    /// An upgrade has succeeded: the new program has replaced every process of the old one, and these processes have
    /// exited. The event concerns the service, so its pool is empty.
    UpgradeFinished,
}

/// The reason why a worker is restarted after the exit of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RestartReason {
    /// The process failed. The restart counts towards the [restart limit](crate::Prefork::max_restarts).
    Failure,
    /// The process exited with status 0, and the policy is [`RestartPolicy::Always`](crate::RestartPolicy::Always). The
    /// restart does not count.
    NormalExit,
    /// The process exited with status 0 after a stop request that neither the parent nor the terminal made, for example
    /// by kill(1) with the pid of the worker. The restart does not count.
    StopRequest,
    /// The process exited with status 0 after it had called [`Worker::retire`](crate::Worker::retire) and before the
    /// parent had started its replacement. The restart does not count.
    Retired,
    /// The process exited with status 0 after it had completed its requests
    /// ([`Prefork::max_requests`](crate::Prefork::max_requests)) and before the parent had started its replacement. The
    /// restart does not count.
    Requests,
}

impl RestartReason {
    /// Returns whether a restart for this reason counts towards the restart limit and in the report.
    pub(crate) fn is_counted(self) -> bool {
        self == RestartReason::Failure
    }

    /// Returns the phrase that names the reason in the log. A failure and a normal exit need none, because the log line
    /// contains the exit.
    fn phrase(self) -> &'static str {
        match self {
            RestartReason::StopRequest => " after a stop request from another process",
            RestartReason::Retired => " after it had retired",
            RestartReason::Requests => " after it had completed its requests",
            RestartReason::Failure | RestartReason::NormalExit => "",
        }
    }
}

/// The reason why the parent replaces one process ([`Event::Recycling`]). `Display` writes it as in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RecycleReason {
    /// The process has reached its maximum lifetime ([`Prefork::max_lifetime`](crate::Prefork::max_lifetime)).
    Lifetime,
    /// The process has requested its own replacement ([`Worker::retire`](crate::Worker::retire)).
    Retired,
    /// The program has requested the replacement of this worker ([`Handle::replace`](crate::Handle::replace)).
    Requested,
    /// The process has completed its requests ([`Prefork::max_requests`](crate::Prefork::max_requests)).
    Requests {
        /// The number of units of work that this process was to complete. It is between three quarters of
        /// `max_requests` and all of it.
        limit: u64,
    },
    /// The process uses more memory than [`Prefork::max_memory`](crate::Prefork::max_memory) allows.
    Memory {
        /// The private memory of the process when the parent read it, in bytes.
        bytes: u64,
    },
    /// The process runs the program of an upgrade that was aborted. It has become the only process of its worker,
    /// because the process of the old program has exited during the upgrade.
    UpgradeAborted,
}

impl fmt::Display for RecycleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecycleReason::Lifetime => f.write_str("has reached its maximum lifetime"),
            RecycleReason::Retired => f.write_str("has retired"),
            RecycleReason::Requested => f.write_str("was requested to be replaced"),
            RecycleReason::UpgradeAborted => f.write_str("runs the program of an aborted upgrade"),
            RecycleReason::Requests { limit: 1 } => f.write_str("has completed its request"),
            RecycleReason::Requests { limit } => write!(f, "has completed its {limit} requests"),
            RecycleReason::Memory { bytes } => {
                f.write_str("uses ")?;
                line::write_size(f, *bytes)?;
                f.write_str(" of private memory")
            }
        }
    }
}

impl Event {
    /// Returns the name of the pool that this event concerns. Empty for a [`Prefork`](crate::Prefork) that is used
    /// alone, because its pool has no name.
    pub fn pool(&self) -> &str {
        match self.subject() {
            Subject::Process(process) => process.pool,
            Subject::Pool(pool) => pool,
        }
    }

    /// Returns the process that this event concerns, if there is one.
    pub fn process(&self) -> Option<Process> {
        match (self, self.subject()) {
            // A worker can also stop the other pools. So this process may belong to another pool than the event.
            (Event::Stopping { by, .. }, _) => *by,
            (_, Subject::Process(process)) => Some(process),
            (_, Subject::Pool(_)) => None,
        }
    }

    fn subject(&self) -> Subject<'_> {
        match self {
            Event::Started { process }
            | Event::Ready { process }
            | Event::Failed { process, .. }
            | Event::Stale { process }
            | Event::Returned { process }
            | Event::Exited { process, .. }
            | Event::Restarting { process, .. }
            | Event::HeartbeatTimedOut { process }
            | Event::ReadyTimedOut { process }
            | Event::StopTimedOut { process }
            | Event::KillTimedOut { process }
            | Event::Recycling { process, .. }
            | Event::StartupFailed { process, .. } => Subject::Process(*process),
            Event::Listening { pool, .. }
            | Event::ListenerShutDown { pool, .. }
            | Event::Starting { pool, .. }
            | Event::StartFailed { pool, .. }
            | Event::Scaled { pool, .. }
            | Event::ScalingAborted { pool, .. }
            | Event::ScalingLimited { pool, .. }
            | Event::Stopping { pool, .. }
            | Event::KillingAll { pool, .. }
            | Event::RollingRestartStarted { pool }
            | Event::RollingRestartFinished { pool }
            | Event::RollingRestartAborted { pool, .. }
            | Event::RecyclingAborted { pool, .. }
            | Event::RecyclingRefused { pool, .. }
            | Event::RestartLimitReached { pool, .. }
            | Event::Adopted { pool, .. }
            | Event::PoolEnded { pool, .. } => Subject::Pool(pool),
            Event::RequestIgnored { pool, .. } => Subject::Pool(pool),
            Event::UpgradeStarted | Event::UpgradeAborted { .. } | Event::UpgradeFinished => Subject::Pool(""),
        }
    }
}

/// What an event concerns: a process, or a whole pool with this name.
enum Subject<'a> {
    Process(Process),
    Pool(&'a str),
}
