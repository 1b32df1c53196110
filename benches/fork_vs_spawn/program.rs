//! The measured program: a service with two workers. The driver sends it signals, so that it starts one more worker and
//! stops that worker again.

use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant};

use taskfork::{Backend, Event, Handle, Prefork, Role};

use crate::memory::{self, Pages};

/// The number of workers that run all the time. So memory that workers share is not counted as private memory of the
/// added worker.
pub const WORKERS: usize = 2;

/// The parameters of a measured program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    pub backend: Backend,
    pub pages: Pages,
    /// MiB of memory to which only the parent writes.
    pub mebibytes: usize,
    /// Milliseconds of work before the call of `start()`. A spawned worker does this work too.
    pub startup: u64,
}

/// A record about the start of a worker. The worker writes one when it begins to run. The parent writes another one
/// when that worker has exited. Each is written by one write(2).
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// The worker's pid.
    pub pid: u64,
    /// Nanoseconds of `CLOCK_MONOTONIC`, which is the same clock in all processes. A worker's record has the time when
    /// it began to run. The parent's record has the time when the parent was about to start that worker.
    pub time: u64,
}

impl Series {
    pub fn arguments(self) -> [String; 5] {
        let backend = if self.backend == Backend::Fork { "fork" } else { "spawn" };
        let pages = if self.pages == Pages::Plain { "plain" } else { "huge" };
        ["program".into(), backend.into(), pages.into(), self.mebibytes.to_string(), self.startup.to_string()]
    }

    pub fn from_arguments(arguments: &[String]) -> Option<Series> {
        let [_, _, _, mebibytes, startup] = arguments else { return None };
        let mebibytes = mebibytes.parse().ok()?;
        let startup = startup.parse().ok()?;
        let backends = [Backend::Fork, Backend::Spawn].into_iter();
        backends
            .flat_map(|backend| [Pages::Plain, Pages::Huge].map(|pages| Series { backend, pages, mebibytes, startup }))
            .find(|series| series.arguments()[..] == *arguments)
    }
}

impl Record {
    pub const SIZE: usize = 16;

    fn to_bytes(self) -> [u8; Record::SIZE] {
        (u128::from(self.pid) << 64 | u128::from(self.time)).to_ne_bytes()
    }

    pub fn from_bytes(bytes: [u8; Record::SIZE]) -> Record {
        let both = u128::from_ne_bytes(bytes);
        Record { pid: (both >> 64) as u64, time: both as u64 }
    }
}

pub fn run(series: Series) -> io::Result<()> {
    // A spawned worker executes this code too, but only the parent allocates the memory. So the benchmark measures the
    // cost of memory that only the parent has.
    if std::env::var_os("TASKFORK_WORKER").is_none() {
        end_with_driver()?;
        memory::touch(series.mebibytes, series.pages)?;
    }
    start_up(Duration::from_millis(series.startup));
    let service = Prefork::new().workers(WORKERS).graceful_timeout(Duration::from_secs(1)).backend(series.backend);
    let role = service.on_event(reporter()).start();
    let time = now();
    match role.map_err(io::Error::other)? {
        Role::Worker(_) => work(Record { pid: std::process::id().into(), time }).map(|never| match never {}),
        _ => Ok(()),
    }
}

/// Works for this time. This stands for the work that a program does before it can serve.
fn start_up(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {}
}

/// Returns an event handler that writes the parent's record of a start. It writes the record only after the worker's
/// exit, because a write would wake the driver during the measured start.
fn reporter() -> impl FnMut(&Event, &Handle) + 'static {
    let mut about_to_start = 0;
    move |event, _| match event {
        Event::Scaled { workers, .. } if *workers > WORKERS => about_to_start = now(),
        Event::Exited { process, .. } => {
            if let Err(error) = write(Record { pid: process.pid.unwrap_or(0).into(), time: about_to_start }) {
                eprintln!("fork_vs_spawn: {error}");
            }
        }
        _ => {}
    }
}

/// Writes the record, and idles until SIGTERM kills the worker.
fn work(record: Record) -> io::Result<Infallible> {
    write(record)?;
    loop {
        // SAFETY: pause(2) only waits for a signal.
        unsafe { libc::pause() };
    }
}

fn write(record: Record) -> io::Result<()> {
    let bytes = record.to_bytes();
    // SAFETY: write(2) reads `bytes` for its length.
    match unsafe { libc::write(libc::STDOUT_FILENO, bytes.as_ptr().cast(), bytes.len()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn end_with_driver() -> io::Result<()> {
    // SAFETY: prctl(2) with PR_SET_PDEATHSIG takes an integer, and accesses no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes `time`, and cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
