//! [`Status`], the state of a running service, with its pools and workers.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::exit::{Exit, Process};
use crate::sys;

/// The state of a running service at one moment, with its pools and workers. The parent creates it for
/// [`Prefork::on_interval`](crate::Prefork::on_interval) and [`Handle::status`](crate::Handle::status).
///
/// All values are those of the moment at which the status was created, except where a method says that it reads a value
/// when it is called. All ages end at this moment. A clone can be kept, and can be sent to other threads.
///
/// ```no_run
/// use std::time::Duration;
/// use taskfork::{Prefork, Report};
///
/// fn main() -> taskfork::Result<Report> {
///     let service = Prefork::new().workers(4).on_interval(Duration::from_secs(10), |status, _| {
///         for worker in status.pools().iter().flat_map(|pool| pool.workers()) {
///             println!("worker {}: {}, {} restarts", worker.id(), worker.state(), worker.restarts());
///         }
///     });
///     service.run(|worker| {
///         // ..
/// #       drop(worker);
///         Ok(())
///     })
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Status {
    pub(crate) name: Option<String>,
    pub(crate) pid: u32,
    pub(crate) started_at: SystemTime,
    pub(crate) age: Duration,
    pub(crate) state: ServiceState,
    pub(crate) last_upgrade: Option<UpgradeOutcome>,
    pub(crate) pools: Vec<PoolStatus>,
}

/// The state of a service. `Display` writes it in lower case, for example `rolling restart`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServiceState {
    /// A worker that the service begins with has not come up for the first time. A worker comes up when its first
    /// process starts, or, with a [`ready_timeout`](crate::Prefork::ready_timeout), when a process of it becomes ready.
    Starting,
    /// All workers that the service began with have come up. Since then, workers may have failed: compare
    /// [`PoolStatus::ready`] with [`PoolStatus::wanted`].
    Running,
    /// A [rolling restart](crate#rolling-restarts) is in progress, of all pools or of one pool.
    RollingRestart,
    /// An [upgrade](crate::Handle::upgrade) is in progress: the parent tries a new program, or has executed it and
    /// replaces the processes of the old program.
    Upgrading,
    /// All pools are stopping or have ended.
    Stopping,
}

/// The result of the last upgrade, in a [`Status`]. `Display` writes `done`, or `aborted: ` and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeOutcome {
    pub(crate) ended_at: SystemTime,
    pub(crate) age: Duration,
    pub(crate) failure: Option<String>,
}

/// The state of one pool in a [`Status`].
#[derive(Clone, Debug)]
pub struct PoolStatus {
    pub(crate) name: &'static str,
    pub(crate) wanted: usize,
    pub(crate) ready: usize,
    pub(crate) restarts: u32,
    pub(crate) workers: Vec<WorkerStatus>,
    pub(crate) listeners: Vec<ListenerStatus>,
}

/// The state of one process of a worker, or of a worker that waits for its next process, in a [`Status`].
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    pub(crate) pool: &'static str,
    pub(crate) id: usize,
    pub(crate) generation: u32,
    pub(crate) process: Option<Process>,
    pub(crate) state: WorkerState,
    pub(crate) age: Option<Duration>,
    pub(crate) since_ready: Option<Duration>,
    pub(crate) last_heartbeat: Option<Duration>,
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<Exit>,
    pub(crate) work_in_progress: u64,
    pub(crate) work_completed: u64,
    pub(crate) memory_sample: Option<PrivateMemory>,
    /// The time at which the status was created, on the clock of `sys::process_times`.
    pub(crate) taken_at: Duration,
}

/// The state of one process of a worker. `Display` writes it in lower case, for example `ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// The worker has no process, and waits for its next one. For example, the delay before a restart has not passed,
    /// or the earlier process must exit first.
    Waiting,
    /// The process runs, and is not ready yet.
    Starting,
    /// The process serves. Without a [`ready_timeout`](crate::Prefork::ready_timeout), a process is ready when it
    /// starts. A replacement is then ready after a second, or when it calls [`Worker::ready`](crate::Worker::ready).
    Ready,
    /// The worker was removed, and serves the connections that are left in the queue of [its own
    /// socket](crate::ListenConfig::per_worker).
    Draining,
    /// The parent has asked the process to stop, or has killed it.
    Stopping,
}

