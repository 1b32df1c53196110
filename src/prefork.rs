//! [`Prefork`], the builder of a service: every setting and its default.

mod check;
mod settings;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::check::check_process_limit;
pub(crate) use self::settings::{PoolSettings, ServiceSettings, UpgradeSettings};
use crate::backend::Work;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::handle::Handle;
use crate::listener::ListenConfig;
use crate::policy::{Delays, RestartPolicy};
use crate::report::Report;
use crate::start::start;
use crate::status::Status;
use crate::supervisor::{self, Finished, OnInterval, Supervised};
use crate::worker::{WorkResult, Worker};

/// The builder of a service: a pool of workers (processes or threads) and the parent that supervises them.
/// [`fork_processes`](crate::fork_processes) starts the same kind of service with only two settings.
///
/// ```no_run
/// use std::time::Duration;
/// use taskfork::{Prefork, Role};
///
/// fn main() -> taskfork::Result<taskfork::Report> {
///     match Prefork::new().workers(4).ready_timeout(Duration::from_secs(10)).start()? {
///         Role::Parent(report) => Ok(report),
///         Role::Worker(worker) => {
///             worker.enable_graceful_stop();
///             // Open connections, create an async runtime.
///             worker.ready();
///             while !worker.wait_for_stop(Some(Duration::from_secs(1))) {
///                 // Work for one second.
///             }
///             std::process::exit(0)
///         }
///         _ => unreachable!("start() returns in the parent or in a worker"),
///     }
/// }
/// ```
///
/// Three methods start the service:
///
/// - [`start`](Prefork::start) returns in the parent and in every worker.
/// - [`run`](Prefork::run) runs a closure in every worker and returns in the parent only.
/// - [`run_threads`](Prefork::run_threads) runs a closure in worker threads of this process, and returns after the
///   service has ended.
///
/// Workers are forked by default on Unix. To start forked workers, the program must have a single thread: see [fork
/// safety](crate#fork-safety). To start [spawned](Backend::Spawn) workers or worker threads, a program may have any
/// number of threads.
///
/// A service with several kinds of workers has several pools under one parent: a [`Supervisor`](crate::Supervisor) with
/// a `Prefork` for each pool. There, "the service" in the descriptions of the settings means the pool, except that the
/// failure of a pool stops the whole service unless the pool is [`optional`](Prefork::optional). The settings
/// [`name`](Prefork::name), [`on_event`](Prefork::on_event), [`on_interval`](Prefork::on_interval),
/// [`pid_file`](Prefork::pid_file), [`program`](Prefork::program), [`upgrade_timeout`](Prefork::upgrade_timeout),
/// `socket_activation` and `notify_systemd` concern the whole service. So they are settings of the `Supervisor`, and an
/// error on its pools.
#[must_use = "nothing happens before start() or run()"]
#[derive(Debug, Default)]
pub struct Prefork {
    pub(crate) pool: PoolSettings,
    pub(crate) service: ServiceSettings,
}

/// The result of [`Prefork::start`] and of [`Supervisor::start`](crate::Supervisor::start), which return in the parent
/// and in every worker.
#[derive(Debug)]
#[non_exhaustive]
pub enum Role {
    /// This process is a worker that has just been started.
    Worker(Worker),
    /// This process is the parent, and the service has ended.
    Parent(Report),
}

/// The way in which the parent starts worker processes. To start worker threads instead, call [`Prefork::run_threads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// Forks the parent. The default on Unix. An error on Windows, which has no fork.
    Fork,
    /// Starts the program's executable again for each worker. The default on Windows: see [the differences on
    /// Windows](crate#windows).
    ///
    /// A worker gets the arguments and the standard streams of the parent, and a copy of the parent's current
    /// environment. The worker starts in the directory in which the parent was started. Apart from the streams and the
    /// listeners, a worker and the parent share only some memory and a few descriptors, which [`Worker::ready`],
    /// [`Worker::heartbeat`] and [`Worker::stop_all`] use.
    ///
    /// Use this backend if the parent has several threads. Use it also if the parent has so much memory in use that a
    /// fork, which copies the page tables, would be slow.
    ///
    /// **Before the call** of [`start`](Prefork::start) or [`run`](Prefork::run). A worker runs `main` from its
    /// beginning, so **all code before this call runs again in each worker**. When the worker reaches the call, `start`
    /// returns at once, or `run` runs the closure at once. So the code before the call should do only what every
    /// process may do. This code may read the configuration, for example, but should not print a greeting. It should
    /// open sockets only by [`bind`](crate::bind), which returns the parent's socket in a worker. A process becomes a
    /// worker in the first call with this backend that it reaches. So the program must not make another such call
    /// before the call that starts the workers.
    ///
    /// Until a worker reaches the call, it behaves like any other program: SIGTERM kills it. On Linux and FreeBSD it
    /// gets SIGTERM when the parent ends. On other systems it keeps running until the call, and then exits. It inherits
    /// the parent's signal mask. In this mask the [signals that the parent handles](crate#signals) are not blocked.
    ///
    /// **An exit before the call** is a failure, even with status 0. It may mean that the program has started another
    /// process and left it running, as a daemon does. If no process of the worker has reached the call before, the
    /// service stops, and [`Report::reason`] is [`StartupFailed`](crate::Reason::StartupFailed). A worker that SIGTTIN
    /// added is removed instead. If an earlier process of the worker has reached the call, the parent restarts the
    /// worker after a delay, or keeps the old process if the exited one was a replacement.
    ///
    /// **A worker never becomes a parent.** Otherwise its workers would do the same, without end. The parent passes
    /// each worker a message that no other process can read or change. This crate reads the message before `main`, and
    /// records the pid. So it does not matter if the program changes its environment before the call. The environment
    /// variable `TASKFORK_WORKER` leads to the message. The variable alone has no effect, for example if a user sets it
    /// by hand. The call removes the variable. On Unix the variable stays if the process has more than one thread,
    /// because another thread may be reading the environment.
    ///
    /// The call returns an error, whose [`setting`](crate::Error::setting) is `backend`, in these cases:
    ///
    /// - The program has forked since it was started as a worker, and the call is made in the child. `daemon(3)` does
    ///   this.
    /// - The program has closed or replaced an inherited descriptor. A program that closes all unknown descriptors, as
    ///   daemons do, must close them after the call.
    /// - The program has executed itself again, or has started itself as another program, with or without its
    ///   environment.
    /// - This crate is in a library (`cdylib`, `dylib`) and not in the main program. A library can be loaded after
    ///   `main` has begun, when this crate can no longer record the start. This is an error in the parent too.
    ///
    /// The third case is detected by a mark that exec keeps and a fork inherits: the soft limit for file locks
    /// (`RLIMIT_LOCKS`, which Linux ignores), on other Unix systems the soft limit for resident memory (`RLIMIT_RSS`).
    /// The worker has this mark from its start to the call. The mark contains the pid of the worker and a hash of its
    /// executable file. So the worker's process is recognized whatever it executes, and another process if it runs the
    /// same file. A process that the worker has forked is not recognized if it executes another file, for example a
    /// newer version of the program. Programs that the worker starts before the call inherit the mark, which affects
    /// only this program. If such a program runs on for a long time and should later start this service anew, it must
    /// remove the mark first (`ulimit -S -x unlimited` on Linux). The mark cannot be set if the hard limit is not
    /// unlimited, or on other systems than Linux if the soft limit is not unlimited. Then, and on Windows, only the
    /// variable `TASKFORK_WORKER` shows that the program was started by a worker before the call. So a program that
    /// executes itself again without this variable becomes a parent there. It also becomes one on every system if it
    /// resets the limit before that.
    ///
    /// **Inherited descriptors** are close-on-exec before `main` begins. So programs that the worker starts before the
    /// call do not inherit them. If another thread of the parent starts a program while the parent starts a worker,
    /// that program also inherits the worker's descriptors, including the listeners.
    ///
    /// **Extra rights.** An executable with a set-user-ID bit or with file capabilities has more rights than the user
    /// that starts it. In such a program the call returns an error, in the parent too. The reason is that any user can
    /// set `TASKFORK_WORKER`, so the program cannot trust this variable.
    ///
    /// **The executable.** On Linux the parent keeps its executable open from the call on. So workers can be started
    /// after the file was deleted, replaced or renamed, and they run the same program as the parent. Without `/proc`,
    /// and on other systems, the file must still be at its path. Otherwise the parent cannot start a worker, and the
    /// error names the file. A file that can no longer be executed, or a start directory that was deleted or can no
    /// longer be entered, is an error on every system. The running workers go on. The parent tries again after a delay,
    /// as after any restart that the system refuses.
    ///
    /// A worker gets the arguments that the parent got from the system, even if the parent has overwritten them with a
    /// title. A program that was started as an argument of the dynamic linker (`ld.so program`) is started in the same
    /// way again. A Unix system other than Linux, or Linux without `/proc`, has only the arguments of `main`.
    Spawn,
}

