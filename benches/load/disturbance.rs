//! Disturbances of a server that is under load: signals to the parent and kills of workers.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use rand::seq::IndexedRandom;

use crate::connection;
use crate::deployment::Broken;
use crate::procfs;
use crate::server::Server;

pub const PERIOD: Duration = Duration::from_millis(250);

/// A step that takes longer than this fails the run.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Disturbance {
    /// HUP to the parent
    Hup,
    /// TTIN and TTOU to the parent, in turn
    Scale,
    /// kill -9 of a random worker
    Kill,
    /// USR2 to the parent after the deployment of another build, again as soon as the upgrade has ended
    Upgrade,
    /// USR2 to the parent after the deployment of a broken build, in turn, again as soon as the trial has failed
    Broken,
}

/// The kill of a worker.
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    worker: Pid,
    /// The time in microseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// The number of open connections that the worker had accepted.
    pub accepted: u64,
}

impl Disturbance {
    pub fn name(self) -> &'static str {
        match self {
            Disturbance::Hup => "HUP",
            Disturbance::Scale => "TTIN, TTOU",
            Disturbance::Kill => "kill -9",
            Disturbance::Upgrade => "upgrades",
            Disturbance::Broken => "broken builds",
        }
    }

    /// Returns whether the next disturbance waits for the end of the last one, instead of a period.
    pub fn is_consecutive(self) -> bool {
        matches!(self, Disturbance::Upgrade | Disturbance::Broken)
    }

    /// Disturbs the server once. `times` is the number of earlier disturbances. Returns false if there is no worker to
    /// kill. This can happen because taskfork delays the restart of a worker that is killed repeatedly.
    pub fn disturb(self, server: &mut Server, times: usize, kills: &mut Vec<Kill>) -> io::Result<bool> {
        let signal = match self {
            Disturbance::Kill => return kill(server, kills),
            Disturbance::Upgrade => return server.upgrade(times + 1).map(|()| true),
            Disturbance::Broken => {
                let builds = Broken::value_variants();
                return server.refuse(builds[times % builds.len()]).map(|()| true);
            }
            Disturbance::Hup => Signal::SIGHUP,
            Disturbance::Scale if times % 2 == 0 => Signal::SIGTTIN,
            Disturbance::Scale => Signal::SIGTTOU,
        };
        server.signal(signal).map(|()| true)
    }
}

/// Kills a random worker. Skips the processes that it has already killed, because they may not have ended yet.
fn kill(server: &Server, kills: &mut Vec<Kill>) -> io::Result<bool> {
    let mut workers = server.workers()?;
    workers.retain(|worker| kills.iter().all(|kill| kill.worker != *worker));
    let Some(&worker) = workers.choose(&mut rand::rng()) else { return Ok(false) };
    kills.push(kill_stopped(worker).map_err(|error| io::Error::other(format!("worker {worker}: {error}")))?);
    Ok(true)
}

/// Stops the worker by SIGSTOP, counts its connections, and then kills it. A stopped worker accepts no connections, so
/// the count is still right when the worker is killed.
fn kill_stopped(worker: Pid) -> io::Result<Kill> {
    signal::kill(worker, Signal::SIGSTOP)?;
    wait_until_stopped(worker)?;
    let accepted = connection::count(worker)?;
    let at = now();
    signal::kill(worker, Signal::SIGKILL)?;
    Ok(Kill { worker, at, accepted })
}

fn wait_until_stopped(worker: Pid) -> io::Result<()> {
    let until = Instant::now() + LIMIT;
    loop {
        match procfs::state(worker)? {
            'T' => return Ok(()),
            'Z' => return Err(io::Error::other("it ended before it was killed")),
            _ if Instant::now() > until => return Err(io::ErrorKind::TimedOut.into()),
            _ => thread::yield_now(),
        }
    }
}

/// Returns the time in microseconds of `CLOCK_MONOTONIC`, which `report.lua` uses too.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec, and cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}
