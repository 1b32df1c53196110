//! The start of a service: decides whether this process is a worker or becomes the parent, checks the settings of all
//! pools, opens the listeners, and starts the supervisor.

#[cfg(all(target_os = "linux", not(taskfork_portable)))]
mod candidate;

use std::process;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::backend::{self, Work};
use crate::error::{Error, Result};
use crate::listener::{Given, ListenerNames, Retired, Retry, Sockets};
use crate::pid_file::PidFile;
use crate::prefork::{Backend, PoolSettings, ServiceSettings};
use crate::setup::WorkerSetup;
#[cfg(unix)]
use crate::supervisor::Systemd;
use crate::supervisor::{self, Adoption, PoolParts, ServiceParts, Supervised};
use crate::sys::{self, StandardFds, SupervisorLock, WorkerKind};
use crate::worker::{self, Worker};

/// The backend of a pool for which the program does not choose one.
const DEFAULT_BACKEND: Backend = if cfg!(unix) { Backend::Fork } else { Backend::Spawn };

/// Locked while a spawned process becomes a worker. If several threads of this process start a service at the same
/// time, one of them becomes the worker, and the others get an error.
static ACCEPTING: Mutex<()> = Mutex::new(());

/// The time during which a removed worker keeps serving its own socket after the kernel has stopped sending new
/// connections to the socket. TCP handshakes that have already begun complete in this time. A handshake takes one round
/// trip, or longer if TCP retransmits a segment.
const DRAIN: Duration = Duration::from_secs(1);

/// Starts a service and supervises it. Returns in the parent when the service has ended, and in every worker process.
///
/// If `with_reports` is false, forked workers share no memory with the parent, because the caller does not give the
/// program a [`Worker`]. `work` is the closure that worker threads run. With `work`, the workers of a pool are threads
/// unless the program has chosen a backend for the pool.
pub(crate) fn start(
    pools: Vec<PoolSettings>,
    service: ServiceSettings,
    with_reports: bool,
    work: Option<Work>,
) -> Result<Supervised> {
    // Made first, so that it covers everything that this call opens.
    let standard_fds = StandardFds::reserve()?;
    let accepting = ACCEPTING.lock().unwrap_or_else(PoisonError::into_inner);
    worker::check_no_worker()?;
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    if let Some(accepted) = backend::candidate::accept_candidate()? {
        return Ok(Supervised::Worker(candidate::run(accepted, pools, &service, work.is_some())));
    }
    let kinds = kinds_of(&pools, work.is_some())?;
    let names = Names::of(&pools);
    let spawning = names_of_spawning(&pools, &kinds);
    if spawning.is_empty() {
        backend::check_not_spawned()?;
    } else if let Some(worker) = backend::accept_spawn(&spawning)? {
        return Ok(Supervised::Worker(names.attach(supervisor::enter_worker(worker))));
    }
    drop(accepting);
    let parts = prepare(pools, kinds, service, with_reports, work, standard_fds)?;
    match supervisor::supervise(parts)? {
        Supervised::Worker(worker) => Ok(Supervised::Worker(names.attach(worker))),
        parent => Ok(parent),
    }
}

/// Passes on the error of a check that the caller makes before [`start`]. In a candidate of an upgrade, sends the error
/// to the old parent instead, and ends this process.
pub(crate) fn refuse(error: Error) -> Error {
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    if let Ok(Some(accepted)) = backend::candidate::accept_candidate() {
        candidate::refuse(&accepted.reply, &error);
    }
    error
}

/// Returns the kind of the workers of each pool.
fn kinds_of(pools: &[PoolSettings], with_threads: bool) -> Result<Vec<WorkerKind>> {
    pools.iter().map(|pool| kind_of(pool, with_threads)).collect()
}

/// Returns the kind of the workers of a pool. `with_threads` is whether a pool without a backend has worker threads.
fn kind_of(pool: &PoolSettings, with_threads: bool) -> Result<WorkerKind> {
    let refuse = |problem| Err(Error::unfit("backend", problem).in_pool(pool.config.pool));
    match pool.backend {
        None if with_threads => Ok(WorkerKind::Thread),
        Some(_) if with_threads && pool.config.pool.is_empty() => refuse("run_threads() starts threads, not processes"),
        Some(Backend::Fork) if with_threads => {
            refuse("run_threads() starts threads, and a process with several threads cannot fork workers")
        }
        backend => match backend.unwrap_or(DEFAULT_BACKEND) {
            #[cfg(unix)]
            Backend::Fork => Ok(WorkerKind::Fork),
            #[cfg(not(unix))]
            Backend::Fork => refuse("there is no fork on this system"),
            Backend::Spawn => Ok(WorkerKind::Spawn),
        },
    }
}

fn names_of_spawning(pools: &[PoolSettings], kinds: &[WorkerKind]) -> Vec<&'static str> {
    let spawning = pools.iter().zip(kinds).filter(|(_, kind)| **kind == WorkerKind::Spawn);
    spawning.map(|(pool, _)| pool.config.pool).collect()
}