impl Role {
    pub(crate) fn of(supervised: Supervised) -> Result<Role> {
        match supervised {
            Supervised::Worker(worker) => Ok(Role::Worker(worker)),
            Supervised::Parent(finished) => Ok(Role::Parent(Finished::report(*finished)?)),
        }
    }
}

impl Prefork {
    /// Returns a builder with the default settings: one worker per CPU, and no limit on the number of restarts.
    pub fn new() -> Prefork {
        Prefork::default()
    }

    /// Sets the name of the service, and names its processes: the parent is `web`, and worker 3 is `web/3`. Default:
    /// the processes keep the names that they have, which is the name of the program's file.
    ///
    /// On Linux this is the name of the main thread (`PR_SET_NAME`, prctl(2)). Each process of a worker has the
    /// worker's name, from its start on. A [spawned](Backend::Spawn) worker has the name from the call on. When the
    /// service has ended, the parent has its previous name again. Worker [threads](Prefork::run_threads) keep their own
    /// names, such as `worker-3.0`.
    ///
    /// | tool | shows the name |
    /// |---|---|
    /// | `ps -o comm`, `ps -e`, `ps -C web`, `pstree` | yes |
    /// | `top`, `htop` (if its setup selects the column `COMM`) | yes |
    /// | `pgrep web` (all processes), `pgrep -x web` (the parent), `pgrep -x web/3` | yes |
    /// | `/proc/PID/comm`, `/proc/PID/stat`, the kernel's messages, for example about an out-of-memory kill | yes |
    /// | `ps aux`, `ps -ef`, `pgrep -f`, `top -c`, `systemctl status`, `/proc/PID/cmdline` | no, they show the arguments |
    ///
    /// The kernel keeps 15 bytes. A longer name loses its beginning, so that the id of the worker remains:
    /// `payment-service/12` becomes `ment-service/12`. A thread that a process starts inherits the name of the thread
    /// that has started it, unless the program names it.
    ///
    /// On FreeBSD the name replaces the arguments in the output of ps(1) and top(1) (setproctitle(3)), and is not cut.
    /// On macOS and Windows the name has no effect on the processes.
    ///
    /// An empty name, and a name with `/` or a control character, is an error of [`start`](Prefork::start). If the
    /// system refuses the name, the process logs a warning and keeps its old name.
    pub fn name(mut self, name: impl Into<String>) -> Prefork {
        self.service.name = Some(name.into());
        self
    }

    /// Sets the number of workers. The default is 0, which means one worker per CPU that this process may use, but at
    /// most [`max_workers`](Prefork::max_workers). The number of usable CPUs depends on the CPU affinity of the process
    /// and on the CPU quota of its cgroup.
    pub fn workers(mut self, workers: usize) -> Prefork {
        self.pool.config.workers = workers;
        self
    }

    /// Sets the largest number of workers. SIGTTIN adds a worker only while there are fewer than `max` workers, and the
    /// parent [reports](Event::ScalingLimited) a request for more. So every [`Worker::id`] is less than `max`. `max`
    /// must be at least the number of [`workers`](Prefork::workers). Default: no limit.
    pub fn max_workers(mut self, max: usize) -> Prefork {
        self.pool.config.max_workers = max;
        self
    }

    /// Sets the largest number of restarts after failures, counted over all workers. All restarts since the start of
    /// the service count, or only recent restarts if a [`restart_window`](Prefork::restart_window) is set. If a worker
    /// needs one more restart, the parent stops the service, and [`Report::reason`] is
    /// [`RestartLimitReached`](crate::Reason::RestartLimitReached). Default: no limit. (`fork_processes` has a limit of
    /// 100, as in Tornado.)
    ///
    /// Most services need no limit. With a limit, a database that is away for a few seconds can end the service, and so
    /// can a client that sends a request which crashes the worker, if the client repeats the request. Without a limit,
    /// two rules keep a worker that fails again and again from harming the machine or going unnoticed:
    ///
    /// - The parent delays the restarts ([`restart_backoff`](Prefork::restart_backoff)).
    /// - A service that cannot start ends with a [startup failure](crate::Reason::StartupFailed). With a
    ///   [`ready_timeout`](Prefork::ready_timeout), one failure before the first readiness of a worker suffices.
    ///   Without it, ten failures of one worker in a row suffice, but only until any process has lived for 10 s.
    ///
    /// Restarts after normal exits ([`RestartReason`](crate::RestartReason)) and replacements never count. For a
    /// service with a limit that runs for months, set a [`restart_window`](Prefork::restart_window). Otherwise restarts
    /// from months ago still count.
    pub fn max_restarts(mut self, max: u32) -> Prefork {
        self.pool.config.max_restarts = Some(max);
        self
    }

    /// Makes [`max_restarts`](Prefork::max_restarts) count only the restarts within the last `window`, as Erlang's
    /// supervisors do. Default: all restarts since the start of the service count. A window without `max_restarts` is
    /// an error, because there is nothing that it could limit.
    pub fn restart_window(mut self, window: Duration) -> Prefork {
        self.pool.config.restart_window = Some(window);
        self
    }

    /// Sets which kinds of exit make the parent restart a worker. Default: [`RestartPolicy::OnFailure`].
    ///
    /// With the default, the parent does not restart a worker that exits with status 0 by itself. But the parent
    /// restarts a worker that has enabled the [graceful stop](Worker#stopping) and exits with status 0 because
    /// another process has sent SIGTERM to it, for example kill(1). Such a restart does not count towards the restart
    /// limit. It follows at once if the process lived for at least a second, and otherwise after the
    /// [backoff](Prefork::restart_backoff).
    pub fn restart_policy(mut self, policy: RestartPolicy) -> Prefork {
        self.pool.config.restart_policy = policy;
        self
    }

