//! The call in a candidate of an upgrade: a process that runs the new program beside the running service.
//!
//! A candidate never becomes a parent. A checker ends in this module. So does a trial worker that cannot become a
//! worker, because the program may go on after an error.

use std::os::fd::AsFd;

use super::{Checked, Names, check_process, check_settings, kind_of, kinds_of};
use crate::backend::candidate::{Accepted, CheckedPool, Duty, Reply, TrialCall, TrialSettings};
use crate::backend::{find_pool, unfit};
use crate::error::{Error, Result};
use crate::listener::{self, BoundListener, Given, Passed, Retry, Sockets};
use crate::pid_file::PidFile;
use crate::prefork::{PoolSettings, ServiceSettings};
use crate::supervisor;
use crate::sys::{self, WorkerKind};
use crate::worker::Worker;

/// Does what the old parent wants from this candidate. Returns only in a trial worker. Borrows the settings of the
/// service, because no destructor of the program must run in a checker.
pub(super) fn run(
    accepted: Accepted,
    pools: Vec<PoolSettings>,
    service: &ServiceSettings,
    with_threads: bool,
) -> Worker {
    let Accepted { duty, reply, given } = accepted;
    if !reply.knows_format() {
        refuse(&reply, &unfit("the parent of this candidate is an unknown version"));
    }
    match duty {
        Duty::Check => match check(pools, service, with_threads, given) {
            Ok(checked) => pass(&reply, checked),
            Err(error) => refuse(&reply, &error),
        },
        Duty::Work(call) => {
            let names = Names::of(&pools);
            let settings = settings_of(&call, pools, service, with_threads, given);
            match settings.and_then(|settings| call.become_worker(settings, &reply)) {
                Ok(worker) => names.attach(supervisor::enter_worker(worker)),
                Err(error) => refuse(&reply, &error),
            }
        }
    }
}

/// Tells the old parent why this program cannot be the new program, and ends this process.
pub(super) fn refuse(reply: &Reply, error: &Error) -> ! {
    listener::remove_files();
    write_output();
    reply.refuse(error);
    sys::exit_now(1)
}

/// Sends the answer of a checker, and ends this process. The old parent keeps the new sockets open, so their files
/// stay.
fn pass(reply: &Reply, CheckedService { pools, opened }: CheckedService) -> ! {
    write_output();
    let bound = listener::bound();
    let bound = bound.iter().filter(|socket| socket.is_new()).map(BoundListener::passed);
    let opened = opened.iter().map(|Given { spec, fd }| Passed { spec: spec.clone(), fd: fd.as_fd() });
    let is_sent = reply.pass(pools, opened.chain(bound).collect());
    sys::exit_now(if is_sent { 0 } else { 1 })
}

/// Writes the output that is still in buffers. This comes before the answer, because the old parent may kill this
/// process as soon as it has the answer.
fn write_output() {
    log::logger().flush();
    sys::flush_output();
}

/// A service whose settings are valid.
#[derive(Default)]
struct CheckedService {
    pools: Vec<CheckedPool>,
    /// The sockets of listeners that the running service does not have yet.
    opened: Vec<Given>,
}

/// Makes the checks that the parent makes before it starts the workers, and opens the listeners that are not in
/// `given`.
fn check(
    pools: Vec<PoolSettings>,
    service: &ServiceSettings,
    with_threads: bool,
    given: Vec<Given>,
) -> Result<CheckedService> {
    let kinds = kinds_of(&pools, with_threads)?;
    for (pool, kind) in pools.iter().zip(&kinds) {
        check_kind(pool, *kind)?;
    }
    let pools = check_settings(pools, kinds, service)?;
    check_process(&pools)?;
    service.pid_file.as_deref().map_or(Ok(()), |path| PidFile::check(path, sys::parent_id()))?;
    let mut checked = CheckedService::default();
    match open(pools, given, &mut checked) {
        Ok(()) => Ok(checked),
        Err(error) => {
            listener::discard(checked.opened);
            Err(error)
        }
    }
}

/// Opens the new listeners of all pools.
fn open(pools: Vec<Checked>, mut given: Vec<Given>, checked: &mut CheckedService) -> Result<()> {
    let mut on_wait = supervisor::warn_of_wait;
    let mut retry = Retry::new(&mut on_wait);
    for Checked { settings: PoolSettings { config, listens, optional, .. }, .. } in pools {
        let opened = Sockets::check(config.pool, listens, config.workers, &mut given, &mut retry);
        checked.opened.extend(opened.map_err(|error| error.in_pool(config.pool))?);
        checked.pools.push(CheckedPool {
            name: config.pool.to_owned(),
            workers: config.workers,
            max_surge: config.max_surge,
            optional,
            ready_timeout: config.ready_timeout,
        });
    }
    Ok(())
}

/// Refuses a pool of worker threads, because threads end with the old program.
fn check_kind(pool: &PoolSettings, kind: WorkerKind) -> Result<()> {
    match kind {
        WorkerKind::Thread => {
            Err(unfit("its workers are threads, and only worker processes can be upgraded").in_pool(pool.config.pool))
        }
        WorkerKind::Fork | WorkerKind::Spawn => Ok(()),
    }
}

/// Returns what the settings of this program give to the trial worker.
fn settings_of(
    call: &TrialCall,
    pools: Vec<PoolSettings>,
    service: &ServiceSettings,
    with_threads: bool,
    mut given: Vec<Given>,
) -> Result<TrialSettings> {
    let all: Vec<&'static str> = pools.iter().map(|pool| pool.config.pool).collect();
    let pool = find_pool(call.pool(), &all)?;
    let own = pools.into_iter().find(|settings| settings.config.pool == pool);
    let Some(settings) = own else { return Err(unfit("the pool has no settings")) };
    let mut prepare = |settings: PoolSettings| {
        let kind = kind_of(&settings, with_threads)?;
        check_kind(&settings, kind)?;
        let Checked { settings, setup, .. } = Checked::of(settings, kind, service)?;
        let listeners = Sockets::for_trial(pool, settings.listens, call.id(), &mut given)?;
        let setup = setup.map(|setup| setup.for_worker(call.id())).unwrap_or_default();
        Ok(TrialSettings { pool, graceful_timeout: settings.config.graceful_timeout, setup, listeners })
    };
    prepare(settings).map_err(|error: Error| error.in_pool(pool))
}

#[cfg(test)]
mod tests;
