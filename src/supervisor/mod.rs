//! The supervisor, which runs in the parent. It starts the workers, waits for events, and passes the events to the
//! policy.
//!
//! # A forked child returns through the parent's own loop
//!
//! The parent calls fork(2) in the middle of its loop. The call returns twice: in the parent and in the child. The
//! child has a copy of the parent's stack. So the child leaves the loop in the same way as the parent does when the
//! service ends: each function on the stack returns, up to the call in `main`.
//!
//! ```text
//! main -> Prefork::start -> supervise -> EventLoop::run -> execute -> start -> Launcher::start -> fork(2)
//!
//! parent: Started::Parent -> the child is registered, and the loop goes on
//!                            .. until LoopExit::Finished -> the supervisor is dropped   -> Supervised::Parent -> main
//! child:  Started::Child  -> LoopExit::Child(worker)     -> the supervisor is forgotten -> Supervised::Worker -> main
//! ```
//!
//! The child does not drop the supervisor but forgets it (`mem::forget`), for two reasons. First, the destructors would
//! kill the other workers. Second, freeing memory writes to that memory, and the kernel copies each page that the child
//! writes to (copy-on-write). Copy-on-write is also the reason why the parent writes to few pages between two forks:
//! each of these pages is copied for each worker.
//!
//! A spawned worker does not enter the loop, because `Prefork` recognizes the worker before the loop begins. A worker
//! thread runs only its closure.
//!
//! # Parts
//!
//! - `event_loop`: waits for events, passes them to the policy, and executes the policy's actions.
//! - `children`: the registry of child processes. `reaper`: finds the children that have exited.
//! - `observer`: the receivers of events: the log, systemd, and the program's `on_event` and `on_interval` closures.
//! - `status`: what the observers may look at, and the status of the service, which the program's closures get.
//! - `descriptors`: the descriptors that the parent has open. `poller`: the wait for events on these descriptors.
//! - `handover`: the state that the parent passes to the new program in an upgrade.
//! - `finish`: the steps after the loop: the parent returns a result, and a worker runs its closure.

mod children;
mod descriptors;
mod event_loop;
mod finish;
#[cfg_attr(not(all(target_os = "linux", not(taskfork_portable))), path = "no_handover.rs")]
mod handover;
mod log;
mod memory;
mod observer;
mod poller;
mod pool;
mod reaper;
mod status;
mod strangers;
#[cfg(unix)]
mod systemd;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use std::{mem, process};

use self::descriptors::Descriptors;
use self::event_loop::{EventLoop, LoopExit, Upgrader};
pub(crate) use self::handover::Adoption;
pub(crate) use self::log::warn_of_wait;
use self::observer::{Callback, Interval, Observers};
use self::pool::Pool;
use self::status::ServiceInfo;
#[cfg(unix)]
use crate::backend::Fork;
use crate::backend::{Common, Launcher, Removed, Spawn, Thread, Work};
use crate::error::Result;
use crate::failure;
use crate::handle::HandleReceiver;
use crate::listener::{Retired, Sockets};
use crate::pid_file::PidFile;
use crate::policy::{Config, PoolConfig, Service, UpgradeConfig};
use crate::prefork::UpgradeSettings;
use crate::scoreboard::Scoreboard;
use crate::setup::{WorkerSetup, warn_of_name};
use crate::sys::{self, ProcessName, StandardFds, SupervisorLock, Waker, WorkerKind};
use crate::worker::{self, Worker};
pub(crate) use finish::{Finished, run_and_exit};
pub(crate) use observer::{OnEvent, OnInterval};
#[cfg(unix)]
pub(crate) use systemd::Systemd;

/// The process in which [`supervise`] returns: a worker or the parent.
pub(crate) enum Supervised {
    Worker(Worker),
    Parent(Box<Finished>),
}