    /// Sets the first and the longest delay before a worker that keeps failing is restarted. Default: 10 ms and 1 s.
    ///
    /// After its first failure, a worker is restarted at once. After each further failure, the parent delays the
    /// restart if the process lived for less than a second. The delay is `first` at first, doubles with each failure,
    /// and never exceeds `max`. The parent waits for a random time between half of this delay and the whole delay. A
    /// process that has lived for 10 s resets the delay: after its exit the worker is restarted at once, and the next
    /// delay is `first` again.
    ///
    /// After a normal exit that leads to a restart ([`restart_policy`](Prefork::restart_policy)), the parent waits too
    /// if the process lived for less than a second, even after the first such exit.
    pub fn restart_backoff(mut self, first: Duration, max: Duration) -> Prefork {
        self.pool.config.delays = Delays { first, max };
        self
    }

    /// Adds a fatal exit status. If a worker exits with this status, the parent does not restart the worker and stops
    /// the whole service. Then [`Report::reason`] is [`StartupFailed`](crate::Reason::StartupFailed). Use a fatal exit
    /// status for failures that a restart cannot fix, such as a bad configuration. Default: none.
    ///
    /// The status must be between 1 and 255 on Unix. On Windows it can be any number except 0. A replacement that exits
    /// with a fatal status before it is ready does not stop the service as long as its old process serves: the old
    /// process goes on. With [`max_surge(0)`](Prefork::max_surge) the old process has exited before, so the service
    /// stops.
    pub fn fatal_exit_code(mut self, code: i32) -> Prefork {
        self.pool.config.fatal_exit_codes.push(code);
        self
    }

    /// Sets how long a worker has to exit after a stop request. After this time the parent sends SIGKILL. When the
    /// service stops, the parent sends the request to all workers at once, so the time ends for all of them at once. In
    /// a rolling restart, the time of each worker begins with its own stop request. Default: 30 s.
    ///
    /// If the parent itself was paused or starved, it gives the workers the same time once more, because they may have
    /// been paused too (for example by SIGSTOP to all processes, or by a frozen cgroup). The parent does so if its wait
    /// was interrupted after the stop request, but not by [its signals](crate#signals), or if it wakes up late by a
    /// tenth of the timeout or by 0.1 s, whichever is less. The same holds for the 2 s of a quick stop, for the
    /// [`abort_timeout`](Prefork::abort_timeout), for the [`ready_timeout`](Prefork::ready_timeout), and for the time
    /// that a removed worker has to serve its own queue. A second stop request kills at once nevertheless.
    ///
    /// If the parent itself is killed, a worker that has enabled the [graceful stop](crate::Worker#stopping) has the
    /// same time to exit, from the death of the parent on. On Windows it has no time.
    ///
    /// A process that does not exit within 10 s after SIGKILL is blocked inside the kernel. The parent then
    /// [abandons](crate::Event::KillTimedOut) the process, so the stop does not wait for it any longer.
    pub fn graceful_timeout(mut self, timeout: Duration) -> Prefork {
        self.pool.config.graceful_timeout = timeout;
        self
    }

    /// Sets the longest time that a worker may take from its start to its call of [`Worker::ready`]. Default: no
    /// timeout. Without a timeout, a worker counts as ready as soon as it is started. But a replacement counts as ready
    /// only when it calls `Worker::ready`, or after one second.
    ///
    /// If a process fails before it is ready, or is not ready in time, the effect depends on the worker:
    ///
    /// | worker | effect |
    /// |---|---|
    /// | It was started with the service, and none of its processes was ever ready. | The service stops, because a restart would not help. [`Report::reason`] is [`StartupFailed`](crate::Reason::StartupFailed). |
    /// | An earlier process of it was ready. | The worker is restarted. A process that is late is killed first. |
    /// | The process is a replacement. | The replacement is killed if it still runs, and the old process stays. |
    /// | It was added by SIGTTIN, and none of its processes was ever ready. | The worker is removed, and the other workers go on. |
    ///
    /// An exit with status 0 counts as a failure here only if the process is a replacement, or with
    /// [`RestartPolicy::Always`]. If the parent itself was paused or starved, it gives the worker the same time once
    /// more: see [`graceful_timeout`](Prefork::graceful_timeout).
    pub fn ready_timeout(mut self, timeout: Duration) -> Prefork {
        self.pool.config.ready_timeout = Some(timeout);
        self
    }

    /// Sets the longest time that a worker may let pass between two calls of [`Worker::heartbeat`]. The first period
    /// begins when the worker is ready. Default: no timeout.
    ///
    /// The parent checks the heartbeats of all workers once per timeout. So it finds a hung worker between one and
    /// about two timeouts after the worker's last heartbeat. The parent then sends SIGABRT to the hung worker, so that
    /// the worker can write a core dump or stop in a debugger. After the [`abort_timeout`](Prefork::abort_timeout) the
    /// parent sends SIGKILL, which also kills a stopped process. Then the parent restarts the worker, except with
    /// [`RestartPolicy::Never`].
    ///
    /// A worker that sends no heartbeat does not always hang:
    ///
    /// - If the parent wakes up for a check late by half the timeout or more, then the parent itself or the whole
    ///   machine was stopped or had no CPU time. So the parent gives every worker one more timeout.
    /// - If the parent wakes up late by a tenth of the timeout, the parent or the machine may have been stopped. The
    ///   same is true if the parent's wait was interrupted, but not by [its signals](crate#signals). In these cases the
    ///   parent gives a worker without a heartbeat one more timeout, but only once.
    /// - The parent cannot recognize other causes, for example that only the workers were stopped. In such a case it
    ///   aborts a worker that does not hang. To make this less likely, choose a timeout several times as long as the
    ///   time between two heartbeats.
    pub fn heartbeat_timeout(mut self, timeout: Duration) -> Prefork {
        self.pool.config.heartbeat_timeout = Some(timeout);
        self
    }

    /// Sets how long a worker has to exit after SIGABRT, which the parent sends if a worker [sends no
    /// heartbeat](Prefork::heartbeat_timeout) in time. After this time the parent sends SIGKILL, which also ends a
    /// stopped process. Default: 1 s. Without a `heartbeat_timeout`, this setting has no effect.
    ///
    /// On Linux the parent does not cut off a core dump. While the kernel writes one, the parent delays SIGKILL, by at
    /// most a minute, whether the deadline is this one or the [`graceful_timeout`](Prefork::graceful_timeout). A second
    /// stop request kills at once. On other systems, choose a time in which the system can write the whole core dump.
    /// For worker threads this setting has no effect, because the parent abandons a hung thread at once.
    pub fn abort_timeout(mut self, timeout: Duration) -> Prefork {
        self.pool.config.abort_timeout = timeout;
        self
    }

