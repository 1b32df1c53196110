//! All settings, with their defaults and their checks.

use std::fmt;
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::backend::{self, Work};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::listener::{ListenConfig, ListenerNames, Sockets};
use crate::policy::{Config, Delays, RestartPolicy};
use crate::report::Report;
use crate::setup::SetupConfig;
#[cfg(unix)]
use crate::supervisor::Systemd;
use crate::supervisor::{self, Finished, OnEvent, Supervised, SupervisorParts};
use crate::sys::{self, SupervisorLock, WorkerKind};
use crate::worker::{self, WorkResult, Worker};

/// A service that is configured with these methods and then started: [`fork_processes`](crate::fork_processes) with
/// every setting available.
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
///             // Open the connections, make the runtime.
///             worker.ready();
///             while !worker.wait_for_stop(Some(Duration::from_secs(1))) {
///                 // One second's work.
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
/// - [`run_threads`](Prefork::run_threads) does the same with threads as workers.
///
/// With forked workers, start the service before anything starts a thread: see [fork safety](crate#fork-safety). With
/// [spawned](Backend::Spawn) workers or worker threads, the program may have threads.
#[must_use = "nothing happens before start() or run()"]
pub struct Prefork {
    config: Config,
    /// `None` means the default.
    backend: Option<Backend>,
    on_event: Option<OnEvent>,
    listens: Vec<ListenConfig>,
    #[cfg(unix)]
    is_activated: bool,
    setup: SetupConfig,
    #[cfg(unix)]
    notifies: bool,
}

/// The side of the fork on which [`Prefork::start`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub enum Role {
    /// A worker that has just been started.
    Worker(Worker),
    /// The parent, after the service has ended.
    Parent(Report),
}

/// The way in which worker processes are started. Worker threads: [`Prefork::run_threads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// Forks the parent. The default on Unix. Refused on Windows, which has no fork.
    Fork,
    /// Starts this program again. The default on Windows, [where some things differ](crate#windows).
    ///
    /// A worker is started with the same arguments, in the directory in which the parent was started, with the same
    /// standard streams, and with the environment that the parent has at that moment. Apart from the streams and the
    /// listeners, it shares with the parent only what [`Worker::ready`], [`Worker::heartbeat`] and [`Worker::stop_all`]
    /// need.
    ///
    /// Use it if the parent has threads, or if it has touched so much memory that copying its page tables makes a fork
    /// slow.
    ///
    /// **Before the call.** A worker runs `main` from its beginning, so **everything that precedes the call runs again
    /// in each worker**. In a worker the call then returns at once. So do before the call only what every process may
    /// do: read the configuration, but do not bind the port or print a greeting. A worker returns from the first such
    /// call that it reaches, so no other call of this kind may precede it.
    ///
    /// Until the call, a worker is an ordinary program: it does not notice the end of its parent, and SIGTERM kills it.
    /// It inherits the parent's signal mask, in which the [signals that the parent handles](crate#signals) are not
    /// blocked.
    ///
    /// **Recognition.** A worker recognizes that it is one by the environment variable `TASKFORK_WORKER` together with
    /// memory that it inherits. The variable alone, set by hand or inherited by another program, has no effect. The
    /// call removes the variable, unless the process has more than one thread by then (on Windows in any case).
    ///
    /// **Inherited descriptors** must still be open at the call. A program that closes unknown descriptors, as daemons
    /// do, must do this after the call. A worker that finds them closed gets an error from the call. Programs that
    /// other threads of the parent start at the same moment as a worker inherit the worker's descriptors too, including
    /// the listeners.
    ///
    /// **Extra rights.** A program whose file gives it more rights than the user who starts it has (a set-user-ID bit,
    /// file capabilities) gets an error from the call, also as the parent. Any user may have set
    /// `TASKFORK_WORKER`, so such a program cannot trust it.
    ///
    /// **The executable** must still be the same file. If it was deleted or replaced since the start, or may no longer
    /// be executed, starts are refused, and the error names its path. They are tried again like any refused restart,
    /// and running workers go on. Starts are also refused if the directory in which the parent was started is gone or
    /// cannot be entered any more. Then the error names the directory.
    Spawn,
}

