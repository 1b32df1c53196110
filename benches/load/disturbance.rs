//! What is done to a server while it is asked.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use rand::seq::IndexedRandom;

use crate::connection;
use crate::procfs;
use crate::server::Server;

pub const PERIOD: Duration = Duration::from_millis(250);

/// What takes longer than this will never happen.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Disturbance {
    /// HUP to the parent
    Hup,
    /// TTIN and TTOU to the parent, in turn
    Scale,
    /// kill -9 of a random worker
    Kill,
}

/// A worker's end.
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    worker: Pid,
    /// In microseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// How many connections it had.
    pub accepted: u64,
}

impl Disturbance {
    pub fn name(self) -> &'static str {
        match self {
            Disturbance::Hup => "HUP",
            Disturbance::Scale => "TTIN, TTOU",
            Disturbance::Kill => "kill -9",
        }
    }

    /// After so many times. False: there is nobody who could be killed. Who is killed young again and again is made to wait
    /// for the next start.
    pub fn strike(self, server: &Server, times: usize, kills: &mut Vec<Kill>) -> io::Result<bool> {
        let signal = match self {
            Disturbance::Kill => return kill(server, kills),
            Disturbance::Hup => Signal::SIGHUP,
            Disturbance::Scale if times % 2 == 0 => Signal::SIGTTIN,
            Disturbance::Scale => Signal::SIGTTOU,
        };
        server.signal(signal).map(|()| true)
    }
}

/// Nobody who was killed before, and may still be about to end.
fn kill(server: &Server, kills: &mut Vec<Kill>) -> io::Result<bool> {
    let mut workers = server.workers()?;
    workers.retain(|worker| kills.iter().all(|kill| kill.worker != *worker));
    let Some(&worker) = workers.choose(&mut rand::rng()) else { return Ok(false) };
    kills.push(kill_stopped(worker).map_err(|error| io::Error::other(format!("worker {worker}: {error}")))?);
    Ok(true)
}

/// It is stopped first: what it has accepted is certain then, and it accepts no more.
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
            'Z' => return Err(io::Error::other("it had ended by itself")),
            _ if Instant::now() > until => return Err(io::ErrorKind::TimedOut.into()),
            _ => thread::yield_now(),
        }
    }
}

/// Of `CLOCK_MONOTONIC`, as `report.lua` has it.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one timespec, and it cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}