    /// Sets how many workers may have a new process besides their old one while the parent replaces processes: in a
    /// [rolling restart](crate#rolling-restarts), or for another reason, such as
    /// [`max_lifetime`](Prefork::max_lifetime). The setting has the meaning that `maxSurge` has in Kubernetes. Default:
    /// 1.
    ///
    /// The parent starts the new process first. Once the new process is ready, the parent asks the old process to stop,
    /// and goes on with the next worker. It does not wait until the old process has exited. But a worker never has more
    /// than two processes, so a worker whose old process still runs is not replaced again. If the old processes take
    /// long to stop, a rolling restart of `n` workers can have up to `2 * n` processes.
    ///
    /// `0` means that **a worker never has two processes**: no process starts before the exit of the earlier process of
    /// its worker. This suits workers that own something exclusive by their id, such as a port, a file lock or a job.
    /// With `0`, [`max_unavailable`](Prefork::max_unavailable) must be at least 1. There are two exceptions, because
    /// the parent cannot end such a process or thread: a process that still exists 10 s after SIGKILL
    /// ([`Event::KillTimedOut`]), and a worker thread that does not return ([`Event::Stale`]).
    pub fn max_surge(mut self, max: usize) -> Prefork {
        self.pool.config.max_surge = max;
        self
    }

    /// Sets how many workers may have no ready process while the parent replaces processes. The setting has the meaning
    /// that `maxUnavailable` has in Kubernetes. Default: 0.
    ///
    /// If [`max_surge`](Prefork::max_surge) allows no further new process, the parent asks an old process to stop
    /// first, and starts the new process after the exit of the old one. The next such worker follows once the new
    /// process is ready. Connections at the worker's [own socket](ListenConfig::per_worker) wait for the new process.
    /// The parent begins with a further worker only while fewer than `max` workers have no ready process. Workers count
    /// that have none for another reason, such as a restart. So at least [`workers`](Prefork::workers) less `max`
    /// workers stay ready, unless some of them fail.
    ///
    /// With both settings above 0, up to `max_surge + max_unavailable` workers are replaced at the same time, and
    /// `max_surge` is used first.
    ///
    /// If the new process fails before it is ready, the worker is restarted as after any other failure. A rolling
    /// restart ends then, and the remaining old processes stay ([`Event::RollingRestartAborted`]).
    pub fn max_unavailable(mut self, max: usize) -> Prefork {
        self.pool.config.max_unavailable = max;
        self
    }

    /// Sets the age at which the parent replaces a process. The parent proceeds as in a rolling restart: by default it
    /// replaces one process at a time, and stops the old process only when the replacement is ready. Default: no limit.
    ///
    /// For each process the parent chooses a random age between three quarters of `lifetime` and the whole `lifetime`,
    /// so that workers that were started together are not replaced together. A process that has reached its age keeps
    /// serving until its turn comes. If a replacement fails, the old process stays for one more lifetime. With
    /// [`max_surge(0)`](Prefork::max_surge), the old process has already exited then, and the worker is restarted.
    pub fn max_lifetime(mut self, lifetime: Duration) -> Prefork {
        self.pool.config.max_lifetime = Some(lifetime);
        self
    }

    /// Sets the number of units of work ([`Worker::begin_work`]) after which the parent replaces a process. The parent
    /// proceeds as with [`max_lifetime`](Prefork::max_lifetime): by default it replaces one process at a time, and
    /// stops the old process only when the replacement is ready. The replacement does not count as a restart. Default:
    /// no limit.
    ///
    /// For each process the parent chooses a random number between three quarters of `max` and `max`, so that workers
    /// that were started together are not replaced together. A process that has completed this number keeps serving
    /// until its turn comes. A worker is replaced at most about once per second, however small `max` is. If a
    /// replacement fails, the old process stays, and the parent tries again after 10 s. If a process that has completed
    /// its number exits with status 0 before its turn, it is restarted, and this restart does not count
    /// ([`RestartReason::Requests`](crate::RestartReason::Requests)). Only with
    /// [`RestartPolicy::Never`](crate::RestartPolicy::Never) it is not restarted.
    ///
    /// A unit that ends by a panic counts as well. Without calls of `begin_work`, the setting has no effect.
    ///
    /// # Errors
    ///
    /// The start fails if `max` is 0.
    pub fn max_requests(mut self, max: u64) -> Prefork {
        self.pool.config.max_requests = Some(max);
        self
    }

    /// Sets the private memory, in bytes, above which the parent replaces a process. The parent proceeds as with
    /// [`max_requests`](Prefork::max_requests). Default: no limit.
    ///
    /// Once per second, the parent reads how much memory each process uses. If the readings of the pool would take more
    /// than 1 % of the parent's time, it reads less often. So a process that grows fast can exceed the limit by far: to
    /// protect the machine, also limit the memory of the cgroup. A process that has exceeded the limit once is
    /// replaced, even if the process frees the memory again.
    ///
    /// *Private memory* is what the end of this process would free:
    ///
    /// - On Linux, anonymous memory that the process does not share, such as its heap, and its swapped memory. Memory
    ///   that a forked worker still shares with the parent does not count, and neither do files that the process maps.
    ///   The parent reads `status` in `/proc`, and `smaps_rollup` only for processes that `status` shows to be above
    ///   the limit. If the workers have another [user](Prefork::user), the parent needs the capability `CAP_SYS_PTRACE`
    ///   for this, or, with newer kernels, `CAP_PERFMON`. Containers have neither by default. Without it, the parent
    ///   logs a warning and does not replace the process.
    /// - On macOS, the footprint of the process.
    /// - On FreeBSD, the resident memory of the process, which includes memory that it shares with the parent.
    /// - On Windows, the private bytes of the process, which it has allocated even if it does not use them.
    ///
    /// # Errors
    ///
    /// The start fails if `bytes` is 0, if the workers are threads, because they share their memory with the parent, or
    /// if the system does not show the memory of a process, for example on Linux without `/proc`.
    pub fn max_memory(mut self, bytes: u64) -> Prefork {
        self.pool.config.max_memory = Some(bytes);
        self
    }

    /// Lets the other pools of a [`Supervisor`](crate::Supervisor) go on if this pool fails. Default: the failure of a
    /// pool stops the service. If this `Prefork` is used alone, the setting has no effect.
    ///
    /// A pool fails if it reaches its [restart limit](Prefork::max_restarts), has a [startup
    /// failure](crate::Reason::StartupFailed), or if the system refuses the first start of one of its workers
    /// ([`Reason::StartRefused`](crate::Reason::StartRefused)). The parent then stops the other workers of the pool,
    /// closes its listeners, logs an error and reports [`Event::PoolEnded`]. The pool is not started again.
    ///
    /// The failure of an optional pool does not count in [`Report::is_success`], unless no pool at all has ended
    /// normally. An invalid setting, or a listener that cannot be opened, is an error of the call nevertheless, because
    /// nothing has started yet.
    pub fn optional(mut self) -> Prefork {
        self.pool.optional = true;
        self
    }