impl Prefork {
    /// Returns a service with the defaults: one worker per CPU, and at most 100 restarts of all workers together.
    pub fn new() -> Prefork {
        let config = Config {
            workers: 0,
            max_workers: usize::MAX,
            restart_policy: RestartPolicy::OnFailure,
            // The same as in Tornado.
            max_restarts: 100,
            restart_window: None,
            delays: Delays { first: Duration::from_millis(10), max: Duration::from_secs(1) },
            fatal_exit_codes: Vec::new(),
            graceful_timeout: Duration::from_secs(30),
            ready_timeout: None,
            heartbeat_timeout: None,
            max_lifetime: None,
            drain: None,
        };
        Prefork {
            config,
            backend: None,
            on_event: None,
            listens: Vec::new(),
            #[cfg(unix)]
            is_activated: false,
            setup: SetupConfig::default(),
            #[cfg(unix)]
            notifies: false,
        }
    }

    /// Sets the number of workers. Default, and the meaning of 0: one per CPU that this process may use, by its
    /// affinity and by the CPU quota of its cgroup, but at most [`max_workers`](Prefork::max_workers).
    pub fn workers(mut self, workers: usize) -> Prefork {
        self.config.workers = workers;
        self
    }

    /// Sets the largest number of workers that SIGTTIN can reach, so that every [`Worker::id`] is less than `max`. It
    /// must not be less than [`workers`](Prefork::workers). Default: no limit.
    pub fn max_workers(mut self, max: usize) -> Prefork {
        self.config.max_workers = max;
        self
    }

    /// Limits the restarts of all workers together, over the whole lifetime of the service or within the
    /// [`restart_window`](Prefork::restart_window). If one more restart is needed, the parent stops the other workers,
    /// and the reason in the report is [`RestartLimitReached`](crate::Reason::RestartLimitReached). Default: 100, as in
    /// Tornado.
    ///
    /// Set a [`restart_window`](Prefork::restart_window) for a service that runs for months. Without one, failures of
    /// long ago still count.
    pub fn max_restarts(mut self, max: u32) -> Prefork {
        self.config.max_restarts = max;
        self
    }

    /// Counts only the restarts within the last `window`, as Erlang's supervisors do. Default: all restarts count.
    pub fn restart_window(mut self, window: Duration) -> Prefork {
        self.config.restart_window = Some(window);
        self
    }

    /// Sets which exits are followed by a restart. Default: [`RestartPolicy::OnFailure`].
    ///
    /// With the default, a worker that exits with status 0 is done and is not replaced. This includes a worker that
    /// another process than the parent stops by SIGTERM, if it then exits with status 0.
    pub fn restart_policy(mut self, policy: RestartPolicy) -> Prefork {
        self.config.restart_policy = policy;
        self
    }

    /// Sets how long a worker that keeps failing waits for its next start. Default: 10 ms to 1 s.
    ///
    /// The first failure is followed by a restart at once. After a further failure of a process that lived for less
    /// than a second, the next start waits: for `first`, doubled with each failure up to `max`. Of this delay, a random
    /// part between half and all of it is used. A process that has lived for 10 s resets the delay, however it exits.
    pub fn restart_backoff(mut self, first: Duration, max: Duration) -> Prefork {
        self.config.delays = Delays { first, max };
        self
    }

    /// Adds an exit status after which a worker is not restarted and the whole service stops. The reason in the report
    /// is [`StartupFailed`](crate::Reason::StartupFailed). Use it for failures that no restart can mend, such as a bad
    /// configuration. Default: none.
    ///
    /// The status is 1 to 255 on Unix, and any but 0 on Windows. A replacement that exits with it is only dropped.
    pub fn fatal_exit_code(mut self, code: i32) -> Prefork {
        self.config.fatal_exit_codes.push(code);
        self
    }

    /// Sets the time between the request to stop and SIGKILL. When the service stops, all workers have this time
    /// together. In a rolling restart, each worker has it. Default: 30 s.
    pub fn graceful_timeout(mut self, timeout: Duration) -> Prefork {
        self.config.graceful_timeout = timeout;
        self
    }

    /// Sets the time after its start within which a worker must call [`Worker::ready`]. Default: off. Then a worker
    /// counts as ready as soon as it is started, and a replacement after a second.
    ///
    /// The effect of a worker that fails or is late before it is ready:
    ///
    /// | worker | effect |
    /// |---|---|
    /// | No process of its id was ever ready. | A restart would not help: the service stops, and the reason in the report is [`StartupFailed`](crate::Reason::StartupFailed). |
    /// | An earlier process of its id was ready. | The worker is restarted. If it is late, it is killed first. |
    /// | It is a replacement. | The replacement is dropped, and the old process stays. |
    /// | It was added by SIGTTIN, and no process of its id was ever ready. | The worker is dropped, and the others go on. |
    ///
    /// An exit with status 0 does not count as a failure here, except with [`RestartPolicy::Always`] and in a
    /// replacement. If the parent was stopped or starved during this time, it grants the same time once more.
    pub fn ready_timeout(mut self, timeout: Duration) -> Prefork {
        self.config.ready_timeout = Some(timeout);
        self
    }

