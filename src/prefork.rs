//! What can be chosen: every default, and every check.

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
use crate::supervisor::{self, Finished, Supervised, SupervisorParts};
use crate::sys::{self, SupervisorLock, WorkerKind};
use crate::worker::{self, WorkResult, Worker};

/// Starts workers and supervises them: [`fork_processes`](crate::fork_processes) with everything that can be chosen.
///
/// ```no_run
/// use std::time::Duration;
/// use taskfork::{Prefork, Role};
///
/// fn main() -> taskfork::Result<taskfork::Report> {
///     match Prefork::new().workers(4).ready_timeout(Duration::from_secs(10)).start()? {
///         Role::Parent(report) => Ok(report),
///         Role::Worker(worker) => {
///             // Open the connections, make the runtime.
///             worker.ready();
///             while !worker.wait_for_stop(Some(Duration::from_secs(1))) {
///                 // A second's work.
///             }
///             std::process::exit(0)
///         }
///     }
/// }
/// ```
///
/// Like [`fork_processes`](crate::fork_processes), it is to be called before anything starts a thread, unless workers are
/// [spawned](Backend::Spawn).
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

/// Told of every event, in the parent.
pub(crate) type OnEvent = Box<dyn FnMut(&Event)>;

/// Which side of the fork this is, once [`Prefork::start`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub enum Role {
    /// A worker, just started.
    Worker(Worker),
    /// The parent, with everything over.
    Parent(Report),
}

/// What a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// A fork of the parent. The default on Unix. Refused on Windows, which has none.
    Fork,
    /// This program, started again. The default on Windows, [where some things differ](crate#windows). It starts with the
    /// same arguments, in the directory where it was started, with the same standard streams, and the environment as it is
    /// at the call.
    ///
    /// **Everything before the call happens again in each worker**, for it is `main` from its beginning; the call then
    /// returns at once, as the worker. So what is before it must be what every process may do: read the configuration, but
    /// not bind the port, nor print the greeting. Other calls of this kind must not come before it either: the first one is
    /// taken for it.
    ///
    /// It has its place where fork has not: the parent may have threads, and may have touched gigabytes, which a fork pays
    /// for page by page. Nothing is shared with the parent but what [`Worker::ready`], [`Worker::heartbeat`] and
    /// [`Worker::stop_all`] need.
    ///
    /// A worker is told that it is one by a variable in its environment, `TASKFORK_WORKER`, and by memory that it inherits.
    /// The variable alone, set by hand or inherited by another program, makes nobody a worker. It is removed by the call,
    /// unless the process has more than one thread by then (on Windows in any case). Before the call, a worker is a program
    /// like any other: it does not hear of the end of its parent, and SIGTERM ends it. It inherits the parent's signal
    /// mask, in which the signals that the [parent answers](crate#signals) are not blocked.
    ///
    /// What it inherits must still be open at the call: a program that closes what it does not know of, as daemons do, is to
    /// do that after it. A worker that cannot become one for want of that gets an error from the call. So does a program whose
    /// file gives it more rights than who starts it has (a set-user-ID bit, file capabilities), also in the parent: anybody may
    /// have set the variable. Programs that other threads of the parent start in the same moment as a worker inherit its
    /// descriptors, the listeners among them.
    ///
    /// The executable must still be the same: if it was deleted or replaced since the start, or must not be executed any
    /// more, starts are refused with its path in the error; as any refused restart they are tried again, and those who run
    /// go on. The same is so if the directory where it was started is gone, or cannot be entered any more, which the error
    /// then says.
    Spawn,
}