    /// Adds a socket that the parent opens before it starts the workers, and passes to all workers, whether they are
    /// forked, spawned or threads. `on` is an address such as `"127.0.0.1:8000"`, or another value that converts to a
    /// [`ListenConfig`]. Each call adds one more socket. Default: none.
    ///
    /// A worker gets the socket from [`Worker::tcp`], [`Worker::udp`], `Worker::unix` (on Unix) or
    /// [`Worker::listeners`]. The socket is [non-blocking](crate::Listener#the-socket-is-non-blocking) in all workers,
    /// also if the program has passed a blocking socket. [`Listener::accept`](crate::Listener::accept) waits for a
    /// client.
    ///
    /// If the port is 0, the system chooses a port when the parent binds the socket. All workers use this port, and
    /// [`Event::Listening`] reports it. While a worker is restarted, new connections wait in the socket's queue. Only
    /// connections that the worker had already accepted are lost.
    ///
    /// If the address is in use, the parent logs a warning and tries again for up to 3 s. The reason is that the
    /// workers of a killed parent keep the address in use for as long as they drain. The parent handles no signals
    /// meanwhile, so SIGTERM has the effect that the program has chosen: by default, it ends the program. If another
    /// listener of the service has the same address, the call returns an error at once.
    ///
    /// All workers share a socket, so no worker may call shutdown(2) on it. On Linux, the parent finds this when it
    /// starts a worker, and reports [`Event::ListenerShutDown`].
    ///
    /// The first worker to accept a connection gets it, so the load is not always balanced. If workers sleep in
    /// epoll_wait(2) or in [`Listener::accept`](crate::Listener::accept), which calls poll(2), Linux wakes all of them
    /// for each connection. With
    /// `EPOLLEXCLUSIVE`, Linux mostly wakes the worker that began to wait last, and this worker gets most connections.
    /// To spread the load, use [`ListenConfig::per_worker`], which opens one socket for each worker.
    pub fn listen(mut self, on: impl Into<ListenConfig>) -> Prefork {
        self.pool.listens.push(on.into());
        self
    }

    /// Uses sockets that systemd has opened and passed to this program. This is systemd's socket activation: see
    /// sd_listen_fds(3). The environment variables `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` describe the
    /// sockets. Default: no. Unix only.
    ///
    /// Each socket that systemd passes is used for one of the listeners that [`listen`](Prefork::listen) adds. If a
    /// listener has the same [name](ListenConfig::name) as the socket, this listener gets the socket. The other sockets
    /// go to the remaining listeners in order. Listeners without a socket from systemd are bound as usual. A
    /// `LISTEN_PID` that is the pid of another process means that the sockets are not for this process. Then they are
    /// ignored. If `LISTEN_PID` is not set, the sockets are used.
    ///
    /// # Errors
    ///
    /// These cases are errors of [`start`](Prefork::start), [`run`](Prefork::run) and
    /// [`run_threads`](Prefork::run_threads). The passed sockets then stay open.
    ///
    /// - `LISTEN_FDS` is not a number, or there are more sockets than listeners. [`Error::setting`] is
    ///   `socket_activation`.
    /// - A socket is neither a TCP socket, nor a UDP socket, nor a Unix stream socket.
    /// - A TCP or Unix socket does not listen. With `Accept=yes`, systemd passes a connection instead. Set `Accept=no`.
    /// - The listener for a socket has [one socket for each worker](ListenConfig::per_worker).
    ///
    /// # The environment
    ///
    /// The parent removes the variables, so that no other program mistakes the sockets for its own. If the process has
    /// more than one thread, the variables stay, because other threads may be reading the environment. Other programs
    /// ignore variables that stay, because `LISTEN_PID` is not their pid. A process uses its passed sockets once: if it
    /// starts a second service later, that service binds its own sockets.
    #[cfg(unix)]
    pub fn socket_activation(mut self) -> Prefork {
        self.service.is_activated = true;
        self
    }

    /// Pins each worker to one CPU. Default: no. Linux only. On other systems this setting is an error.
    ///
    /// When the service starts, the parent lists the CPUs that the calling thread may use, according to its CPU
    /// affinity and the cpuset of its cgroup. Worker 0 gets the first CPU of this list, worker 1 the second, and so on.
    /// If there are more workers than CPUs, the list is used again from its beginning. Each pool of a
    /// [`Supervisor`](crate::Supervisor) begins with the first CPU, so worker 0 of every pinned pool has the same CPU.
    ///
    /// A worker pins itself before it does anything else, so threads that it starts later are pinned too. But threads
    /// that a [spawned](Backend::Spawn) worker starts before the call of [`start`](Prefork::start) or
    /// [`run`](Prefork::run) are not pinned. If the worker may no longer use its CPU, it logs a warning and runs
    /// unpinned.
    pub fn pin_cpus(mut self) -> Prefork {
        self.pool.setup.pins_cpus = true;
        self
    }

    /// Makes the workers run as this user. A worker cannot change back to the parent's user. Default: the parent's
    /// user. Unix only. [`run_threads`](Prefork::run_threads) refuses this setting, because all threads of a process
    /// have the same user.
    ///
    /// The parent keeps its own user. So it can still bind port 80 for the workers, and can stop and replace the
    /// workers as usual. A change of the user requires that the parent runs as root. On Linux, the capabilities
    /// `CAP_SETUID`, `CAP_SETGID` and `CAP_KILL` suffice, and root needs them too. The parent requires `CAP_KILL`
    /// because it sends signals to workers of another user. Without these rights, the parent accepts only its own user
    /// and group, and the workers keep the parent's supplementary groups.
    ///
    /// **Names.** `name` is the name of a user or, if no user has that name, a user id. A worker gets that user's
    /// group, or the group that [`group`](Prefork::group) sets. It also gets the user's supplementary groups, and does
    /// not keep those of the parent. If the system's user database has no entry for a user id, the program must set a
    /// `group`, and the worker gets no other groups. The parent looks up the user and the groups once, before it starts
    /// the first worker. If the user database changes later, restarted workers still use the old ids.
    ///
    /// **Checks.** The parent returns an error with `user` or `group` as its [`setting`](crate::Error::setting), and
    /// starts nothing, in these cases:
    ///
    /// - There is no such user or group.
    /// - The parent lacks the right to change the user or the groups of its workers.
    /// - On Linux: the user or a group has no mapping in the parent's user namespace, or this namespace forbids
    ///   setgroups(2) (user_namespaces(7)). An example is a container that maps a single user.
    /// - On Linux: the system refuses setresuid(2) or setresgid(2), for example because of a seccomp filter.
    ///
    /// **How a worker changes its user.** If [`pin_cpus`](Prefork::pin_cpus) is set, a worker pins itself first. Then,
    /// before it does anything else, it changes its user in these steps:
    ///
    /// 1. On Linux, the worker replaces its session keyring (keyrings(7)) by a new and empty one. If the system has no
    ///    keyrings, or forbids every use of them, the worker skips this step.
    /// 2. The worker calls setgroups(2), setresgid(2) and setresuid(2). On systems without setresgid(2) and
    ///    setresuid(2), it calls setgid(2) and setuid(2) instead. On Linux it skips a call that would change nothing,
    ///    because the system may refuse even such a call.
    /// 3. The worker checks that its real, effective and saved ids have the requested values.
    /// 4. On Linux, the worker gives up all capabilities: the effective, permitted, inheritable and ambient sets are
    ///    empty afterwards, even if the program has set `PR_SET_KEEPCAPS` (prctl(2)).
    /// 5. The worker tries to become root again and checks that this fails.
    /// 6. On Linux, a spawned worker with further threads checks that each thread has the new user
    ///    and group and no capability. Such a thread keeps capabilities if it has set `PR_SET_KEEPCAPS`, and inherits
    ///    the inheritable set of the parent. The worker repeats this check for up to 1 s, because a thread that is
    ///    exiting keeps its rights until it is gone.
    ///
    /// A worker that runs as root, because no user or the user root is set, skips the steps 1, 4, 5 and 6.
    ///
    /// If a step fails, the worker logs the name of the failed call and exits with status 1. Of the program's code,
    /// only the logger runs in this case. Functions that are registered with atexit(3) do not run, and buffered output
    /// is not written. The parent treats this exit like any other failure. If a
    /// [`ready_timeout`](Prefork::ready_timeout) is set and no process of the worker was ever ready, the service stops.
    /// Otherwise the parent restarts the worker, as after any failure.
    ///
    /// **What does not change.** The workers still get SIGTERM when the parent ends. They keep the environment
    /// (including `HOME`), the working directory, the resource limits, the securebits and all open descriptors. In a
    /// spawned worker, a thread that the program has started before the call keeps the parent's session keyring,
    /// because Linux can replace it only for the calling thread. The worker logs a warning in this case. To avoid it,
    /// start threads after the call.
    ///
    /// **Files and core dumps.** A worker opens files as the new user, for example when it reopens a log. By default,
    /// Linux writes no core dump of a process that has changed its user, even if the process [is
    /// aborted](Prefork::heartbeat_timeout). The sysctl `fs.suid_dumpable` allows core dumps for the whole system.
    /// prctl(2) with `PR_SET_DUMPABLE` allows them for the worker that makes this call.
    ///
    /// With [`Backend::Spawn`], a worker runs the code before the call of [`start`](Prefork::start) or
    /// [`run`](Prefork::run) as root. On Linux the call must be made in the main thread, in the parent and in the
    /// worker. Otherwise it returns an error, because the change of user would clear the setting by which the worker
    /// gets SIGTERM when its parent ends (`PR_SET_PDEATHSIG` of the main thread, prctl(2)).
    #[cfg(unix)]
    pub fn user(mut self, name: impl Into<String>) -> Prefork {
        self.pool.setup.user = Some(name.into());
        self
    }