    /// Sets the longest time between two calls of [`Worker::heartbeat`], starting when the worker is ready. Default:
    /// off.
    ///
    /// The parent checks once per timeout, whatever the number of workers. A worker that has been silent for at least
    /// one timeout, and at most about two, gets SIGABRT, which lets it write a core dump or stop in a debugger. A
    /// second later it gets SIGKILL, which also kills a stopped process. Then it is restarted, except with
    /// [`RestartPolicy::Never`].
    ///
    /// Silence is not always the worker's fault:
    ///
    /// - If the parent wakes up late by half the timeout or more, the parent itself or the whole machine was stopped or
    ///   starved. Then it lets one more timeout pass before it takes any worker for hung.
    /// - If the parent is late by a tenth of the timeout, or its wait was interrupted by something else than [its
    ///   signals](crate#signals), the parent or the machine may have been stopped too. Then a silent worker gets one
    ///   more timeout, but only once.
    /// - The parent cannot recognize other causes, for example that only the workers were stopped for long. These count
    ///   as silence. Choose a timeout of several heartbeats to leave room for them.
    pub fn heartbeat_timeout(mut self, timeout: Duration) -> Prefork {
        self.config.heartbeat_timeout = Some(timeout);
        self
    }

    /// Replaces each process at this age, as in a rolling restart: the replacement is ready first, and no two processes
    /// are replaced at a time. Default: off.
    ///
    /// The age of each process is random, between three quarters of `lifetime` and all of it, so that workers that were
    /// started together are not replaced together. A process keeps serving until its turn comes. If a replacement
    /// fails, the old process stays for one more lifetime.
    pub fn max_lifetime(mut self, lifetime: Duration) -> Prefork {
        self.config.max_lifetime = Some(lifetime);
        self
    }

    /// Adds a socket that is made before the workers and passed to all of them: forked, spawned or threads. Each call
    /// adds one: `"127.0.0.1:8000"`, or anything else from which a [`ListenConfig`] can be made. Default: none.
    ///
    /// Workers get it by [`Worker::tcp`], [`Worker::udp`], `Worker::unix` (on Unix) or [`Worker::listeners`].
    ///
    /// The parent binds it at the start. With port 0 the system chooses the port, the same one for all workers, and
    /// [`Event::Listening`] reports it. Connections wait in the socket's queue while a worker is restarted, so only
    /// those that the worker had already accepted are lost.
    ///
    /// The first worker to accept a connection gets it, and this is not balanced. Workers that sleep in accept(2) take
    /// turns. Of workers that sleep in epoll_wait(2), Linux wakes all at once, or with `EPOLLEXCLUSIVE` mostly the one
    /// that came last, which then gets most connections. [`ListenConfig::per_worker`] makes one socket for each worker
    /// instead.
    pub fn listen(mut self, on: impl Into<ListenConfig>) -> Prefork {
        self.listens.push(on.into());
        self
    }

    /// Uses the sockets with which systemd started this program, by its socket activation (`LISTEN_FDS`, `LISTEN_PID`
    /// and `LISTEN_FDNAMES`, sd_listen_fds(3)). Default: no. Unix only.
    ///
    /// An activated socket replaces a socket that [`listen`](Prefork::listen) adds: the one with the same
    /// [name](ListenConfig::name) if there is one, and otherwise the next one in order. Listeners for which no socket
    /// was passed are bound as usual. These are errors: more activated sockets than listeners, and an activated socket
    /// for a listener with [one socket for each worker](ListenConfig::per_worker).
    ///
    /// The call that starts the workers removes the variables from the environment, `LISTEN_FDNAMES` only if there is
    /// one thread. **Other threads that run by then must not read the environment at the same time except through
    /// std**: for getenv(3), and for libraries in C that call it, the removal of a variable is a data race. If you
    /// cannot exclude this, make the call before anything starts a thread, as with [`Backend::Fork`].
    #[cfg(unix)]
    pub fn socket_activation(mut self) -> Prefork {
        self.is_activated = true;
        self
    }

    /// Pins each worker to one CPU. Default: no. Linux only; elsewhere it is refused.
    ///
    /// Worker `id` gets the `id`-th of the CPUs that the calling thread may use at the start, by its affinity and by
    /// the cpuset of its cgroup. With more workers than CPUs, the count begins again at the first CPU.
    ///
    /// A worker pins itself before it does anything else, so all its threads are pinned too, except those that a
    /// [spawned](Backend::Spawn) program has started before the call. If its CPU has been taken away since the start,
    /// the log has a warning, and the worker runs unpinned.
    pub fn pin_cpus(mut self) -> Prefork {
        self.setup.pins_cpus = true;
        self
    }