/// The private memory of a process at an earlier time, in a [`WorkerStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivateMemory {
    pub(crate) bytes: u64,
    pub(crate) age: Duration,
    pub(crate) is_exact: bool,
}

/// The state of one listener of a pool in a [`Status`].
#[derive(Clone, Debug)]
pub struct ListenerStatus {
    pub(crate) address: String,
    pub(crate) queued: Option<u32>,
}

impl Status {
    /// Returns the [name](crate::Prefork::name) of the service, or `None` if it has no name.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns the pid of the parent.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the version of the crate taskfork with which the program was built.
    pub fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    /// Returns the time at which the service started. If the system's clock was set since then, the time does not
    /// change. Use [`age`](Status::age) to measure how long the service has run.
    pub fn started_at(&self) -> SystemTime {
        self.started_at
    }

    /// Returns how long the service has run.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Returns the state of the service.
    pub fn state(&self) -> ServiceState {
        self.state
    }

    /// Returns the result of the last [upgrade](crate::Handle::upgrade) that has ended or was refused. `None` if there
    /// was none.
    ///
    /// A parent that has just executed a new program knows no earlier upgrades: the method returns `None` until
    /// [`Event::UpgradeFinished`](crate::Event::UpgradeFinished) or
    /// [`Event::UpgradeAborted`](crate::Event::UpgradeAborted). Until then, [`state`](Status::state) is
    /// [`Upgrading`](ServiceState::Upgrading).
    pub fn last_upgrade(&self) -> Option<&UpgradeOutcome> {
        self.last_upgrade.as_ref()
    }

    /// Returns the pools, in the order in which the program has added them. A [`Prefork`](crate::Prefork) that is used
    /// alone has one pool without a name. Pools that have ended are included.
    pub fn pools(&self) -> &[PoolStatus] {
        &self.pools
    }
}

impl UpgradeOutcome {
    /// Returns whether every process of the old program was replaced.
    pub fn is_success(&self) -> bool {
        self.failure.is_none()
    }

    /// Returns the reason for which the upgrade was aborted or refused, as in
    /// [`Event::UpgradeAborted`](crate::Event::UpgradeAborted). `None` after a success.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Returns the time at which the upgrade ended. If the system's clock was set since then, the time does not change.
    pub fn ended_at(&self) -> SystemTime {
        self.ended_at
    }

    /// Returns how long ago the upgrade ended.
    pub fn age(&self) -> Duration {
        self.age
    }
}

impl PoolStatus {
    /// Returns the name of the pool. Empty for a [`Prefork`](crate::Prefork) that is used alone.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Returns the number of workers that should run. A worker that has exited normally and is not restarted does not
    /// count, and neither does a worker that was removed. The number is 0 if the pool stops or has ended.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Returns how many of the [wanted](PoolStatus::wanted) workers have a [ready](WorkerState::Ready) process.
    pub fn ready(&self) -> usize {
        self.ready
    }

    /// Returns the number of restarts after failures of all workers, as
    /// [`PoolReport::restarts`](crate::PoolReport::restarts) does at the end of the service. Restarts of workers that
    /// were removed are included.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Returns one entry for each process that has not exited, and for each worker that waits for its next process. The
    /// entries are ordered by worker id.
    ///
    /// A worker has two entries while its old process stops and its new process serves or starts. A worker that was
    /// removed, or that has exited and is not restarted, has no entry after the exit of its last process. There is no
    /// entry for a process that the parent has abandoned ([`Exit::Stale`]).
    pub fn workers(&self) -> &[WorkerStatus] {
        &self.workers
    }

    /// Returns the number of units of work that all workers of the pool have in progress, those that are stopping
    /// included. It is the sum of [`WorkerStatus::work_in_progress`].
    pub fn work_in_progress(&self) -> u64 {
        self.workers.iter().fold(0, |sum, worker| sum.saturating_add(worker.work_in_progress))
    }

