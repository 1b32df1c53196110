//! The program that is measured: a service of a few workers, of which the driver asks for one more, and one fewer.

use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant};

use taskfork::{Backend, Event, Prefork, Role};

use crate::memory::{self, Pages};

/// Those that are always there, so that what the workers share is shared by several.
pub const WORKERS: usize = 2;

/// What is measured in one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    pub backend: Backend,
    pub pages: Pages,
    /// Of memory that only the parent touches.
    pub mebibytes: usize,
    /// Milliseconds of work before the call: that of a worker as well, if it is started as a program.
    pub startup: u64,
}

/// What a worker writes when it runs, and its parent when that worker has ended, each in one write(2).
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// The worker's.
    pub pid: u64,
    /// Of `CLOCK_MONOTONIC`, which all processes share: when it ran; or when it was about to be started.
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
        let (mebibytes, startup) = (mebibytes.parse().ok()?, startup.parse().ok()?);
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
    // A worker that is a program comes by here as well. What the parent's memory costs is the question, not what its own does.
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

/// Stands for what a program reads and computes before it can serve.
fn start_up(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {}
}

/// Tells of a start only when all of it is over, so that nobody is woken meanwhile.
fn reporter() -> impl FnMut(&Event) + 'static {
    let mut about_to_start = 0;
    move |event| match event {
        Event::Scaled { workers } if *workers > WORKERS => about_to_start = now(),
        Event::Exited { process, .. } => {
            if let Err(error) = write(Record { pid: process.pid.unwrap_or(0).into(), time: about_to_start }) {
                eprintln!("fork_vs_spawn: {error}");
            }
        }
        _ => {}
    }
}

/// Idles until it is told to go.
fn work(record: Record) -> io::Result<Infallible> {
    write(record)?;
    loop {
        // SAFETY: it does nothing but wait.
        unsafe { libc::pause() };
    }
}

fn write(record: Record) -> io::Result<()> {
    let bytes = record.to_bytes();
    // SAFETY: the buffer is readable for its length, and the descriptor is nobody else's business.
    match unsafe { libc::write(libc::STDOUT_FILENO, bytes.as_ptr().cast(), bytes.len()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn end_with_driver() -> io::Result<()> {
    // SAFETY: it concerns this process alone.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is there to be written; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