    /// Sets the group of the workers. `name` is the name of a group or, if no group has that name, a group id. Default:
    /// the group of the workers' [`user`](Prefork::user), or the parent's group if no user is set. Unix only.
    ///
    /// If no `user` is set and the parent runs as root, the workers have this group and no supplementary groups. But
    /// such workers still run as root, so they can change their group back. The parent makes the same
    /// [checks](Prefork::user) as for a user.
    #[cfg(unix)]
    pub fn group(mut self, name: impl Into<String>) -> Prefork {
        self.pool.setup.group = Some(name.into());
        self
    }

    /// Makes the parent send the state of the service to systemd: see sd_notify(3). The environment variable
    /// `NOTIFY_SOCKET` contains the address of systemd's socket. If the variable is not set, the parent sends nothing.
    /// Default: no. Unix only.
    ///
    /// | message | sent when |
    /// |---|---|
    /// | `READY=1` | All workers are ready or, without a [`ready_timeout`](Prefork::ready_timeout), started. |
    /// | `RELOADING=1`, then `READY=1` | A rolling restart (on SIGHUP) or an upgrade (on SIGUSR2) begins, and then ends or is aborted. |
    /// | `STOPPING=1` | The parent begins to stop the workers, for whatever reason. |
    /// | `WATCHDOG=1` | Twice per `WatchdogSec`, until the stop. |
    ///
    /// Each message except `WATCHDOG=1` has a status line (`STATUS=`), which `systemctl status` shows. The parent also
    /// sends a new status line when a worker is added or removed. If the service stops because of a failure, the status
    /// line of `STOPPING=1` names the failure.
    ///
    /// ```ini
    /// [Service]
    /// # With systemd before 253, use Type=notify and ExecReload=kill -HUP $MAINPID instead.
    /// Type=notify-reload
    /// ExecStart=/usr/local/bin/service
    /// WatchdogSec=30
    /// KillMode=mixed
    /// TimeoutStopSec=40
    /// ```
    ///
    /// - With `KillMode=mixed`, systemd sends SIGTERM only to the parent, and the parent stops the workers gracefully.
    ///   By default systemd sends SIGTERM to all processes at once. Then a worker may exit before the parent has
    ///   received its own SIGTERM, and the parent takes this exit for a failure.
    /// - `TimeoutStopSec` must be longer than the [`graceful_timeout`](Prefork::graceful_timeout). Otherwise systemd
    ///   kills workers before this timeout has passed.
    /// - `TimeoutStartSec` also limits the duration of a reload. So it must be longer than a rolling restart of all
    ///   workers takes.
    /// - With `ReloadSignal=SIGUSR2`, `systemctl reload` upgrades the service to the program on disk. The parent keeps
    ///   its pid, so systemd notices no restart. The status line of the last `READY=1` is the result: `Upgrade done`,
    ///   or `Upgrade aborted` with the reason.
    /// - With `WatchdogSec`, the parent wakes up twice in that time to send `WATCHDOG=1`. These messages show only that
    ///   the parent itself works. To detect workers that hang, set a [`heartbeat_timeout`](Prefork::heartbeat_timeout).
    ///
    /// When the service starts, the parent removes `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` from its
    /// environment. So neither the workers nor programs that they start can send messages to systemd as the service. If
    /// the process has more than one thread, the variables stay, because other threads may be reading the environment.
    ///
    /// The parent never waits until systemd has received a message. If it cannot send a message, the parent logs a
    /// warning, once for each kind of error, and the service goes on. If the receive queue of systemd's socket is full,
    /// the parent keeps the messages in order and tries again every 100 ms. (All services share this queue. On Linux
    /// its length is `net.unix.max_dgram_qlen`.) If several rolling restarts or status lines are waiting to be sent,
    /// the parent sends only the last of them. When all workers have exited, the parent drops the messages that it has
    /// not sent yet.
    #[cfg(unix)]
    pub fn notify_systemd(mut self) -> Prefork {
        self.service.notifies = true;
        self
    }