/// Everything that [`supervise`] needs.
pub(crate) struct ServiceParts {
    /// The name of the parent's process, if the program has set one.
    pub name: Option<String>,
    pub lock: SupervisorLock,
    pub standard_fds: StandardFds,
    pub pid_file: Option<PidFile>,
    pub on_event: Option<OnEvent>,
    pub on_interval: Option<OnInterval>,
    pub pools: Vec<PoolParts>,
    #[cfg(unix)]
    pub systemd: Option<Systemd>,
    pub upgrade: UpgradeSettings,
    /// The service that this program takes over from the program before an upgrade.
    pub adoption: Option<Box<Adoption>>,
    /// The sockets that only processes of the program before the upgrade use.
    pub retired: Option<Retired>,
}

/// Everything that [`supervise`] needs for one pool.
pub(crate) struct PoolParts {
    pub config: Config,
    /// Whether the failure of this pool does not end the service.
    pub optional: bool,
    /// Whether to create the shared memory through which workers report to the parent.
    pub with_scoreboard: bool,
    pub kind: WorkerKind,
    /// The closure that worker threads run. `None` if the workers are processes.
    pub work: Option<Work>,
    pub sockets: Sockets,
    pub setup: Option<WorkerSetup>,
}

/// Starts the workers and supervises them. In the parent, returns when the service has ended. In each forked worker,
/// returns right after the fork, with the signal mask and the signal dispositions from before the call.
///
/// This function has few values on its stack frame, because the frame is in use at each fork (copy-on-write).
pub(crate) fn supervise(parts: Box<ServiceParts>) -> Result<Supervised> {
    let (mut descriptors, prepared) = open(parts)?;
    let Ready { mut event_loop, adopted, process_name } = prepared.ready(&mut descriptors);
    // A forked child runs code of the program before the call returns in it, for example the logger. If this code
    // panics, nothing of the parent must be dropped in the child.
    #[cfg(unix)]
    let _guard = sys::ChildPanicGuard::new();
    match adopted.and_then(|()| event_loop.run()) {
        Err(error) => {
            drop(event_loop);
            Err(descriptors.close_after(error))
        }
        Ok(LoopExit::Finished(end)) => {
            let (pools, stale) = event_loop.into_reports();
            Ok(Supervised::Parent(Box::new(Finished { end, pools, stale, descriptors })))
        }
        Ok(LoopExit::Child(worker)) => {
            mem::forget(event_loop);
            if let Some(process_name) = process_name {
                process_name.keep();
            }
            let worker = enter_worker(worker);
            descriptors.release_in_child();
            Ok(Supervised::Worker(worker))
        }
    }
}

/// What the event loop needs besides the descriptors.
struct Prepared {
    name: Option<String>,
    on_event: Option<OnEvent>,
    on_interval: Option<OnInterval>,
    #[cfg(unix)]
    systemd: Option<Systemd>,
    upgrade: UpgradeSettings,
    upgrade_config: UpgradeConfig,
    adoption: Option<Box<Adoption>>,
    retired: Option<Retired>,
    configs: Vec<PoolConfig>,
    /// Wakes the parent. `None` if no pool has shared memory: this is the case only in `fork_processes`.
    waker: Option<Arc<Waker>>,
    pools: Vec<Pool>,
}

/// The event loop before its first round.
struct Ready<'a> {
    event_loop: Box<EventLoop<'a>>,
    /// The result of the takeover of a service from the program before an upgrade.
    adopted: Result<()>,
    /// Dropped at the end of the service, in the parent only.
    process_name: Option<ProcessName>,
}

