//! [`Supervisor`], the builder of a service with several pools.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Work;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::handle::Handle;
use crate::pool_name;
use crate::prefork::{PoolSettings, Prefork, Role, ServiceSettings};
use crate::report::Report;
use crate::start::{refuse, start};
use crate::status::Status;
use crate::supervisor::{self, Finished, OnInterval, Supervised};
use crate::worker::{self, WorkResult, Worker};

/// The builder of a service with several pools of workers under one parent.
///
/// Use several pools if one service has several kinds of workers: web workers and job workers, or two ports with
/// different limits. Each pool is a [`Prefork`] with a name. If the kinds of workers can be deployed, restarted and
/// stopped independently of each other, several services are the simpler choice. If there is one kind of workers, use
/// `Prefork` alone. [The guide](crate::guide::pools) has more about this choice.
///
/// ```no_run
/// use std::time::Duration;
/// use taskfork::{Prefork, Report, Supervisor, WorkResult, Worker};
///
/// fn main() -> taskfork::Result<Report> {
///     let web = Prefork::new().workers(4).listen("127.0.0.1:8000").graceful_timeout(Duration::from_secs(10));
///     let jobs = Prefork::new().workers(2).graceful_timeout(Duration::from_secs(300)).optional();
///     Supervisor::new().name("shop").pool("web", web).pool("jobs", jobs).run(|worker| match worker.pool() {
///         "web" => serve(worker),
///         _ => work(worker),
///     })
/// }
///
/// fn serve(worker: Worker) -> WorkResult {
///     // Accept connections from `worker.listeners()`.
/// #   drop(worker);
///     Ok(())
/// }
///
/// fn work(worker: Worker) -> WorkResult {
///     while !worker.wait_for_stop(Some(Duration::from_secs(1))) {
///         // Take a job.
///     }
///     Ok(())
/// }
/// ```
///
/// # What a pool has for itself
///
/// Each pool has its own workers with ids from 0, and all settings that `Prefork` has, except those in the next
/// paragraph: its number of workers, listeners, limits, timeouts, user, CPUs and backend. A worker gets the listeners
/// of its own pool only. [`Worker::pool`] returns the name of the pool, and [`Worker::worker_count`] the number of
/// workers in the pool. Without [`workers`](Prefork::workers), each pool has one worker per CPU.
///
/// The service has one parent with one name, one callback for [events](Supervisor::on_event), one for the
/// [status](Supervisor::on_interval), one [pid file](Supervisor::pid_file), and one connection to systemd. So `name`,
/// `on_event`, `on_interval`, `pid_file`, `program`, `upgrade_timeout`, `socket_activation` and `notify_systemd` are
/// settings of the `Supervisor`. A `Prefork` with such a setting is refused.
///
/// # Backends
///
/// Pools with [forked](crate::Backend::Fork) and pools with [spawned](crate::Backend::Spawn) workers can be combined.
/// If any pool has forked workers, the program must have a single thread: see [fork safety](crate#fork-safety). In
/// [`run_threads`](Supervisor::run_threads), the workers are threads, and pools with spawned workers can be added.
/// Threads cannot be combined with forked workers. On Windows, all workers of [`start`](Supervisor::start) and
/// [`run`](Supervisor::run) are spawned.
///
/// # Signals
///
/// - A stop request (SIGTERM) stops all pools at once. Each worker has the
///   [`graceful_timeout`](Prefork::graceful_timeout) of its own pool. A second request kills the workers of all pools.
/// - SIGHUP begins a [rolling restart](crate#rolling-restarts) of the first pool. When it has ended, the next pool
///   follows, also if the rolling restart of the pool before it was aborted.
/// - SIGTTIN and SIGTTOU change the number of workers in the first pool. [`Handle::in_pool`] reaches the other pools.
/// - SIGUSR1 is forwarded to the workers of all pools.
///
/// # The end of a pool and of the service
///
/// A pool has ended when all of its workers are done, or after a call of [`Worker::stop_pool`], or of [`Handle::stop`]
/// with a handle for the pool. The other pools go on. The parent closes the listeners of the pool, and starts nothing
/// of it again. It reports [`Event::PoolEnded`]. The service ends when all pools have ended.
///
/// A pool fails if it reaches its restart limit, has a startup failure, or if the system refuses the first start of one
/// of its workers. Then the parent stops the whole service, unless the pool is [`optional`](Prefork::optional).
/// [`Report::pools`] returns how each pool ended.
///
/// # Names
///
/// The log, and the `Display` of events, processes and errors, name the pool: `jobs child 2 (pid 71) is ready`. With a
/// [name of the service](Supervisor::name), for example `shop`, the process of worker 2 in the pool `jobs` is named
/// `shop/jobs/2`. A pool that has been added to a `Supervisor` is always named, also if it is the only one.
#[derive(Default)]
#[must_use = "nothing happens before start() or run()"]
pub struct Supervisor {
    pools: Vec<Pool>,
    service: ServiceSettings,
}