/// Checks all settings, and then opens the listeners of all pools. Not inlined, so that the stack frame of this
/// function is gone before the first fork: the kernel copies every page of the stack that the parent writes to between
/// two forks (copy-on-write).
#[inline(never)]
fn prepare(
    pools: Vec<PoolSettings>,
    kinds: Vec<WorkerKind>,
    service: ServiceSettings,
    with_reports: bool,
    work: Option<Work>,
    standard_fds: StandardFds,
) -> Result<Box<ServiceParts>> {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "only Unix has activated sockets"))]
    let mut checked = check_settings(pools, kinds, &service)?;
    let lock = SupervisorLock::begin().ok_or_else(Error::supervising)?;
    check_process(&checked)?;
    let mut adoption = Adoption::take()?;
    // Before the listeners, because an error that names the running service is better than an address in use.
    let pid_file = match &mut adoption {
        Some(adoption) => adoption.pid_file(service.pid_file.as_deref())?,
        None => service.pid_file.as_deref().map(PidFile::write).transpose()?,
    };
    let mut given = adoption.as_mut().map(|adoption| adoption.take_sockets()).transpose()?.unwrap_or_default();
    #[cfg(unix)]
    if service.is_activated && adoption.is_none() {
        crate::listener::take_over(checked.iter_mut().flat_map(|pool| &mut pool.settings.listens).collect())?;
    }
    let mut on_wait = supervisor::warn_of_wait;
    let mut retry = Retry::new(&mut on_wait);
    let mut parts = Vec::new();
    for pool in checked {
        let name = pool.settings.config.pool;
        let opened = pool.open(with_reports, work.as_ref(), &mut given, &mut retry);
        parts.push(opened.map_err(|error| error.in_pool(name))?);
    }
    Ok(Box::new(ServiceParts {
        name: service.name,
        lock,
        standard_fds,
        pid_file,
        upgrade: service.upgrade,
        on_event: service.on_event,
        on_interval: service.on_interval,
        pools: parts,
        #[cfg(unix)]
        systemd: service.notifies.then(|| Systemd::from_environment(adoption.is_some())).flatten(),
        retired: adoption.is_some().then(|| Retired::new(given)),
        adoption,
    }))
}

/// Checks the settings of the service and of all pools.
fn check_settings(pools: Vec<PoolSettings>, kinds: Vec<WorkerKind>, service: &ServiceSettings) -> Result<Vec<Checked>> {
    service.check()?;
    let mut checked = Vec::with_capacity(pools.len());
    for (pool, kind) in pools.into_iter().zip(kinds) {
        let name = pool.config.pool;
        checked.push(Checked::of(pool, kind, service).map_err(|error| error.in_pool(name))?);
    }
    check_sum(&checked)?;
    Ok(checked)
}

/// Checks that this process can start the workers of all pools.
fn check_process(pools: &[Checked]) -> Result<()> {
    for pool in pools {
        backend::check(pool.kind, pool.setup.as_ref()).map_err(|error| error.in_pool(pool.settings.config.pool))?;
    }
    Ok(())
}

/// A pool with valid settings.
struct Checked {
    settings: PoolSettings,
    kind: WorkerKind,
    setup: Option<WorkerSetup>,
}

impl Checked {
    fn of(mut settings: PoolSettings, kind: WorkerKind, service: &ServiceSettings) -> Result<Checked> {
        settings.config = settings.config.checked()?;
        if settings.config.max_memory.is_some() {
            check_memory(kind)?;
        }
        let setup = settings.setup.resolve(kind, service.name.as_deref(), settings.config.pool)?;
        Ok(Checked { settings, kind, setup })
    }

    /// Opens the listeners of the pool.
    fn open(
        self,
        with_reports: bool,
        work: Option<&Work>,
        given: &mut Vec<Given>,
        retry: &mut Retry<'_>,
    ) -> Result<PoolParts> {
        let Checked { settings, kind, setup } = self;
        let work = work.filter(|_| kind == WorkerKind::Thread);
        let work = work.map(|work| with_names(Arc::clone(work), settings.listener_names()));
        let PoolSettings { mut config, optional, listens, .. } = settings;
        let sockets = Sockets::open(config.pool, listens, config.workers, given, retry)?;
        config.drain = sockets.are_per_worker().then_some(DRAIN);
        let with_scoreboard = with_reports || kind == WorkerKind::Spawn;
        Ok(PoolParts { config, optional, with_scoreboard, kind, work, sockets, setup })
    }
}

/// Checks that the parent can read how much memory the workers use.
fn check_memory(kind: WorkerKind) -> Result<()> {
    if kind == WorkerKind::Thread {
        return Err(Error::unfit("max_memory", "worker threads share their memory with the parent"));
    }
    let own = process::id();
    match sys::private_memory_bound(own).and_then(|_| sys::private_memory(own)) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Error::unfit("max_memory", format!("the memory of a process cannot be read: {}", error.source)))
        }
    }
}

/// Returns a closure that calls `work` with a worker that knows the names of its listeners.
fn with_names(work: Work, names: ListenerNames) -> Work {
    Arc::new(move |worker: Worker| work(worker.with_listener_names(names.clone())))
}

/// Checks that the system allows the workers of all pools together.
fn check_sum(pools: &[Checked]) -> Result<()> {
    let workers = pools.iter().fold(0, |sum: usize, pool| sum.saturating_add(pool.settings.config.workers));
    crate::prefork::check_process_limit(workers)
}

/// The names of the listeners of each pool that has listeners.
struct Names(Vec<PoolNames>);

struct PoolNames {
    pool: &'static str,
    listeners: ListenerNames,
}

impl Names {
    fn of(pools: &[PoolSettings]) -> Names {
        let names_of = |pool: &PoolSettings| PoolNames { pool: pool.config.pool, listeners: pool.listener_names() };
        Names(pools.iter().map(names_of).filter(|names| names.listeners.is_some()).collect())
    }

    /// Gives the names of its listeners to a worker process.
    fn attach(self, worker: Worker) -> Worker {
        let names = self.0.into_iter().find(|names| names.pool == worker.pool());
        worker.with_listener_names(names.and_then(|names| names.listeners))
    }
}