    /// Makes the workers run as this user, permanently. Default: the parent's user. Unix only, and only for processes:
    /// with [`run_threads`](Prefork::run_threads) it is refused, because all threads of a process have one user.
    ///
    /// The parent keeps its own user. So it can bind port 80 for the workers, by [`listen`](Prefork::listen) or
    /// otherwise, and can stop and replace them as usual. It needs root. Without root, only the program's own user is
    /// accepted, whose groups stay as they are.
    ///
    /// **Names.** `name` is the name of a user or, if no user has that name, a user id. A worker has that user's group,
    /// or the one set by [`group`](Prefork::group), and the supplementary groups that the system has on record for the
    /// user, but none of the parent's. A user id without a record needs a `group` and has no other groups. The parent
    /// looks all of them up once, before it starts anything. Later changes have no effect on restarts.
    ///
    /// **How a worker changes.** It does this after [`pin_cpus`](Prefork::pin_cpus) and before everything else:
    ///
    /// 1. It calls setgroups(2), setresgid(2) and setresuid(2), or setgid(2) and setuid(2) on systems without the
    ///    latter two.
    /// 2. It checks that the real, effective and saved ids have the requested values.
    /// 3. It tries to become root again, which must fail. On Linux the capability `CAP_SETUID` must be gone too;
    ///    `PR_SET_KEEPCAPS` may have kept it.
    ///
    /// If any of this fails, the worker logs the name of the call and exits with status 1. It runs none of the
    /// program's code except its logger, not even functions that are registered with atexit(3), and does not write what
    /// it had buffered before. The parent treats this as any failure: with a [`ready_timeout`](Prefork::ready_timeout)
    /// the service stops, otherwise it stops once the restart limit is reached.
    ///
    /// **What does not change.** The workers still get SIGTERM when the parent ends. They keep the environment with its
    /// `HOME`, the directory, the limits and every open descriptor. A worker opens files as the new user, for example a
    /// log that it reopens. Linux writes no core dump of a process that has changed its user, not even when it is
    /// [aborted](Prefork::heartbeat_timeout), unless the system allows it (`fs.suid_dumpable`) or the worker requests
    /// it (`PR_SET_DUMPABLE`, prctl(2)).
    ///
    /// With [`Backend::Spawn`], everything before the call still runs as root.
    #[cfg(unix)]
    pub fn user(mut self, name: impl Into<String>) -> Prefork {
        self.setup.user = Some(name.into());
        self
    }

    /// Sets the group of the workers, in place of the group of their [`user`](Prefork::user): a name or, if no group
    /// has that name, a group id. Default: the user's group, or else the parent's. Unix only.
    ///
    /// Without a `user`, the workers have this group and no supplementary groups. But a root process that has changed
    /// only its group is still root and can take the group back.
    #[cfg(unix)]
    pub fn group(mut self, name: impl Into<String>) -> Prefork {
        self.setup.group = Some(name.into());
        self
    }

    /// Notifies systemd of the state of the service, by sd_notify(3), through the socket that `NOTIFY_SOCKET` names.
    /// Without that variable it does nothing. Default: no. Unix only.
    ///
    /// | message | when |
    /// |---|---|
    /// | `READY=1` | All workers are ready or, without a [`ready_timeout`](Prefork::ready_timeout), started. |
    /// | `RELOADING=1`, then `READY=1` | A rolling restart that SIGHUP requested begins, and ends or is aborted. |
    /// | `STOPPING=1` | The workers are stopped, for whatever reason. |
    /// | `WATCHDOG=1` | Twice per `WatchdogSec`, until the stop. |
    ///
    /// Each message except the last has a line of status, which also changes when a worker is added or removed. The
    /// last status names the failure, if something has failed.
    ///
    /// ```ini
    /// [Service]
    /// # Before systemd 253: Type=notify, and ExecReload=kill -HUP $MAINPID
    /// Type=notify-reload
    /// ExecStart=/usr/local/bin/service
    /// WatchdogSec=30
    /// KillMode=mixed
    /// TimeoutStopSec=40
    /// ```
    ///
    /// - `KillMode=mixed` sends SIGTERM only to the parent, which stops the workers and gives them their time. By
    ///   default systemd sends it to all processes at once. Then workers that exit before the parent has received its
    ///   signal look as if they had failed.
    /// - `TimeoutStopSec` must be longer than the [`graceful_timeout`](Prefork::graceful_timeout). Otherwise systemd
    ///   kills workers that still have time.
    /// - `TimeoutStartSec` must be long enough for all replacements of a reload to become ready.
    /// - `WatchdogSec` makes the parent wake up twice in that time. The messages show that the supervision works, and
    ///   nothing about the workers: use [`heartbeat_timeout`](Prefork::heartbeat_timeout) for these.
    ///
    /// The call removes `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` from the environment, so that neither the
    /// workers nor programs that they start can notify in the service's name. If there are other threads, which
    /// [`Backend::Fork`] refuses, the variables stay.
    ///
    /// The parent never waits for a message to be delivered. The log warns once for each kind of failure, and the
    /// service goes on. If the manager's queue is full (on Linux, `net.unix.max_dgram_qlen` is its length, for the
    /// messages of all services together), the parent tries again every 100 ms and keeps the order. Of several pending
    /// rolling restarts or lines of status, it sends only the last. Messages that are still pending when the workers
    /// are gone are dropped.
    #[cfg(unix)]
    pub fn notify_systemd(mut self) -> Prefork {
        self.notifies = true;
        self
    }