#[derive(Debug)]
struct Pool {
    name: String,
    prefork: Prefork,
}

impl Supervisor {
    /// Returns a builder without pools. At least one [`pool`](Supervisor::pool) must be added.
    pub fn new() -> Supervisor {
        Supervisor::default()
    }

    /// Adds a pool. The order of the pools matters: it is the order of rolling restarts and of [`Report::pools`], and
    /// signals that change the number of workers concern the first pool.
    ///
    /// The name identifies the pool in [`Worker::pool`], [`Process::pool`](crate::Process::pool),
    /// [`Handle::in_pool`], the log and the names of processes. The crate keeps each name in memory until the program
    /// ends. A name is refused by [`start`](Supervisor::start) if it is empty, if another pool has it, or if the log or
    /// ps(1) cannot show it, which is the case if it contains `/`, whitespace or a control character. Linux shows only
    /// 15 bytes of the name of a process or thread. A longer name of a process loses its beginning, and a longer name
    /// of a thread its end. So choose a short name.
    pub fn pool(mut self, name: impl Into<String>, pool: Prefork) -> Supervisor {
        self.pools.push(Pool { name: name.into(), prefork: pool });
        self
    }

    /// Sets the name of the service, and names its processes: with the name `shop`, the parent is `shop`, and worker 3
    /// of the pool `jobs` is `shop/jobs/3`. Default: the processes keep the names that they have.
    ///
    /// For platform differences, and for the tools that show the name, see [`Prefork::name`]. Names that are refused
    /// there are refused here too.
    pub fn name(mut self, name: impl Into<String>) -> Supervisor {
        self.service.name = Some(name.into());
        self
    }

    /// Calls `on_event` in the parent for every [`Event`] of every pool. [`Event::pool`] returns the name of the pool
    /// that the event concerns. With the [`Handle`], the callback can control the service, and with [`Handle::in_pool`]
    /// one pool. Default: no callback. The rules for the callback are those of [`Prefork::on_event`].
    pub fn on_event(mut self, on_event: impl FnMut(&Event, &Handle) + 'static) -> Supervisor {
        self.service.on_event = Some(Box::new(on_event));
        self
    }

    /// Calls `on_interval` in the parent once per period, with the [`Status`] of the service and of all of its pools.
    /// Default: no callback. The rules are those of [`Prefork::on_interval`].
    pub fn on_interval(mut self, period: Duration, on_interval: impl FnMut(&Status, &Handle) + 'static) -> Supervisor {
        self.service.on_interval = Some(OnInterval { period, call: Box::new(on_interval) });
        self
    }

    /// Makes the parent write its pid to this file, and lock it: a second service with this file is refused. Default:
    /// no file. The rules are those of [`Prefork::pid_file`].
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Supervisor {
        self.service.pid_file = Some(path.into());
        self
    }

    /// Sets the path of the program that an upgrade executes. Default: the path by which this program was started.
    /// Linux only. The rules are those of [`Prefork::program`].
    pub fn program(mut self, path: impl Into<PathBuf>) -> Supervisor {
        self.service.upgrade.program = Some(path.into());
        self
    }

