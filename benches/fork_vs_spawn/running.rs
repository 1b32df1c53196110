//! The driver's handle for a measured program that runs.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::memory;
use crate::program::{Record, Series, WORKERS};

/// The time in milliseconds after which a program that writes no record is considered stuck.
const PATIENCE: libc::c_int = 30_000;

/// The time after which every process has handled the last event and sleeps again.
const SETTLE: Duration = Duration::from_millis(2);

pub struct Running {
    program: Child,
    records: ChildStdout,
}

/// Memory of a worker in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub private: u64,
    pub page_tables: u64,
}

impl Running {
    /// Starts a program, and waits until it has touched its memory and all workers run.
    pub fn start(series: Series) -> io::Result<Running> {
        let mut program = Command::new(std::env::current_exe()?)
            .args(series.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let records = program.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        let mut running = Running { program, records };
        (0..WORKERS).try_for_each(|_| running.read().map(drop))?;
        thread::sleep(SETTLE);
        Ok(running)
    }

    pub fn pid(&self) -> u64 {
        self.program.id().into()
    }

    /// Makes the program start one more worker and stop it again, `count` times. Returns the time of each start.
    pub fn time_starts(&mut self, count: u64) -> io::Result<Vec<Duration>> {
        let time = |(ran, called): (Record, Record)| Duration::from_nanos(ran.time - called.time);
        (0..count).map(|_| self.with_one_more(Ok).map(time)).collect()
    }

    /// Makes the program start one more worker and stop it again, `count` times. Returns the memory of each such
    /// worker.
    pub fn measure(&mut self, count: usize) -> io::Result<Vec<Usage>> {
        let look = |Record { pid, .. }| {
            thread::sleep(SETTLE);
            Ok(Usage { private: memory::private(pid)?, page_tables: memory::page_tables(pid)? })
        };
        (0..count).map(|_| Ok(self.with_one_more(look)?.0)).collect()
    }

    fn with_one_more<T>(&mut self, look: impl FnOnce(Record) -> io::Result<T>) -> io::Result<(T, Record)> {
        self.signal(libc::SIGTTIN)?;
        let ran = self.read()?;
        let seen = look(ran)?;
        self.signal(libc::SIGTTOU)?;
        let called = self.read()?;
        if called.pid != ran.pid {
            return Err(io::Error::other(format!(
                "the worker of {ran:?} was started, but the parent's record is {called:?}"
            )));
        }
        thread::sleep(SETTLE);
        Ok((seen, called))
    }

    fn read(&mut self) -> io::Result<Record> {
        self.await_record()?;
        let mut bytes = [0; Record::SIZE];
        self.records.read_exact(&mut bytes)?;
        Ok(Record::from_bytes(bytes))
    }

    fn await_record(&self) -> io::Result<()> {
        let mut wanted = libc::pollfd { fd: self.records.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: poll(2) accesses one entry, as the count says, and `wanted` is one.
        match unsafe { libc::poll(&raw mut wanted, 1, PATIENCE) } {
            1.. => Ok(()),
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        // SAFETY: kill(2) accesses no memory, and the pid is that of a child that is not reaped yet.
        match unsafe { libc::kill(self.program.id() as libc::pid_t, signal) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Stops the program, which stops its workers first.
impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.signal(libc::SIGTERM).and_then(|()| self.program.wait()) {
            eprintln!("fork_vs_spawn: {error}");
        }
    }
}