    /// Returns the listeners of the pool, in the order of the [`listen`](crate::Prefork::listen) calls. Empty if the
    /// pool has no listeners, and when the parent has closed them because the pool stops.
    pub fn listeners(&self) -> &[ListenerStatus] {
        &self.listeners
    }
}

impl WorkerStatus {
    /// Returns the name of the worker's pool. Empty for a [`Prefork`](crate::Prefork) that is used alone.
    pub fn pool(&self) -> &str {
        self.pool
    }

    /// Returns the id of the worker.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Returns the pid of the process. `None` if the worker [waits](WorkerState::Waiting) for its process, and for a
    /// worker [thread](crate::Prefork::run_threads).
    pub fn pid(&self) -> Option<u32> {
        self.process.and_then(|process| process.pid)
    }

    /// Returns the generation of the process, as in [`Process::generation`]. If the worker
    /// [waits](WorkerState::Waiting), returns the generation of the next process.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the process as events contain it. `None` if the worker [waits](WorkerState::Waiting) for its process.
    pub fn process(&self) -> Option<Process> {
        self.process
    }

    /// Returns the state of the process.
    pub fn state(&self) -> WorkerState {
        self.state
    }

    /// Returns how long ago the parent started the process. `None` if the worker [waits](WorkerState::Waiting) for its
    /// process.
    pub fn age(&self) -> Option<Duration> {
        self.age
    }

    /// Returns how long ago the process became ready. `None` if it has not been ready.
    pub fn since_ready(&self) -> Option<Duration> {
        self.since_ready
    }

    /// Returns how long ago the parent saw the last heartbeat of the process. The start of the process and its
    /// readiness count as heartbeats. `None` without a [`heartbeat_timeout`](crate::Prefork::heartbeat_timeout).
    ///
    /// A heartbeat does not wake the parent. The parent looks for heartbeats before each call of
    /// [`on_interval`](crate::Prefork::on_interval), and at least once per `heartbeat_timeout`. So the real heartbeat
    /// may be older or newer, by up to the time between two looks.
    pub fn last_heartbeat(&self) -> Option<Duration> {
        self.last_heartbeat
    }

    /// Returns the number of restarts of the worker after failures, as
    /// [`WorkerReport::restarts`](crate::WorkerReport::restarts) does at the end of the service.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Returns how the last process of the worker exited. `None` if no process of the worker has exited. A process that
    /// exited as a replacement before it was ready does not count.
    pub fn last_exit(&self) -> Option<Exit> {
        self.last_exit
    }

    /// Returns the number of units of work that the process has begun
    /// ([`Worker::begin_work`](crate::Worker::begin_work)) and has not completed.
    pub fn work_in_progress(&self) -> u64 {
        self.work_in_progress
    }

    /// Returns the number of units of work that the process has completed since its start.
    pub fn work_completed(&self) -> u64 {
        self.work_completed
    }

    /// Reads the CPU time that the process has used so far, in user mode and in the kernel, added up over its threads.
    /// The resolution is 10 ms on Linux.
    ///
    /// This method asks the system when it is called, which takes about 20 µs. It returns `None` if the process has
    /// exited since the status was created, for a worker [thread](crate::Prefork::run_threads), and if the worker
    /// [waits](WorkerState::Waiting) for its process. On macOS, it also returns `None` for a process of another user,
    /// unless the caller is root. Only the parent can call it: in a worker process, it returns `None` on Linux.
    pub fn cpu_time(&self) -> Option<Duration> {
        let times = sys::process_times(self.pid()?)?;
        self.is_own(times).then_some(times.cpu)
    }