    /// Limits the time of an upgrade. Default: 60 s. Linux only. The rules are those of [`Prefork::upgrade_timeout`].
    pub fn upgrade_timeout(mut self, timeout: Duration) -> Supervisor {
        self.service.upgrade.timeout = Some(timeout);
        self
    }

    /// Uses sockets that systemd has opened and passed to this program, for the listeners of all pools. Default: no.
    /// Unix only.
    ///
    /// The rules are those of [`Prefork::socket_activation`]. The listeners are in the order of the pools, and within a
    /// pool in the order of the calls of [`listen`](Prefork::listen). A socket with a name goes to the first listener
    /// with this [name](crate::ListenConfig::name) that has no socket yet, whichever pool the listener belongs to.
    #[cfg(unix)]
    pub fn socket_activation(mut self) -> Supervisor {
        self.service.is_activated = true;
        self
    }

    /// Makes the parent send the state of the service to systemd. Default: no. Unix only.
    ///
    /// The messages are those of [`Prefork::notify_systemd`], once for the whole service: `READY=1` follows when the
    /// workers of all pools are up, and a SIGHUP leads to one `RELOADING=1`, which ends after the rolling restart of
    /// the last pool. An upgrade of the service is one `RELOADING=1` too. A pool that has ended, or an
    /// [optional](Prefork::optional) pool that is stopping, is not waited for.
    #[cfg(unix)]
    pub fn notify_systemd(mut self) -> Supervisor {
        self.service.notifies = true;
        self
    }

    /// Starts the workers of all pools. In each worker, returns a [`Worker`] at once. In the parent, returns a
    /// [`Report`] after the service has ended.
    ///
    /// [`Worker::pool`] returns the pool of the worker. Apart from that, the worker is the same as after
    /// [`Prefork::start`].
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`Prefork::start`]. If the error concerns one pool, [`Error::pool`] returns its name,
    /// and the text of the error begins with it. In addition, these mistakes are errors. [`Error::setting`] names the
    /// setting. All settings of all pools are checked before anything starts or a listener is opened.
    ///
    /// | mistake | setting |
    /// |---|---|
    /// | The service has no pool. | `pool` |
    /// | Two pools have the same name, or a name [cannot be shown](Supervisor::pool). | `pool` |
    /// | A setting of the service was made on a pool. | `name`, `on_event`, `on_interval`, `pid_file`, `program`, `upgrade_timeout`, `socket_activation` or `notify_systemd` |
    /// | The pools together have more workers than the system allows processes. | `workers` |
    pub fn start(self) -> Result<Role> {
        Role::of(self.supervise(None)?)
    }

    /// Starts the workers of all pools and runs `work` in each worker. Returns only in the parent, after the service
    /// has ended.
    ///
    /// There is one closure for all pools, because a worker runs it once. It finds its pool by [`Worker::pool`]. The
    /// exit status of a worker depends on the closure as described at [`Prefork::run`].
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`start`](Supervisor::start).
    pub fn run<F>(self, work: F) -> Result<Report>
    where
        F: FnOnce(Worker) -> WorkResult,
    {
        match self.start()? {
            Role::Parent(report) => Ok(report),
            Role::Worker(worker) => supervisor::run_and_exit(worker, work),
        }
    }

    /// Starts the workers of all pools and runs `work` in each worker. The workers are threads of this process, except
    /// in pools with [`Backend::Spawn`](crate::Backend::Spawn). Returns after the service has ended.
    ///
    /// - In a pool without [`backend`](Prefork::backend), the workers are threads as described at
    ///   [`Prefork::run_threads`].
    /// - In a pool with `backend(Backend::Spawn)`, the workers are processes. In such a process, this call runs `work`
    ///   and then exits as [`run`](Supervisor::run) does, so the code after the call runs in the parent only.
    /// - A pool with `backend(Backend::Fork)` is an error, because a process with several threads cannot fork workers.
    ///   [`Error::setting`] is `backend`, and [`Error::pool`] names the pool.
    ///
    /// A thread of worker 2 in the pool `jobs` is named `jobs-2.0`.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`start`](Supervisor::start), except that the process may have other threads. In
    /// addition, `user` and `group` are errors in a pool of worker threads.
    pub fn run_threads<F>(self, work: F) -> Result<Report>
    where
        F: Fn(Worker) -> WorkResult + Send + Sync + 'static,
    {
        let work: Work = Arc::new(work);
        match self.supervise(Some(Arc::clone(&work)))? {
            Supervised::Parent(finished) => Finished::report(*finished),
            Supervised::Worker(worker) => supervisor::run_and_exit(worker, |worker| work(worker)),
        }
    }

    fn supervise(self, work: Option<Work>) -> Result<Supervised> {
        // First, because a nested call must be refused as one, whatever its settings are.
        worker::check_no_worker()?;
        let pools = settings_of(self.pools).map_err(refuse)?;
        start(pools, self.service, true, work)
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("pools", &self.pools).finish_non_exhaustive()
    }
}