    /// Sets how worker processes are started. Default: [`Backend::Fork`] on Unix, [`Backend::Spawn`] on Windows. It
    /// does not apply to [`run_threads`](Prefork::run_threads), which refuses it.
    pub fn backend(mut self, backend: Backend) -> Prefork {
        self.backend = Some(backend);
        self
    }

    /// Calls `on_event` in the parent for every event, after the event's line in the log. (An exit and the restart that
    /// follows it share one line, which is written with the restart.) A second call replaces the first callback.
    /// Default: none.
    ///
    /// - While the callback runs, the parent does nothing else.
    /// - If workers are forks, the callback must not start a thread: every later start would be refused.
    /// - If workers are forks, a program that the callback starts inherits the [signals that the parent
    ///   handles](crate#signals) blocked. So SIGTERM does not end it unless it is unblocked for it (`pre_exec`).
    /// - If the callback panics, all workers are killed and the panic continues.
    pub fn on_event(mut self, on_event: impl FnMut(&Event) + 'static) -> Prefork {
        self.on_event = Some(Box::new(on_event));
        self
    }

    /// Starts the workers. Returns in each worker at once, with a [`Worker`], and in the parent after the service has
    /// ended, with a [`Report`].
    ///
    /// A worker may return from `main` or exit in any other way: only its exit status counts.
    ///
    /// # Errors
    ///
    /// An error is returned in the parent only after all workers are gone. The signal mask, the dispositions and the
    /// descriptors are the same as before the call.
    ///
    /// - A setting makes no sense; [`Error::setting`] names it. This includes a time of less than a millisecond or more
    ///   than a year; `max_workers` below `workers`; a first delay longer than the longest one; a fatal exit status
    ///   that a process cannot have or that means success; and a backend that the system does not have.
    /// - There is no such [user](Prefork::user) or [group](Prefork::group), changing to it requires root, or there is
    ///   no way to [pin](Prefork::pin_cpus) workers. [`Error::setting`] names the setting.
    /// - A [listener](Prefork::listen) cannot be opened: the text names its address. If it should be [one for each
    ///   worker](ListenConfig::per_worker) and cannot be, [`Error::setting`] is `per_worker`.
    /// - Any error of [`fork_processes`](crate::fork_processes) except that the restart limit is reached, which is a
    ///   [`Report`] here. One of them is that this process supervises workers already, however they were started: one
    ///   service at a time is possible. Once it has ended, the next one can be started.
    pub fn start(self) -> Result<Role> {
        let names = self.listener_names();
        match self.supervise(true, None)? {
            Supervised::Worker(worker) => Ok(Role::Worker(worker.with_listener_names(names))),
            Supervised::Parent(finished) => Ok(Role::Parent(Finished::report(*finished)?)),
        }
    }