impl Prefork {
    /// Everything by default: a worker per CPU, restarted when it fails, 100 times at most.
    pub fn new() -> Prefork {
        let config = Config {
            workers: 0,
            max_workers: usize::MAX,
            restart_policy: RestartPolicy::OnFailure,
            // Tornado's.
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

    /// How many workers. Default, and 0: one per CPU that this process may use, by its affinity and by the CPU quota of its
    /// cgroup, but not more than [`max_workers`](Prefork::max_workers).
    pub fn workers(mut self, workers: usize) -> Prefork {
        self.config.workers = workers;
        self
    }

    /// The most workers that SIGTTIN brings, so that every [`Worker::id`] is less than this. It cannot be less than
    /// [`workers`](Prefork::workers). Default: no such limit.
    pub fn max_workers(mut self, max: usize) -> Prefork {
        self.config.max_workers = max;
        self
    }

    /// How many restarts there may be of all workers together, in the whole lifetime or in the
    /// [`restart_window`](Prefork::restart_window). The end that needs one more ends everything: the other workers are
    /// stopped, and the report says [`GaveUp`](crate::Reason::RestartLimitReached). A service that is to run for months is better off with a
    /// [`restart_window`](Prefork::restart_window), or it ends of what was long ago. Default: 100, as in Tornado.
    pub fn max_restarts(mut self, max: u32) -> Prefork {
        self.config.max_restarts = max;
        self
    }

    /// Counts only the restarts of the last so much time, as Erlang's supervisors do. Default: all there ever were.
    pub fn restart_window(mut self, window: Duration) -> Prefork {
        self.config.restart_window = Some(window);
        self
    }

    /// Which ends are followed by a restart. Default: [`RestartPolicy::OnFailure`], so that a worker which somebody else than the parent
    /// asks to stop, and which then exits with status 0, is done and not replaced.
    pub fn restart_policy(mut self, policy: RestartPolicy) -> Prefork {
        self.config.restart_policy = policy;
        self
    }

    /// How long a worker that keeps failing waits for its next start. The first failure is answered at once. After a life of
    /// less than a second it waits for `first`, doubled each time up to `max`, and of that for a random part of the upper
    /// half. A life of 10 s forgets the failures before it, however it ends. Default: 10 ms to 1 s.
    pub fn restart_backoff(mut self, first: Duration, max: Duration) -> Prefork {
        self.config.delays = Delays { first, max };
        self
    }

    /// A worker that exits with this status is not restarted, and everything is stopped: the report says
    /// [`StartupFailed`](crate::Reason::StartupFailed). For what no restart can mend, a bad configuration for example. May
    /// be called several times, each adding one. On Unix it is 1 to 255, on Windows any but 0. (A replacement that exits so
    /// is only given up.) Default: none.
    pub fn fatal_exit_code(mut self, code: i32) -> Prefork {
        self.config.fatal_exit_codes.push(code);
        self
    }

    /// How long workers that are asked to stop have for it before they are killed: all of them together in a stop, each in a
    /// rolling restart. Default: 30 s.
    pub fn graceful_timeout(mut self, timeout: Duration) -> Prefork {
        self.config.graceful_timeout = timeout;
        self
    }

    /// Workers call [`Worker::ready`] within this time after their start.
    ///
    /// One that is late or fails before, and no process of its id ever was ready: nothing would be gained by a restart, so
    /// everything is stopped, and the report says [`StartupFailed`](crate::Reason::StartupFailed). If an earlier process of
    /// its id was ready, it is killed if it is late, and restarted. A replacement that fails so leaves the old worker in
    /// its place, and one more worker that SIGTTIN has asked for is given up, while the others go on. (An exit status of 0
    /// is no failure, unless [`RestartPolicy::Always`] is asked for.) A parent that was stopped or starved meanwhile gives the
    /// same time once more. Default: off; workers count as ready when they are started, and a replacement after a second.
    pub fn ready_timeout(mut self, timeout: Duration) -> Prefork {
        self.config.ready_timeout = Some(timeout);
        self
    }

    /// Workers call [`Worker::heartbeat`] at least once in this time, from when they are ready.
    ///
    /// The parent looks once in each such time, whatever the number of workers. One that was silent for at least this time,
    /// and about twice as long at most, gets SIGABRT (which a debugger or a core dump can make something of), and SIGKILL
    /// after one second more (of which a stopped process dies as well); it is restarted in any case but [`RestartPolicy::Never`].
    ///
    /// A parent that wakes up late by half this time or more has been starved or stopped itself, or the whole machine was:
    /// nobody is called silent then before one more such time has passed. If it is late by a tenth, or its wait was
    /// interrupted, and not by one of [its signals](crate#signals), that may be so, and who is silent gets one more such time,
    /// but only once. What cannot be seen in either way, such as the workers alone being stopped for long, counts as silence; a
    /// time of several beats leaves room for it. Default: off.
    pub fn heartbeat_timeout(mut self, timeout: Duration) -> Prefork {
        self.config.heartbeat_timeout = Some(timeout);
        self
    }

    /// Replaces each process when it is so old, as in a rolling restart: its replacement is ready first, and no two are
    /// replaced at a time. Each draws its own share of this time, from three quarters to the whole, so that workers which
    /// were started together are not replaced together; one whose turn has not come lives on. If a replacement fails, the
    /// old process stays for one more lifetime. Default: off.
    pub fn max_lifetime(mut self, lifetime: Duration) -> Prefork {
        self.config.max_lifetime = Some(lifetime);
        self
    }

    /// A socket that is made before the workers and that all of them have, forked, spawned or threads:
    /// [`Worker::listeners`]. Each call adds one: `"127.0.0.1:8000"`, or anything that [`ListenConfig`] is made from.
    ///
    /// It is bound at the start, in the parent alone. With port 0 the system chooses one, the same for all, and
    /// [`Event::Listening`] tells which. Connections wait there while a worker is restarted, so that none is lost with it but
    /// those that it had accepted.
    ///
    /// They go to whichever worker accepts them, and that is not balanced: of workers that sleep in accept(2) each gets its
    /// turn, but of those that sleep in epoll_wait(2) Linux wakes all at once, or, with `EPOLLEXCLUSIVE`, mostly the one that
    /// came last, which then gets the most. [`ListenConfig::per_worker`] makes a socket for each worker instead. Default: none.
    pub fn listen(mut self, on: impl Into<ListenConfig>) -> Prefork {
        self.listens.push(on.into());
        self
    }

    /// Sockets that this program was started with, by systemd's socket activation (`LISTEN_FDS`, `LISTEN_PID` and
    /// `LISTEN_FDNAMES`, sd_listen_fds(3)), take the place of what [`listen`](Prefork::listen) asks for: those with the
    /// [name](ListenConfig::name) of one, that one's, and the others in order. More than were asked for are an error, and so is one
    /// in the place of [one for each worker](ListenConfig::per_worker); what none was passed for is bound. Default: no. Unix only.
    ///
    /// The variables are removed from the environment by the call that starts the workers, `LISTEN_FDNAMES` only if there is
    /// one thread. **Other threads that run by then must not read the environment meanwhile other than by std**: for getenv(3),
    /// and what calls it in libraries of C, a variable that is removed at the same time is a data race. Where that cannot be
    /// excluded, the call comes before anything that starts threads, as it does with [`Backend::Fork`].
    #[cfg(unix)]
    pub fn socket_activation(mut self) -> Prefork {
        self.is_activated = true;
        self
    }

    /// Ties each worker to a CPU of its own: to the `id`-th of those that the calling thread may use at the start, by its
    /// affinity and its cgroup's cpuset, and begins again at the first where there are more workers than CPUs. It is the first
    /// thing that a worker does, so that all its threads are there, but for those that a [spawned](Backend::Spawn) program
    /// has started before the call. One whose CPU was taken away since is told of in the log, and works without.
    ///
    /// Linux only: elsewhere it is refused. Default: no.
    pub fn pin_cpus(mut self) -> Prefork {
        self.setup.pins_cpus = true;
        self
    }

    /// Workers become this user before the call returns in them, for good; the parent, which stays what it is, can have
    /// bound port 80 for them before, by [`listen`](Prefork::listen) or otherwise, and can stop and replace them as any. It
    /// takes root. Unix only.
    ///
    /// It is the name of a user, or, if nobody has that name, a number. A worker has that user's group, or the one that
    /// [`group`](Prefork::group) names, and the supplementary groups that the system has on record for the user, and none of
    /// the parent's. (A number that nobody has needs a group to be named, and has no other.) They are looked up in the
    /// parent, once, before anything is started; what has changed since is of no effect on restarts.
    ///
    /// In a worker it comes after [`pin_cpus`](Prefork::pin_cpus) and before everything else: setgroups(2), then setresgid(2),
    /// then setresuid(2) (where these are, otherwise setgid and setuid), then a look whether real, effective and saved ids
    /// are what was asked for, and an attempt to become root again, which has to fail. On Linux the capability `CAP_SETUID`
    /// must be gone as well, which `PR_SET_KEEPCAPS` may have prevented. A worker in which anything of that is otherwise says so
    /// in the log, by the name of the call, and exits with status 1, without a line of the program run but its logger's: not
    /// what is registered with atexit(3) either. (What it had buffered before is not written.) To the parent that is a failure
    /// like others: it is the end of everything with a [`ready_timeout`](Prefork::ready_timeout), and otherwise once the
    /// restarts are used up.
    ///
    /// The end of the parent reaches these workers as it does others. What is not changed: the environment with its `HOME`,
    /// the directory, limits, and every descriptor that is open. What a worker opens it opens as that user, a log that is to be
    /// reopened too. Linux writes no core dump of a process that was another user's, also not when it is
    /// [aborted](Prefork::heartbeat_timeout), unless the system is set up for it (`fs.suid_dumpable`) or the worker asks for it
    /// (`PR_SET_DUMPABLE`, prctl(2)).
    ///
    /// With [`Backend::Spawn`], what precedes the call still runs as root. With [`Backend::Thread`] it is refused, since all
    /// threads of a process have one user. Without root, the program's own user may be asked for, whose groups are then what
    /// they were, and any other is refused. Default: the parent's user.
    #[cfg(unix)]
    pub fn user(mut self, name: impl Into<String>) -> Prefork {
        self.setup.user = Some(name.into());
        self
    }

    /// The group of the workers, by its name, or by its number where none has that name, in the place of that of their
    /// [`user`](Prefork::user). Unix only.
    ///
    /// With no user, they have this group and no supplementary ones. But root that has changed its group alone is root, and
    /// may take it back.
    #[cfg(unix)]
    pub fn group(mut self, name: impl Into<String>) -> Prefork {
        self.setup.group = Some(name.into());
        self
    }

    /// Tells systemd how the service is, by sd_notify(3): `READY=1` once all workers are ready (where nobody asks for that,
    /// once all are started), `RELOADING=1` and then `READY=1` around each rolling restart that SIGHUP asks for, also one that
    /// fails, `STOPPING=1` when they are asked to stop, whatever the reason, and a line of status each time, of which the last
    /// one says what has failed, if anything has. The parent tells
    /// it, to the socket that `NOTIFY_SOCKET` names; without that variable, nobody is told anything. Default: no. Unix only.
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
    /// With `KillMode=mixed`, SIGTERM goes to the parent alone, which asks the workers to stop and gives them their time; by
    /// default it goes to all at once, and workers that end before the parent has heard of it look as if they had failed.
    /// `TimeoutStopSec` is to be longer than the [`graceful_timeout`](Prefork::graceful_timeout), or systemd kills those who
    /// still have time; and all replacements of a reload are to be ready within `TimeoutStartSec`.
    ///
    /// With `WatchdogSec`, the parent says `WATCHDOG=1` twice in that time, and is woken for it, until the stop. It says that
    /// the supervision goes on, and nothing about the workers: for them there is
    /// [`heartbeat_timeout`](Prefork::heartbeat_timeout).
    ///
    /// `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are read and removed from the environment by the call, so that
    /// neither workers nor what they start speak for the service. (If there are threads, which [`Backend::Fork`] refuses, they
    /// stay.)
    ///
    /// What cannot be told is never waited for: the log warns of it, once for each reason, and the service goes on. If that is
    /// because the manager's queue is full (on Linux, `net.unix.max_dgram_qlen` says how many messages it holds, of all
    /// services together), it is tried again every 100 ms until it is told, in its order; of several rolling restarts, or
    /// lines of status, the last alone. What is untold when the workers are gone stays so.
    #[cfg(unix)]
    pub fn notify_systemd(mut self) -> Prefork {
        self.notifies = true;
        self
    }

    /// What a worker is. Default: [`Backend::Fork`] on Unix, [`Backend::Spawn`] on Windows.
    pub fn backend(mut self, backend: Backend) -> Prefork {
        self.backend = Some(backend);
        self
    }

    /// Is called in the parent for every event, after its line in the log (an exit and the restart that follows are one
    /// line, that of the latter). While it runs, the parent does nothing else. It must not start a thread if workers are
    /// forks (every later start would be refused); a program that it starts inherits the signals that are
    /// [answered](crate#signals) blocked there, if workers are forks, so that it does not end of SIGTERM, unless that is undone
    /// for it (`pre_exec`). If it panics, all workers are killed and the panic goes on. A second call takes the place of the
    /// first. Default: nobody is told.
    pub fn on_event(mut self, on_event: impl FnMut(&Event) + 'static) -> Prefork {
        self.on_event = Some(Box::new(on_event));
        self
    }

    /// Starts the workers. Returns in each of them at once, and in the parent when all is over, with a [`Report`]: all have
    /// ended, were stopped, failed to start, or failed too often.
    ///
    /// A worker returns from `main` as it pleases, or exits: what counts is its exit status.
    ///
    /// # Errors
    ///
    /// Nothing is left running when an error is returned, and the signal mask, the dispositions and the descriptors are what
    /// they were.
    ///
    /// - A setting makes no sense: a time of less than a millisecond or more than a year, `max_workers` below `workers`, a
    ///   first backoff above the last, a fatal exit status that cannot be told from success, a backend that cannot do this;
    ///   [`Error::setting`] names it.
    /// - There is no such [user](Prefork::user) or [group](Prefork::group), or it takes root to become that, or there is
    ///   nothing to [pin](Prefork::pin_cpus) workers with; the same.
    /// - A [listener](Prefork::listen) cannot be had; the text names its address. Or it is to be one
    ///   [for each worker](ListenConfig::per_worker), and there is no such thing; then it is a setting.
    /// - The errors of [`fork_processes`](crate::fork_processes), but for the budget: that is told by the report. One of them
    ///   is that this process supervises workers already, whatever their backend: there is one service at a time. When it
    ///   is over, the next one may be started.
    pub fn start(self) -> Result<Role> {
        let names = self.listener_names();
        match self.supervise(true, None)? {
            Supervised::Worker(worker) => Ok(Role::Worker(worker.with_listener_names(names))),
            Supervised::Parent(finished) => Ok(Role::Parent(Finished::report(*finished)?)),
        }
    }

    /// Starts the workers, each of which runs this and then ends; returns in the parent only, when all is over.
    ///
    /// A worker exits with status 0 if it returns `Ok`. An error is logged, with its sources, and the status is 1. A panic
    /// is printed as usual, and the status is 101. Neither goes on into the code around this call. A worker that is a
    /// [thread](Backend::Thread) ends alone, and not the process.
    ///
    /// # Errors
    ///
    /// As for [`start`](Prefork::start).
    ///
    /// # Examples
    ///
    /// What is made before the call is there in every worker. A slot for each id, and `max_workers` so that no id is beyond:
    ///
    /// ```no_run
    /// use std::net::TcpListener;
    /// use taskfork::{Prefork, Report};
    ///
    /// fn main() -> Result<Report, Box<dyn std::error::Error>> {
    ///     let ports = [8000, 8001, 8002].map(|port| TcpListener::bind(("127.0.0.1", port)));
    ///     let listeners = ports.into_iter().collect::<Result<Vec<_>, _>>()?;
    ///     Ok(Prefork::new().workers(2).max_workers(listeners.len()).run(move |worker| {
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

    /// Starts the workers as threads of this process.
    ///
    /// A thread of this process, for [`Prefork::run`] only, since a thread cannot return from [`Prefork::start`].
    ///
    /// For workers that share memory: what the closure captures is there once, for all of them. (It is `'static`, because a
    /// thread cannot be made to end, and so nothing can be lent to it.) The supervision is the same, with these in the place
    /// of what threads have not:
    ///
    /// - A thread that returns an error ends with status 1, one that panics with 101, and [`Event::Failed`] says what went
    ///   wrong. That is all a panic does: nobody else is poisoned. Whatever ends the process ends all of them: a call of
    ///   [`exit`](std::process::exit), an abort, an overflow of the stack; and if panics are set to abort, each panic.
    /// - It is asked to stop by what [`Worker::stop_requested`], [`Worker::wait_for_stop`] and [`Worker::stop_fd`] tell, each
    ///   worker by itself, and by nothing else. It is not interrupted in what it does.
    /// - It cannot be killed. One that does not return in its [`graceful_timeout`](Prefork::graceful_timeout), or gives no
    ///   [sign of life](Prefork::heartbeat_timeout), is given up: [`Event::Stale`]. It counts as ended, by signal 9, and is
    ///   replaced as such. What it says from then on is not heard. If it returns, it is joined: [`Event::Returned`]. If it
    ///   never does, it is in [`Report::stale`], and runs until the process ends, which does not wait for it. It has been
    ///   asked to stop in any case, so that it goes when it comes to itself.
    /// - The signals that the parent [answers](crate#signals) are blocked in the workers. SIGUSR1 and SIGCHLD are not among
    ///   these here: they, and all others, do what the program has chosen. A program that a worker starts inherits what is
    ///   blocked, so that it does not end of SIGTERM, unless that is undone for it (`pre_exec`).
    /// - As pid 1 of a container, the parent reaps no strangers: that is for an init in front of it.
    /// - [`Process::pid`](crate::Process::pid) is 0, and the thread's name is `worker-2.0`: id and generation.
    pub fn run_threads<F>(self, work: F) -> Result<Report>
    where
        F: Fn(Worker) -> WorkResult + Send + Sync + 'static,
    {
        if self.backend.is_some() {
            return Err(Error::unfit("backend", "run_threads() starts threads, and no processes"));
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
        #[cfg(not(unix))]
        let systemd = None;
        let on_event = self.on_event;
        supervisor::supervise(
            config,
            SupervisorParts { with_scoreboard, lock, kind, work, on_event, sockets, setup, systemd },
        )
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

/// Of several threads of a program that was started as a worker, one becomes it, and the others are refused.
static ACCEPTING: Mutex<()> = Mutex::new(());

/// From when nothing new goes to a worker's own socket until what was on its way there has arrived: a handshake takes a round
/// trip, or as much longer as TCP waits before it sends something again.
const DRAIN: Duration = Duration::from_secs(1);

/// What is less cannot be told from nothing by those who wait for it.
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
            Some(0) => Err(Error::unfit("fatal_exit_code", "0 is success")),
            Some(code) => Err(Error::unfit("fatal_exit_code", format!("no process exits with status {code} here"))),
            None => Ok(self),
        }
    }

    fn check_workers(&self) -> Result<()> {
        /// No system is set up for less, so it need not be asked.
        const FEW: usize = 256;
        let &Config { workers, max_workers, .. } = self;
        if max_workers < workers {
            return Err(Error::unfit("max_workers", format!("{max_workers} is below the {workers} workers asked for")));
        }
        if workers <= FEW {
            return Ok(());
        }
        // Refused here is what no system can have; what this user may have is for fork to say.
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

/// std counts by affinity and by the cgroup's CPU quota, v1 and v2. If it cannot tell, one is never wrong.
fn cpus() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(prefork: Prefork) -> (&'static str, String) {
        let error = prefork.config.checked().expect_err("it makes no sense");
        (error.setting().expect("a setting"), error.to_string())
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_name_before_anything_else() {
        let (new, zero, ms) = (Prefork::new, Duration::ZERO, Duration::from_millis);
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
    fn a_backend_that_cannot_do_it_is_refused_by_that_name() {
        let error = Prefork::new().backend(Backend::Spawn).run_threads(|_| Ok(())).expect_err("a refusal");
        assert_eq!(error.setting(), Some("backend"), "{error}");
        if cfg!(not(unix)) {
            let error = Prefork::new().backend(Backend::Fork).start().expect_err("a refusal");
            assert_eq!(error.setting(), Some("backend"), "{error}");
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[test]
    fn workers_are_pinned_on_linux_alone() {
        let error = Prefork::new().workers(1).pin_cpus().start().expect_err("a refusal");
        assert_eq!(error.setting(), Some("pin_cpus"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn who_does_not_exist_is_refused_by_that_setting() {
        let nobody = "nobody-of-this-name";
        let new = || Prefork::new().workers(1);
        for (setting, prefork) in [
            ("user", new().user(nobody)),
            ("user", new().user(nobody).group(nobody)),
            ("user", new().user(nobody).backend(Backend::Spawn)),
            ("user", new().user("4294967295")),
            ("group", new().group(nobody)),
            ("group", new().user("root").group(nobody).backend(Backend::Spawn)),
        ] {
            let error = prefork.start().expect_err("a refusal");
            assert_eq!(error.setting(), Some(setting), "{error}");
            assert_eq!(error.io_error().map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_thread_cannot_have_a_user_of_its_own() {
        for (setting, prefork) in [("user", Prefork::new().user("root")), ("group", Prefork::new().group("0"))] {
            let error = prefork.workers(1).run_threads(|_| Ok(())).expect_err("a refusal");
            assert_eq!(error.setting(), Some(setting), "{error}");
        }
    }

    #[test]
    fn the_defaults_are_those_that_are_told() {
        let config = Prefork::default().workers(3).config.checked().expect("sense");
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
    fn as_many_workers_as_cpus_are_not_more_than_the_most_there_may_be() {
        let config = Prefork::new().max_workers(1).config.checked().expect("sense");
        assert_eq!((config.workers, config.max_workers), (1, 1));
    }

    #[test]
    fn what_makes_sense_at_the_edge_is_accepted() {
        let ms = Duration::from_millis(1);
        let prefork = Prefork::new()
            .workers(3)
            .max_workers(3)
            .restart_backoff(ms, ms)
            .graceful_timeout(LONGEST)
            .fatal_exit_code(255);
        let config = prefork.max_restarts(0).max_lifetime(ms).config.checked().expect("sense");
        assert_eq!((config.workers, config.max_restarts), (3, 0));
    }
}