/// Checks what `Prefork` alone does not have, and returns the settings of the pools with their names.
fn settings_of(pools: Vec<Pool>) -> Result<Vec<PoolSettings>> {
    if pools.is_empty() {
        return Err(Error::unfit("pool", "the service has no pool"));
    }
    let mut settings: Vec<PoolSettings> = Vec::new();
    for Pool { name, prefork: Prefork { mut pool, service } } in pools {
        check_name(&name)?;
        let name = pool_name::intern(&name);
        if settings.iter().any(|earlier| earlier.config.pool == name) {
            return Err(Error::unfit("pool", "another pool has this name").in_pool(name));
        }
        if let Some(setting) = service.first_set() {
            let problem = "this setting concerns the whole service, so make it on the Supervisor, not on a pool";
            return Err(Error::unfit(setting, problem).in_pool(name));
        }
        pool.config.pool = name;
        settings.push(pool);
    }
    Ok(settings)
}

/// Refuses a name that the log or ps(1) cannot show, or that would look like a part of a longer name. The error does
/// not begin with such a name.
fn check_name(name: &str) -> Result<()> {
    let problem = match name.chars().find(|&char| char == '/' || char.is_control() || char.is_whitespace()) {
        None if name.is_empty() => "the name of a pool is empty".into(),
        None => return Ok(()),
        Some('/') => format!("the name {name:?} contains '/', which separates the parts of a process name"),
        Some(char) if char.is_control() => format!("the name {name:?} contains the control character {char:?}"),
        Some(_) => format!("the name {name:?} contains whitespace"),
    };
    Err(Error::unfit("pool", problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefork::Backend;

    fn refused(supervisor: Supervisor) -> Error {
        supervisor.start().expect_err("a refusal")
    }

    #[track_caller]
    fn assert_refused(error: &Error, setting: &str, pool: Option<&str>, text: &str) {
        assert_eq!(error.setting(), Some(setting), "{error}");
        assert_eq!(error.pool(), pool, "{error}");
        assert_eq!(error.to_string(), text);
    }

    fn one() -> Prefork {
        Prefork::new().workers(1)
    }

    #[test]
    fn a_service_without_a_pool_is_refused() {
        assert_refused(&refused(Supervisor::new()), "pool", None, "pool: the service has no pool");
        let error = Supervisor::new().run_threads(|_| Ok(())).expect_err("a refusal");
        assert_refused(&error, "pool", None, "pool: the service has no pool");
    }

    #[test]
    fn two_pools_with_one_name_are_refused() {
        let error = refused(Supervisor::new().pool("web", one()).pool("jobs", one()).pool("web", one()));
        assert_refused(&error, "pool", Some("web"), "web: pool: another pool has this name");
    }

    #[test]
    fn names_that_cannot_be_shown_are_refused() {
        for (name, text) in [
            ("", "pool: the name of a pool is empty"),
            ("a/b", "pool: the name \"a/b\" contains '/', which separates the parts of a process name"),
            ("a\nb", "pool: the name \"a\\nb\" contains the control character '\\n'"),
            ("a\u{7f}", "pool: the name \"a\\u{7f}\" contains the control character '\\u{7f}'"),
            ("a b", "pool: the name \"a b\" contains whitespace"),
            ("\u{3000}", "pool: the name \"\\u{3000}\" contains whitespace"),
        ] {
            assert_refused(&refused(Supervisor::new().pool("web", one()).pool(name, one())), "pool", None, text);
        }
        for name in ["web", "größe", "-", "1", "a.name:that_is-longer-than-the-system-can-show"] {
            check_name(name).expect(name);
        }
    }

    #[test]
    fn service_settings_on_a_pool_are_refused() {
        for (setting, pool) in [
            ("name", one().name("shop")),
            ("on_event", one().on_event(|_, _| {})),
            ("on_interval", one().on_interval(Duration::from_secs(1), |_, _| {})),
            ("pid_file", one().pid_file("/run/web.pid")),
            ("program", one().program("/srv/web")),
            ("upgrade_timeout", one().upgrade_timeout(Duration::from_secs(1))),
            #[cfg(unix)]
            ("socket_activation", one().socket_activation()),
            #[cfg(unix)]
            ("notify_systemd", one().notify_systemd()),
        ] {
            let error = refused(Supervisor::new().name("shop").pool("web", one()).pool("jobs", pool));
            let text = format!(
                "jobs: {setting}: this setting concerns the whole service, so make it on the Supervisor, not on a pool"
            );
            assert_refused(&error, setting, Some("jobs"), &text);
        }
    }

    #[test]
    fn invalid_settings_name_their_pool() {
        let error = refused(Supervisor::new().pool("web", one()).pool("jobs", one().max_workers(0)));
        assert_refused(&error, "max_workers", Some("jobs"), "jobs: max_workers: 0 is below the 1 workers asked for");
        let error = refused(Supervisor::new().name("a/b").pool("web", one()));
        assert_refused(&error, "name", None, "name: \"a/b\" contains '/', which separates a worker's id");
    }

    #[test]
    fn too_many_workers_in_all_pools_are_refused() {
        let limit = crate::sys::process_limit();
        let half = || Prefork::new().workers(limit / 2 + 1);
        let error = refused(Supervisor::new().pool("web", half()).pool("jobs", half()));
        let text =
            format!("{} workers asked for, but this system can have at most {limit} processes", limit / 2 * 2 + 2);
        assert_refused(&error, "workers", None, &text);
        let error = refused(Supervisor::new().pool("web", one()).pool("jobs", one().workers(usize::MAX)));
        assert_eq!(error.pool(), Some("jobs"), "{error}");
    }

    #[test]
    fn threads_next_to_forks_are_refused() {
        let service = Supervisor::new().pool("web", one()).pool("jobs", one().backend(Backend::Fork));
        let error = service.run_threads(|_| Ok(())).expect_err("a refusal");
        let text =
            "jobs: backend: run_threads() starts threads, and a process with several threads cannot fork workers";
        assert_refused(&error, "backend", Some("jobs"), text);
    }

    #[cfg(unix)]
    #[test]
    fn threads_of_another_user_are_refused() {
        let service = Supervisor::new().pool("web", one()).pool("jobs", one().user("root"));
        let error = service.run_threads(|_| Ok(())).expect_err("a refusal");
        assert_eq!(error.setting(), Some("user"), "{error}");
        assert_eq!(error.pool(), Some("jobs"), "{error}");
    }

    #[test]
    fn nothing_is_opened_before_all_settings_are_valid() {
        let in_use = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = in_use.local_addr().expect("an address");
        let web = one().listen(port);
        let error = refused(Supervisor::new().pool("web", web).pool("jobs", one().max_surge(0)));
        assert_eq!(error.setting(), Some("max_surge"), "{error}");
    }
}