impl Prepared {
    /// Creates the event loop. Not inlined, so that the stack frame of this function is gone before the first fork
    /// (copy-on-write).
    #[inline(never)]
    fn ready(self: Box<Self>, descriptors: &mut Descriptors) -> Ready<'_> {
        let Prepared { name, on_event, on_interval, upgrade, upgrade_config, adoption, retired, .. } = *self;
        let Prepared { configs, waker, pools, .. } = *self;
        // The pools that the program does not have any more come last, and handles do not reach them.
        let names = configs.iter().filter(|pool| !pool.removed).map(|pool| pool.config.pool).collect();
        // A service without a scoreboard has no callback.
        let has_callback = on_event.is_some() || on_interval.is_some();
        let requests = waker.filter(|_| has_callback).map(|waker| HandleReceiver::new(waker, names));
        let handle = requests.as_ref().map(HandleReceiver::handle);
        let callback = on_event.zip(handle.clone()).map(|(on_event, handle)| Callback { on_event, handle });
        let now = Instant::now();
        let interval = on_interval.zip(handle).map(|(on_interval, handle)| Interval::new(on_interval, handle, now));
        let observers = Observers::new(
            #[cfg(unix)]
            self.systemd,
            callback,
            interval,
        );
        let info = ServiceInfo::new(name.clone(), adoption.as_ref().map(|adoption| adoption.uptime()));
        let process_name = name.and_then(name_parent);
        let service = service_of(configs, upgrade_config, adoption.as_deref());
        let upgrader = Upgrader::new(upgrade, retired);
        let mut event_loop = EventLoop::new(service, pools, observers, info, requests, upgrader, descriptors);
        let adopted = adoption.map_or(Ok(()), |adoption| event_loop.adopt(*adoption));
        Ready { event_loop, adopted, process_name }
    }
}

/// Returns what the policy needs to know about upgrades.
fn upgrade_config(settings: &UpgradeSettings, kinds: &[WorkerKind]) -> UpgradeConfig {
    let refusal = if kinds.contains(&WorkerKind::Thread) {
        Some("the workers are threads, which end with the old program")
    } else {
        (!sys::CAN_UPGRADE).then_some("only Linux supports upgrades")
    };
    UpgradeConfig { timeout: settings.timeout(), refusal }
}

/// Returns the policy of a service that starts now, or of the service that this program takes over.
fn service_of(configs: Vec<PoolConfig>, upgrade: UpgradeConfig, adoption: Option<&Adoption>) -> Service {
    let now = Instant::now();
    match adoption {
        None => Service::new(configs, upgrade, seed(), now),
        Some(adoption) => Service::adopt(configs, upgrade, adoption.snapshot(), seed(), adoption.taken(), now),
    }
}

/// Returns a seed for the random delays. The seed differs between services, so that services that start together do not
/// also restart their workers together.
fn seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(process::id()) << 32 | u64::from(since.subsec_nanos())
}

/// Names the process of the parent. If that fails, logs a warning and returns `None`.
fn name_parent(name: String) -> Option<ProcessName> {
    ProcessName::set(&name).map_err(|error| warn_of_name(&name, error)).ok()
}

/// The parts of the parent that [`open`] creates.
struct Opened {
    descriptors: Descriptors,
    waker: Option<Arc<Waker>>,
    pools: Vec<Pool>,
}

/// Takes over the signals and creates the pools with their launchers. Not inlined, so that its stack frame is gone
/// before the first fork: the kernel copies every page of the stack that the parent writes to between two forks
/// (copy-on-write).
#[inline(never)]
fn open(parts: Box<ServiceParts>) -> Result<(Descriptors, Box<Prepared>)> {
    let ServiceParts { name, lock, standard_fds, pid_file, on_event, on_interval, pools, .. } = *parts;
    let ServiceParts { upgrade, mut adoption, retired, .. } = *parts;
    let kinds: Vec<WorkerKind> = pools.iter().map(|pool| pool.kind).collect();
    let upgrade_config = upgrade_config(&upgrade, &kinds);
    #[cfg(unix)]
    let has_forks = kinds.contains(&WorkerKind::Fork);
    #[cfg(unix)]
    if has_forks {
        worker::prepare()?;
    }
    let handed_over = adoption.as_deref_mut().map(Adoption::take_signals).transpose()?;
    let descriptors = Descriptors::open(lock, &kinds, standard_fds, pid_file, handed_over)?;
    #[cfg(unix)]
    if has_forks {
        descriptors.warn_of_epolls();
    }
    let mut opened = Opened { descriptors, waker: None, pools: Vec::with_capacity(pools.len()) };
    let configs = match opened.open_pools(pools, adoption.as_deref_mut()) {
        Ok(configs) => configs,
        Err(error) => {
            drop(opened.pools);
            return Err(opened.descriptors.close_after(error));
        }
    };
    let Opened { descriptors, waker, pools } = opened;
    let prepared = Prepared {
        name,
        on_event,
        on_interval,
        #[cfg(unix)]
        systemd: parts.systemd,
        upgrade,
        upgrade_config,
        adoption,
        retired,
        configs,
        waker,
        pools,
    };
    Ok((descriptors, Box::new(prepared)))
}