    /// Starts the workers, runs `work` in each of them, and returns only in the parent, after the service has ended.
    ///
    /// A worker exits when `work` is done, and runs no code after this call:
    ///
    /// | `work` | exit status |
    /// |---|---|
    /// | returns `Ok` | 0 |
    /// | returns an error | 1. The error is logged, with its sources. |
    /// | panics | 101. The panic is printed as usual. |
    ///
    /// `work` may borrow from its surroundings. Values that it owns are dropped when it returns.
    ///
    /// # Errors
    ///
    /// As for [`start`](Prefork::start).
    ///
    /// # Examples
    ///
    /// Every worker sees what the program made before the call. Here each id has a socket of its own, and `max_workers`
    /// keeps every id within the array:
    ///
    /// ```no_run
    /// use std::net::TcpListener;
    /// use taskfork::{Prefork, Report};
    ///
    /// fn main() -> Result<Report, Box<dyn std::error::Error>> {
    ///     let ports = [8000, 8001, 8002].map(|port| TcpListener::bind(("127.0.0.1", port)));
    ///     let listeners = ports.into_iter().collect::<Result<Vec<_>, _>>()?;
    ///     Ok(Prefork::new().workers(2).max_workers(listeners.len()).run(|worker| {
    ///         let listener = &listeners[worker.id()];
    ///         // ..
    /// #       drop(listener);
    ///         Ok(())
    ///     })?)
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

    /// Starts the workers as threads of this process, runs `work` in each of them, and returns after the service has
    /// ended.
    ///
    /// Threads share their memory: what `work` captures exists once, for all workers. The closure must be `'static`,
    /// because a thread cannot be forced to end, so nothing can be lent to it. The supervision is the same as for
    /// processes, with these differences:
    ///
    /// - **Exits.** A thread that returns an error exits with status 1, and one that panics with 101. [`Event::Failed`]
    ///   has the message. A panic does not affect the other workers. But whatever ends the process ends all of them: a
    ///   call of [`exit`](std::process::exit), an abort, a stack overflow, and every panic if the program is built with
    ///   `panic = "abort"`.
    /// - **Stop requests.** A worker learns of one only through [`Worker::stop_requested`], [`Worker::wait_for_stop`]
    ///   and `Worker::stop_fd` (on Unix), each worker through its own handle. The request does not interrupt what the
    ///   thread does.
    /// - **Stale threads.** A thread cannot be killed. Where a process would be killed, the parent abandons a thread:
    ///   [`Event::Stale`]. This happens if the thread does not return within the
    ///   [`graceful_timeout`](Prefork::graceful_timeout), misses its [heartbeat](Prefork::heartbeat_timeout) or the
    ///   [`ready_timeout`](Prefork::ready_timeout), or if a second stop request comes. Its exit is
    ///   [`Exit::Stale`](crate::Exit::Stale), which counts as a failure, and the worker is restarted like any other.
    ///   The parent ignores messages from the abandoned thread. The thread has a stop request in any case, so that it
    ///   ends if it can continue.
    ///     - If it returns, it is joined: [`Event::Returned`].
    ///     - If it has not returned when the service ends, it is in [`Report::stale`]. It runs until the process ends,
    ///       which does not wait for it.
    /// - **Signals.** The [signals that the parent handles](crate#signals) are blocked in the workers. The exceptions
    ///   are SIGUSR1 and SIGCHLD: like all other signals, they do what the program has set up. A program that a worker
    ///   starts inherits the blocked signals. Then SIGTERM does not end it, unless the worker unblocks SIGTERM for it
    ///   (`pre_exec`).
    /// - **Pid 1.** As pid 1 of a container, the parent does not reap processes that it has not started. Run an init
    ///   above it.
    /// - **Names.** [`Process::pid`](crate::Process::pid) is `None`. The name of the thread consists of the worker's id
    ///   and generation: `worker-2.0`.
    ///
    /// # Errors
    ///
    /// As for [`start`](Prefork::start). In addition, [`backend`](Prefork::backend), `user` and `group` are refused.
    /// Other threads in this process are not an error.
    pub fn run_threads<F>(self, work: F) -> Result<Report>
    where
        F: Fn(Worker) -> WorkResult + Send + Sync + 'static,
    {
        if self.backend.is_some() {
            return Err(Error::unfit("backend", "run_threads() starts threads, not processes"));
        }
        let names = self.listener_names();
        let work: Work = Arc::new(move |worker: Worker| work(worker.with_listener_names(names.clone())));
        match self.supervise(true, Some(work))? {
            Supervised::Parent(finished) => Finished::report(*finished),
            Supervised::Worker(worker) => Err(Error::in_worker(worker.id())),
        }
    }

    fn listener_names(&self) -> ListenerNames {
        let names = || self.listens.iter().map(|listen| listen.own_name().map(str::to_owned)).collect();
        (!self.listens.is_empty()).then(names)
    }

    /// Starts the workers for `fork_processes`, which returns only an id and exits in the parent.
    pub(crate) fn start_plain(self) -> Result<usize> {
        match self.supervise(false, None)? {
            Supervised::Worker(worker) => Ok(worker.id()),
            Supervised::Parent(finished) => match finished.exit()? {},
        }
    }