    /// Reads the number of bytes of the process's private memory, which its end would free. This is the memory that
    /// [`max_memory`](crate::Prefork::max_memory) limits.
    ///
    /// This method asks the system when it is called. On Linux, the kernel walks through all pages of the process,
    /// which takes about 5 ms for 512 MiB. So do not call it for many large processes at each call of `on_interval`.
    /// [`last_private_memory`](WorkerStatus::last_private_memory) costs nothing.
    ///
    /// Returns `None` if the process has exited since the status was created, for a worker
    /// [thread](crate::Prefork::run_threads), if the worker [waits](WorkerState::Waiting) for its process, and if the
    /// system refuses to read it, for example because the process has another user. Only the parent can call it: in a
    /// worker process, it returns `None` on Linux.
    pub fn private_memory(&self) -> Option<u64> {
        let pid = self.pid()?;
        sys::process_times(pid).filter(|&times| self.is_own(times))?;
        // A process that has exited and was not reaped has no memory.
        sys::private_memory(pid).ok().filter(|&bytes| bytes > 0)
    }

    /// Returns the private memory that the parent has last read for [`max_memory`](crate::Prefork::max_memory). `None`
    /// without `max_memory`, and before the first reading.
    pub fn last_private_memory(&self) -> Option<PrivateMemory> {
        self.memory_sample
    }

    /// Returns whether these are the times of this process. Another process may have got the pid since the status was
    /// created. It was then started later.
    fn is_own(&self, times: sys::ProcessTimes) -> bool {
        times.started <= self.taken_at
    }
}

impl PrivateMemory {
    /// Returns the number of bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how long before the creation of the status the parent has read the number.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Returns whether the number is exact. Otherwise it is an upper bound, which also contains memory that the process
    /// shares with its parent. The parent reads the exact number only if the bound exceeds the limit.
    pub fn is_exact(&self) -> bool {
        self.is_exact
    }
}

impl ListenerStatus {
    /// Returns the address, as the log and [`Event::Listening`](crate::Event::Listening) show it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the number of connections that clients have opened and no worker has accepted. If each worker has [its
    /// own socket](crate::ListenConfig::per_worker), returns the sum over all sockets.
    ///
    /// The system knows this number for TCP and Unix sockets on Linux. (For Unix sockets, its kernel must have the
    /// module `unix_diag`.) Otherwise, and for a UDP socket, returns `None`.
    pub fn queued(&self) -> Option<u32> {
        self.queued
    }
}

impl fmt::Display for UpgradeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.failure {
            None => f.write_str("done"),
            Some(reason) => write!(f, "aborted: {reason}"),
        }
    }
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServiceState::Starting => "starting",
            ServiceState::Running => "running",
            ServiceState::RollingRestart => "rolling restart",
            ServiceState::Upgrading => "upgrading",
            ServiceState::Stopping => "stopping",
        })
    }
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WorkerState::Waiting => "waiting",
            WorkerState::Starting => "starting",
            WorkerState::Ready => "ready",
            WorkerState::Draining => "draining",
            WorkerState::Stopping => "stopping",
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn worker(pid: u32, taken_at: Duration) -> WorkerStatus {
        WorkerStatus {
            pool: "",
            id: 0,
            generation: 0,
            process: Some(Process { pool: "", id: 0, generation: 0, pid: Some(pid) }),
            state: WorkerState::Ready,
            age: None,
            since_ready: None,
            last_heartbeat: None,
            restarts: 0,
            last_exit: None,
            work_in_progress: 0,
            work_completed: 0,
            memory_sample: None,
            taken_at,
        }
    }

    #[test]
    fn a_later_process_with_the_same_pid_is_ignored() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
        let now = worker(child.id(), sys::process_clock());
        assert!(now.cpu_time().is_some() && now.private_memory().is_some(), "{now:?}");
        let before = worker(child.id(), Duration::ZERO);
        assert_eq!((before.cpu_time(), before.private_memory()), (None, None));
        drop(child.stdin.take());
        child.wait().expect("an exit");
        assert_eq!((now.cpu_time(), now.private_memory()), (None, None), "it has exited");
    }

    #[test]
    fn forged_work_counts_do_not_overflow() {
        let forged = WorkerStatus { work_in_progress: u64::MAX, ..worker(1, Duration::ZERO) };
        let workers = vec![forged.clone(), forged];
        let pool = PoolStatus { name: "", wanted: 2, ready: 2, restarts: 0, workers, listeners: Vec::new() };
        assert_eq!(pool.work_in_progress(), u64::MAX);
    }
}