    /// Makes the parent write its pid to this file, for scripts that send signals to the parent: `kill -HUP $(cat
    /// /run/web.pid)`. The file contains the pid and a line break, and every user may read it (mode 0644). Default: no
    /// file. Service managers need none, because they know the pid.
    ///
    /// The parent writes the file in [`start`](Prefork::start), before it opens a listener. It removes the file when
    /// the service has ended, before `start` returns. The workers do not touch the file. The directory must exist, and
    /// the parent must be allowed to create files there. A relative path begins at the directory in which `start` is
    /// called.
    ///
    /// - **One service per file.** While the parent runs, it holds a lock on the file. If another process holds the
    ///   lock, `start` returns an error that names the pid of this process. So the file also prevents that a service is
    ///   started twice by mistake.
    /// - **A file that was left behind** by a killed parent is replaced, also if another process has the pid in it by
    ///   now: the system releases the lock when the parent exits, even by SIGKILL. Workers that outlive the parent do
    ///   not hold the lock.
    /// - **Other files.** A file that contains anything else than a pid, a directory and a symbolic link at the path
    ///   are an error, and stay as they are.
    /// - **Reading.** Another process sees the old file or the whole new file, never a part. For a moment during the
    ///   start and the end of the service, the directory contains two further files, `.NAME.new` and `.NAME.taskfork`.
    /// - **In the parent, the program must not open the file.** The lock is a record lock of fcntl(2), and the system
    ///   releases it when the process closes any descriptor of the file. Other processes may open and close the file.
    ///
    /// In a pid namespace, for example a container, the file contains the pid as processes in the namespace see it.
    ///
    /// On Windows, the parent keeps the file open instead of locking it, and writes to the existing file: a reader may
    /// see an empty file for a moment. While another process has the file open, the parent cannot remove it.
    ///
    /// In every case of an error, [`Error::setting`] is `pid_file`.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Prefork {
        self.service.pid_file = Some(path.into());
        self
    }

    /// Sets the path of the program that an upgrade ([`Handle::upgrade`], SIGUSR2) executes. Linux only; it has no
    /// effect on other systems.
    ///
    /// Default: the path by which this program was started, if it led to this program's file at that time. Symbolic
    /// links in it are followed again at each upgrade. So if the program was started by `/srv/current/bin/web`, and
    /// `current` leads to another release by now, the upgrade executes the program of that release. If the program does
    /// not know this path, an upgrade is refused with this reason unless `program` is set.
    ///
    /// A relative path begins at the directory in which the program was started. The file is opened at each upgrade, so
    /// it need not exist before. The new program gets the arguments and the environment with which this program was
    /// started. The setting of the new program counts for the next upgrade.
    ///
    /// An empty path is an error of [`start`](Prefork::start).
    pub fn program(mut self, path: impl Into<PathBuf>) -> Prefork {
        self.service.upgrade.program = Some(path.into());
        self
    }

    /// Limits the time of an upgrade ([`Handle::upgrade`], SIGUSR2). Default: 60 s. Linux only; it has no effect on
    /// other systems.
    ///
    /// The timeout limits two parts of an upgrade, each by itself:
    ///
    /// - The trial, from the request until the parent executes the new program. It includes the end of replacements
    ///   that are in progress, the start of the new program up to its call, and the readiness of its trial workers. If
    ///   the time has passed, the upgrade is aborted, and nothing has changed.
    /// - The way of the new program from its start as the parent to its call. Nothing supervises the workers in this
    ///   time. If the time has passed, the parent is killed, and with it the service ends: its workers get SIGTERM. The
    ///   trial has taken the same way before, so this happens only if the program behaves differently the second time.
    ///
    /// The timeout does not limit the rolling restart that follows, because a drain may take long.
    ///
    /// A timeout of less than a millisecond or more than an hour is an error of [`start`](Prefork::start).
    pub fn upgrade_timeout(mut self, timeout: Duration) -> Prefork {
        self.service.upgrade.timeout = Some(timeout);
        self
    }

    /// Sets how the parent starts worker processes. Default: [`Backend::Fork`] on Unix, [`Backend::Spawn`] on Windows.
    /// [`run_threads`](Prefork::run_threads) refuses this setting, because it starts no processes.
    pub fn backend(mut self, backend: Backend) -> Prefork {
        self.pool.backend = Some(backend);
        self
    }

    /// Sets a callback that the parent calls for every event, after it has written the event to the log. If a restart
    /// follows an exit, one log line reports both events. The parent writes this line when it schedules the restart,
    /// after it has called the callback for the exit. A second call of `on_event` replaces the callback. Default: no
    /// callback.
    ///
    /// - While the callback runs, the parent does nothing else.
    /// - If workers are forked, the callback must not start a thread, because the parent could then fork no more
    ///   workers.
    /// - If workers are forked, the parent blocks the [signals that it handles](crate#signals). A program that the
    ///   callback starts inherits the blocked signals. So SIGTERM does not end this program, unless the callback
    ///   unblocks SIGTERM for it, for example with `pre_exec`. With other kinds of workers, the parent blocks only
    ///   SIGTTIN and SIGTTOU.
    /// - If the callback panics, the parent kills all workers, and the panic continues. Requests that the callback has
    ///   made through the handle have no effect then.
    ///
    /// The second argument is a [`Handle`], with which the callback can control the service, for example stop it. The
    /// callback can clone the handle and keep it.
    pub fn on_event(mut self, on_event: impl FnMut(&Event, &Handle) + 'static) -> Prefork {
        self.service.on_event = Some(Box::new(on_event));
        self
    }

    /// Sets a callback that the parent calls regularly with the [`Status`] of the service. Use it to publish metrics,
    /// or to [scale](crate::guide::autoscaling) the service. Default: no callback, and then the parent does not wake up
    /// for it. A second call of `on_interval` replaces the callback.
    ///
    /// - The first call comes one period after the start of the service, also if workers are still being started. The
    ///   calls continue during a stop, with [`ServiceState::Stopping`](crate::ServiceState::Stopping). A call in the
    ///   last moment of the service may find no process.
    /// - The calls are one period apart. If the parent or the callback is late by a period or more, the missed calls
    ///   are left out, and the next call comes a whole period later.
    /// - The parent calls the callback between two steps of its own work, never while another callback runs. While the
    ///   callback runs, the parent does nothing else. The other rules are those of [`on_event`](Prefork::on_event):
    ///   with forked workers, the callback must not start a thread, and the signals are blocked. If the callback
    ///   panics, the parent kills all workers, and the panic continues.
    /// - To create the status takes the parent about 1 µs per process, before each call.
    ///
    /// The second argument is a [`Handle`], with which the callback can control the service. The parent executes the
    /// requests after the callback has returned.
    ///
    /// A period of less than 1 ms or more than a year is an error of [`start`](Prefork::start).
    pub fn on_interval(mut self, period: Duration, on_interval: impl FnMut(&Status, &Handle) + 'static) -> Prefork {
        self.service.on_interval = Some(OnInterval { period, call: Box::new(on_interval) });
        self
    }

    /// Starts the workers. In each worker, returns a [`Worker`] at once. In the parent, returns a [`Report`] after the
    /// service has ended.
    ///
    /// A worker may return from `main` or exit in any other way. The parent considers only its exit status.
    ///
    /// # Errors
    ///
    /// Before this method returns an error in the parent, all workers have exited. The signal mask, the signal
    /// dispositions and the open descriptors are then the same as before the call. The errors are:
    ///
    /// - A setting is invalid. [`Error::setting`] names the setting. For example, a time is less than a millisecond or
    ///   more than a year, `max_workers` is less than `workers`, `max_surge` and `max_unavailable` are both 0, the
    ///   first restart delay is longer than the longest delay, there is a `restart_window` without `max_restarts`, a
    ///   fatal exit status is 0 or cannot occur on this system, or the system does not support the backend.
    /// - The [user](Prefork::user) or the [group](Prefork::group) does not exist, or the change to it requires root, or
    ///   the system cannot [pin](Prefork::pin_cpus) workers. [`Error::setting`] names the setting.
    /// - The [pid file](Prefork::pid_file) belongs to a process that runs, or cannot be written.
    /// - A [listener](Prefork::listen) cannot be opened. The text of the error names the listener's address. If the
    ///   listener cannot have [one socket for each worker](ListenConfig::per_worker), [`Error::setting`] is
    ///   `per_worker`.
    /// - The calling process or thread is itself a worker. If this worker then exits abnormally, its parent does not
    ///   restart it, because the next process would make the same call. Instead, the parent stops the service:
    ///   [`Reason::StartupFailed`](crate::Reason::StartupFailed).
    /// - This process already runs a service, with any backend. After that service has ended, the process can start
    ///   another one.
    /// - All other errors of [`fork_processes`](crate::fork_processes) are possible too, except that the restart limit
    ///   is reached: in this case this method returns a [`Report`].
    pub fn start(self) -> Result<Role> {
        Role::of(start(vec![self.pool], self.service, true, None)?)
    }

    /// Starts the workers and runs `work` in each worker. Returns only in the parent, after the service has ended.
    ///
    /// A worker exits when `work` returns or panics. The code after this call does not run in a worker. The exit status
    /// depends on `work`:
    ///
    /// | `work` | exit status |
    /// |---|---|
    /// | returns `Ok` | 0 |
    /// | returns an error | 1. The error is [logged](crate#messages), with its sources, or printed if there is no logger. |
    /// | panics | 101. The panic is printed as usual. |
    ///
    /// `work` may borrow local variables of the caller. Values that `work` owns are dropped when it returns.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`start`](Prefork::start).
    ///
    /// # Examples
    ///
    /// `work` can use values that the program has created before the call. In this example each worker uses its own
    /// listener. `max_workers` ensures that every worker id is a valid index into `listeners`:
    ///
    /// ```no_run
    /// use taskfork::{Prefork, Report, bind};
    ///
    /// fn main() -> taskfork::Result<Report> {
    ///     let listeners = [bind("127.0.0.1:8000")?, bind("127.0.0.1:8001")?, bind("127.0.0.1:8002")?];
    ///     Prefork::new().workers(2).max_workers(listeners.len()).run(|worker| {
    ///         let listener = &listeners[worker.id()];
    ///         // ..
    /// #       let _ = listener;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub fn run<F>(self, work: F) -> Result<Report>
    where
        F: FnOnce(Worker) -> WorkResult,
    {
        match self.start()? {
            Role::Parent(report) => Ok(report),
            Role::Worker(worker) => supervisor::run_and_exit(worker, work),
        }
    }

    /// Starts the workers as threads of this process and runs `work` in each thread. Returns after the service has
    /// ended.
    ///
    /// All threads share the values that `work` captures. `work` must be `'static`, because a thread cannot be killed
    /// and so may still run after this method has returned. The parent supervises threads like processes, with these
    /// differences:
    ///
    /// - **Exits.** If `work` returns an error, the thread's exit status is 1. If `work` panics, the status is 101. In
    ///   both cases [`Event::Failed`] has the message, and the other workers go on. But all workers end if the process
    ///   ends: by a call of [`exit`](std::process::exit), an abort or a stack overflow. With `panic = "abort"`, a panic
    ///   ends the process too.
    /// - **Stop requests.** A stop request does not interrupt a thread. The thread must check for the request by
    ///   [`Worker::stop_requested`], [`Worker::wait_for_stop`], [`Worker::stopped`] or `Worker::stop_fd` (on Unix).
    ///   Each thread must use its own [`Worker`] for this.
    /// - **Stale threads.** A thread cannot be killed. In all cases in which the parent would kill a process, it
    ///   abandons a thread instead and reports [`Event::Stale`]. The cases are: the thread does not return within the
    ///   [`graceful_timeout`](Prefork::graceful_timeout), sends no [heartbeat](Prefork::heartbeat_timeout), is not
    ///   ready within the [`ready_timeout`](Prefork::ready_timeout), or still runs when the parent receives a second
    ///   stop request. The exit of an abandoned thread is [`Exit::Stale`](crate::Exit::Stale), which counts as a
    ///   failure, so the worker is restarted as usual. The parent also requests a stop of the abandoned thread, and
    ///   ignores its later calls of [`Worker::ready`], [`Worker::heartbeat`] and [`Worker::stop_all`].
    ///     - If the abandoned thread returns, the parent joins it and reports [`Event::Returned`].
    ///     - If the abandoned thread still runs when the service ends, [`Report::stale`] lists it. When the process
    ///       exits, it does not wait for this thread.
    /// - **Signals.** The worker threads block the [signals that the parent handles](crate#signals), except SIGUSR1 and
    ///   SIGCHLD. A program that a worker starts inherits the blocked signals. So SIGTERM does not end this program,
    ///   unless the worker unblocks SIGTERM for it, for example with `pre_exec`. SIGUSR1, SIGCHLD and all other signals
    ///   have the effect that the program has set up for them.
    /// - **Pid 1.** If the program is pid 1 of a container, it does not reap orphaned processes. So run an init program
    ///   as pid 1, which starts the program.
    /// - **Names.** [`Process::pid`](crate::Process::pid) of a worker thread is `None`. The thread's name consists of
    ///   the worker's id and generation, for example `worker-2.0`.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`start`](Prefork::start), except that the process may have other threads. In
    /// addition, the settings [`backend`](Prefork::backend), `user` and `group` are errors.
    pub fn run_threads<F>(self, work: F) -> Result<Report>
    where
        F: Fn(Worker) -> WorkResult + Send + Sync + 'static,
    {
        let work: Work = Arc::new(work);
        match start(vec![self.pool], self.service, true, Some(work))? {
            Supervised::Parent(finished) => Finished::report(*finished),
            Supervised::Worker(worker) => Err(Error::in_worker(worker.id())),
        }
    }

    /// Starts the workers for `fork_processes`. Returns the worker's id in each worker. In the parent, exits the
    /// process or returns an error.
    pub(crate) fn start_plain(mut self) -> Result<usize> {
        // As in Tornado, failures in a row only end the service if the restart limit is reached.
        self.pool.config.startup_failures = None;
        match start(vec![self.pool], self.service, false, None)? {
            Supervised::Worker(worker) => Ok(worker.id()),
            Supervised::Parent(finished) => match finished.exit()? {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_backends_are_refused() {
        let error = Prefork::new().backend(Backend::Spawn).run_threads(|_| Ok(())).expect_err("a refusal");
        assert_eq!(error.setting(), Some("backend"), "{error}");
        if cfg!(not(unix)) {
            let error = Prefork::new().backend(Backend::Fork).start().expect_err("a refusal");
            assert_eq!(error.setting(), Some("backend"), "{error}");
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[test]
    fn pin_cpus_is_refused_outside_linux() {
        let error = Prefork::new().workers(1).pin_cpus().start().expect_err("a refusal");
        assert_eq!(error.setting(), Some("pin_cpus"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn unknown_users_and_groups_are_refused() {
        let unknown = "nobody-of-this-name";
        let new = || Prefork::new().workers(1);
        for (setting, prefork) in [
            ("user", new().user(unknown)),
            ("user", new().user(unknown).group(unknown)),
            ("user", new().user(unknown).backend(Backend::Spawn)),
            ("user", new().user("4294967295")),
            ("group", new().group(unknown)),
            ("group", new().user("root").group(unknown).backend(Backend::Spawn)),
        ] {
            let error = prefork.start().expect_err("a refusal");
            assert_eq!(error.setting(), Some(setting), "{error}");
            assert_eq!(error.io_error().map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn run_threads_refuses_user_and_group() {
        for (setting, prefork) in [("user", Prefork::new().user("root")), ("group", Prefork::new().group("0"))] {
            let error = prefork.workers(1).run_threads(|_| Ok(())).expect_err("a refusal");
            assert_eq!(error.setting(), Some(setting), "{error}");
        }
    }
}