    /// Checks the settings, makes what the workers share, and supervises. Without `with_reports`, forked workers get no
    /// shared page, because the caller hands out no [`Worker`].
    fn supervise(self, with_reports: bool, work: Option<Work>) -> Result<Supervised> {
        let accepting = ACCEPTING.lock().unwrap_or_else(PoisonError::into_inner);
        worker::check_no_worker()?;
        let kind = match (&work, self.backend.unwrap_or(DEFAULT_BACKEND)) {
            (Some(_), _) => WorkerKind::Thread,
            #[cfg(unix)]
            (None, Backend::Fork) => WorkerKind::Fork,
            #[cfg(not(unix))]
            (None, Backend::Fork) => return Err(Error::unfit("backend", "there is no fork on this system")),
            (None, Backend::Spawn) => match backend::accept_spawn()? {
                Some(worker) => return Ok(Supervised::Worker(supervisor::enter_worker(worker))),
                None => WorkerKind::Spawn,
            },
        };
        drop(accepting);
        let mut config = self.config.checked()?;
        let setup = self.setup.resolve(kind)?;
        let lock = SupervisorLock::begin().ok_or_else(Error::supervising)?;
        backend::check(kind)?;
        let listens = self.listens;
        #[cfg(unix)]
        let listens = if self.is_activated { crate::listener::take_over(listens)? } else { listens };
        let sockets = Sockets::open(listens, config.workers)?;
        config.drain = sockets.are_per_worker().then_some(DRAIN);
        let with_scoreboard = with_reports || kind == WorkerKind::Spawn;
        #[cfg(unix)]
        let systemd = self.notifies.then(Systemd::from_environment).flatten();
        let parts = SupervisorParts {
            with_scoreboard,
            lock,
            kind,
            work,
            on_event: self.on_event,
            sockets,
            setup,
            #[cfg(unix)]
            systemd,
        };
        supervisor::supervise(config, parts)
    }
}

impl Default for Prefork {
    fn default() -> Prefork {
        Prefork::new()
    }
}

impl fmt::Debug for Prefork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefork").field("config", &self.config).field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// The backend without [`Prefork::backend`].
const DEFAULT_BACKEND: Backend = if cfg!(unix) { Backend::Fork } else { Backend::Spawn };

/// Held while a program that was started as a worker becomes one. If several threads of it make the call, one of them
/// becomes the worker, and the others are refused.
static ACCEPTING: Mutex<()> = Mutex::new(());

/// The time for which a removed worker still serves its own socket after the kernel sends nothing new to it. Handshakes
/// that began before complete in this time: one takes a round trip, or longer if TCP sends a segment again.
const DRAIN: Duration = Duration::from_secs(1);

/// The shortest time that can be waited for: poll(2) and epoll_wait(2) count milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

impl Config {
    fn checked(mut self) -> Result<Config> {
        if self.workers == 0 {
            self.workers = cpus().min(self.max_workers.max(1));
        }
        self.check_workers()?;
        self.check_times()?;
        // On Unix, only the low eight bits of a status reach the parent.
        let possible = if cfg!(unix) { 1..=255 } else { i32::MIN..=i32::MAX };
        match self.fatal_exit_codes.iter().find(|&&code| code == 0 || !possible.contains(&code)) {
            Some(0) => Err(Error::unfit("fatal_exit_code", "0 means success")),
            Some(code) => Err(Error::unfit("fatal_exit_code", format!("no process exits with status {code} here"))),
            None => Ok(self),
        }
    }

    fn check_workers(&self) -> Result<()> {
        /// Every system allows this many processes, so its limit need not be read.
        const FEW: usize = 256;
        let &Config { workers, max_workers, .. } = self;
        if max_workers < workers {
            return Err(Error::unfit("max_workers", format!("{max_workers} is below the {workers} workers asked for")));
        }
        if workers <= FEW {
            return Ok(());
        }
        // This check covers the system's limit. If a limit of this user is lower, fork reports it.
        let limit = sys::process_limit();
        if workers > limit { Err(Error::too_many(workers, limit)) } else { Ok(()) }
    }