impl Opened {
    /// Creates the launcher and the shared memory of each pool. Returns the settings of the policy.
    fn open_pools(&mut self, parts: Vec<PoolParts>, mut adoption: Option<&mut Adoption>) -> Result<Vec<PoolConfig>> {
        let handed_over = adoption.as_deref_mut().map(Adoption::take_doorbell).transpose()?.flatten();
        if handed_over.is_some() || parts.iter().any(|pool| pool.with_scoreboard) {
            self.waker = Some(self.descriptors.open_doorbell(handed_over)?);
        }
        let mut common = Common::default();
        let mut configs = Vec::with_capacity(parts.len());
        for PoolParts { config, optional, with_scoreboard, kind, work, sockets, setup } in parts {
            let launcher: Box<dyn Launcher> = match (kind, work) {
                #[cfg(unix)]
                (WorkerKind::Fork, _) => Box::new(Fork::new(setup, config.graceful_timeout, &mut common)?),
                (WorkerKind::Thread, Some(work)) => Box::new(Thread::new(work, setup)),
                (WorkerKind::Spawn | WorkerKind::Thread, _) => {
                    let exit_notifier = self.descriptors.exit_notifier();
                    Box::new(Spawn::new(exit_notifier, setup, config.graceful_timeout, &mut common)?)
                }
            };
            let name = config.pool;
            let new_scoreboard = |waker| match &mut adoption {
                Some(adoption) => adoption.scoreboard(name, config.workers, kind, waker),
                None => Ok(Scoreboard::new(config.workers, kind, Arc::clone(waker))?),
            };
            let scoreboard = self.waker.as_ref().filter(|_| with_scoreboard).map(new_scoreboard).transpose()?;
            self.pools.push(Pool { name, initial_workers: config.workers, launcher, scoreboard, sockets });
            configs.push(PoolConfig { config, optional, removed: false });
        }
        if let Some(adoption) = adoption {
            self.open_removed(&mut configs, adoption)?;
        }
        Ok(configs)
    }

    /// Adds the pools of the program before the upgrade that this program does not have. Their processes are stopped.
    fn open_removed(&mut self, configs: &mut Vec<PoolConfig>, adoption: &mut Adoption) -> Result<()> {
        let known: Vec<&str> = configs.iter().map(|pool| pool.config.pool).collect();
        let removed: Vec<Config> = adoption.removed_pools(&known);
        for config in removed {
            let name = config.pool;
            let adopt = |waker| adoption.scoreboard(name, 0, WorkerKind::Spawn, waker);
            let scoreboard = self.waker.as_ref().map(adopt).transpose()?;
            let sockets = Sockets::default();
            self.pools.push(Pool { name, initial_workers: 0, launcher: Box::new(Removed), scoreboard, sockets });
            configs.push(PoolConfig { config, optional: true, removed: true });
        }
        Ok(())
    }
}

/// Turns this process into the worker. If that fails, logs the error and ends this process with status 1. The error
/// does not reach the program, because the parent handles the exit.
#[inline]
pub(crate) fn enter_worker(worker: Worker) -> Worker {
    if let Err(error) = worker::become_worker(&worker) {
        failure::report(&format_args!("{:?}", error.in_pool(worker.name().pool)));
        ::log::logger().flush();
        sys::exit_now(1);
    }
    worker
}