    fn check_times(&self) -> Result<()> {
        let Delays { first, max } = self.delays;
        let times = [
            ("restart_backoff", Some(first)),
            ("restart_backoff", Some(max)),
            ("graceful_timeout", Some(self.graceful_timeout)),
            ("restart_window", self.restart_window),
            ("ready_timeout", self.ready_timeout),
            ("heartbeat_timeout", self.heartbeat_timeout),
            ("max_lifetime", self.max_lifetime),
        ];
        for (name, time) in times.into_iter().filter_map(|(name, time)| Some((name, time?))) {
            if time < SHORTEST {
                return Err(Error::unfit(name, format!("{time:?} is less than a millisecond")));
            }
            if time > LONGEST {
                return Err(Error::unfit(name, format!("{time:?} is more than a year")));
            }
        }
        if first > max {
            return Err(Error::unfit(
                "restart_backoff",
                format!("the first delay, {first:?}, is longer than the longest, {max:?}"),
            ));
        }
        Ok(())
    }
}

/// Returns the number of CPUs that this process may use, or 1 if it is unknown. std takes it from the affinity and from
/// the cgroup's CPU quota, v1 and v2.
fn cpus() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(prefork: Prefork) -> (&'static str, String) {
        let error = prefork.config.checked().expect_err("an invalid setting");
        (error.setting().expect("a setting"), error.to_string())
    }

    #[test]
    fn invalid_settings_are_refused_by_name() {
        let new = Prefork::new;
        let zero = Duration::ZERO;
        let ms = Duration::from_millis;
        let endless = Duration::MAX;
        for (name, prefork) in [
            ("graceful_timeout", new().graceful_timeout(zero)),
            ("graceful_timeout", new().graceful_timeout(endless)),
            ("ready_timeout", new().ready_timeout(zero)),
            ("ready_timeout", new().ready_timeout(endless)),
            ("heartbeat_timeout", new().heartbeat_timeout(Duration::from_nanos(1))),
            ("heartbeat_timeout", new().heartbeat_timeout(endless)),
            ("restart_window", new().restart_window(zero)),
            ("restart_window", new().restart_window(endless)),
            ("max_lifetime", new().max_lifetime(zero)),
            ("max_lifetime", new().max_lifetime(endless)),
            ("restart_backoff", new().restart_backoff(zero, ms(1))),
            ("restart_backoff", new().restart_backoff(ms(1), endless)),
            ("restart_backoff", new().restart_backoff(ms(2), ms(1))),
            ("max_workers", new().workers(3).max_workers(2)),
            ("max_workers", new().max_workers(0)),
            ("fatal_exit_code", new().fatal_exit_code(3).fatal_exit_code(0)),
            #[cfg(unix)]
            ("fatal_exit_code", new().fatal_exit_code(256)),
            #[cfg(unix)]
            ("fatal_exit_code", new().fatal_exit_code(-1)),
            ("workers", new().workers(usize::MAX)),
        ] {
            let (setting, text) = refused(prefork);
            assert_eq!(setting, name, "{text}");
        }
        assert_eq!(refused(new().workers(3).max_workers(2)).1, "max_workers: 2 is below the 3 workers asked for");
        assert_eq!(refused(new().ready_timeout(zero)).1, "ready_timeout: 0ns is less than a millisecond");
    }

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
    fn threads_refuse_user_and_group() {
        for (setting, prefork) in [("user", Prefork::new().user("root")), ("group", Prefork::new().group("0"))] {
            let error = prefork.workers(1).run_threads(|_| Ok(())).expect_err("a refusal");
            assert_eq!(error.setting(), Some(setting), "{error}");
        }
    }

    #[test]
    fn defaults_match_the_documentation() {
        let config = Prefork::default().workers(3).config.checked().expect("valid settings");
        assert_eq!(
            (config.max_restarts, config.restart_policy, config.max_workers),
            (100, RestartPolicy::OnFailure, usize::MAX)
        );
        assert_eq!(config.graceful_timeout, Duration::from_secs(30));
        assert_eq!((config.delays.first, config.delays.max), (Duration::from_millis(10), Duration::from_secs(1)));
        let off = [config.restart_window, config.ready_timeout, config.heartbeat_timeout, config.max_lifetime];
        assert!(off.iter().all(Option::is_none) && config.fatal_exit_codes.is_empty());
    }

    #[test]
    fn default_worker_count_respects_max_workers() {
        let config = Prefork::new().max_workers(1).config.checked().expect("valid settings");
        assert_eq!((config.workers, config.max_workers), (1, 1));
    }

    #[test]
    fn boundary_values_are_accepted() {
        let ms = Duration::from_millis(1);
        let prefork = Prefork::new()
            .workers(3)
            .max_workers(3)
            .restart_backoff(ms, ms)
            .graceful_timeout(LONGEST)
            .fatal_exit_code(255);
        let config = prefork.max_restarts(0).max_lifetime(ms).config.checked().expect("valid settings");
        assert_eq!((config.workers, config.max_restarts), (3, 0));
    }
}
