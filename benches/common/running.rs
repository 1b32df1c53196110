//! The driver's handle for a compared program that runs.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::procfs;
use super::record::{Record, Role, now};

/// The time in milliseconds after which a program that writes no record is considered stuck.
const PATIENCE: libc::c_int = 30_000;

/// The time after which every process has handled the last event and sleeps again.
pub const SETTLE: Duration = Duration::from_millis(4);

/// The pause between two reads of records. Without it, the driver would wake for every record and use CPU time that the
/// measured processes need.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

pub struct Running {
    program: Child,
    records: ChildStdout,
    /// The pid of each worker by its id, or 0 if the worker has not written a record yet.
    pids: Vec<u64>,
}

impl Running {
    /// Starts a program, and waits until all its workers run. Also returns the nanoseconds from just before the parent
    /// starts workers until the last worker runs.
    pub fn start(role: Role, workers: usize) -> io::Result<(Running, u64)> {
        let mut program = Command::new(std::env::current_exe()?)
            .args([role.name(), &workers.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let records = program.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        let mut running = Running { program, records, pids: vec![0; workers] };
        let mut started = 0;
        let mut latest = 0;
        while started < workers {
            thread::sleep(BETWEEN_LOOKS);
            let records = running.read()?;
            if records.is_empty() {
                let program = role.name();
                return Err(io::Error::other(format!("{program} gave up, with {started} of {workers} workers up")));
            }
            started += records.len();
            latest = records.iter().map(|record| record.ran - record.called).fold(latest, u64::max);
        }
        Ok((running, latest))
    }

    pub fn pid(&self) -> u64 {
        self.program.id().into()
    }

    pub fn workers(&self) -> &[u64] {
        &self.pids
    }

    /// Kills a worker, and returns the nanoseconds from the kill until its replacement runs.
    pub fn replace(&mut self, id: usize) -> io::Result<u64> {
        let killed = now();
        kill(self.pids[id])?;
        match self.read()?[..] {
            [record] if record.id == id as u64 => Ok(record.ran - killed),
            ref others => Err(io::Error::other(format!("worker {id} was killed, but the records are {others:?}"))),
        }
    }

    /// Kills several workers at once. Returns the nanoseconds from the first kill until the last replacement runs.
    pub fn replace_together(&mut self, ids: &[usize]) -> io::Result<u64> {
        let killed = now();
        for &id in ids {
            kill(self.pids[id])?;
        }
        let mut replaced = 0;
        let mut latest = killed;
        while replaced < ids.len() {
            thread::sleep(BETWEEN_LOOKS);
            let records = self.read()?;
            if records.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            replaced += records.len();
            latest = records.iter().map(|record| record.ran).fold(latest, u64::max);
        }
        Ok(latest - killed)
    }

    /// Waits until the parent sleeps and has not been woken for `SETTLE`.
    pub fn settle(&self) -> io::Result<()> {
        let mut before = None;
        loop {
            thread::sleep(SETTLE);
            let now = (procfs::is_asleep(self.pid())?, procfs::switches(self.pid())?);
            if now.0 && before.replace(now) == Some(now) {
                return Ok(());
            }
        }
    }

    /// Requests a rolling restart. Returns the nanoseconds from the request until the parent writes the record that all
    /// workers are replaced.
    pub fn roll(&mut self) -> io::Result<u64> {
        let asked = now();
        self.signal(libc::SIGHUP)?;
        let mut replaced = 0;
        let mut ended = None;
        while ended.is_none() {
            let records = self.read()?;
            if records.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (workers, parent): (Vec<Record>, Vec<Record>) =
                records.into_iter().partition(|record| record.id < self.pids.len() as u64);
            replaced += workers.len();
            ended = parent.first().map(|record| record.ran);
        }
        match ended {
            Some(ended) if replaced == self.pids.len() => Ok(ended - asked),
            _ => Err(io::Error::other(format!("the rolling restart replaced only {replaced} workers"))),
        }
    }

    /// Requests a stop, and returns the nanoseconds from the request until the parent and all workers have exited.
    pub fn stop(&mut self) -> io::Result<u64> {
        let asked = now();
        self.signal(libc::SIGTERM)?;
        let status = self.program.wait()?;
        let took = now() - asked;
        match self.read()?[..] {
            [] if status.success() => Ok(took),
            ref others => {
                Err(io::Error::other(format!("the stop ended with {status}, and with the records {others:?}")))
            }
        }
    }

    fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        // SAFETY: kill(2) accesses no memory, and the pid is that of a child that is not reaped yet.
        match unsafe { libc::kill(self.program.id() as libc::pid_t, signal) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for records, and returns the records written so far. An empty list means that every process that could
    /// write a record has exited.
    fn read(&mut self) -> io::Result<Vec<Record>> {
        self.await_records()?;
        let mut bytes = [0; 512 * Record::SIZE];
        let length = self.records.read(&mut bytes)?;
        let records: Vec<Record> = bytes[..length].chunks_exact(Record::SIZE).map(Record::from_bytes).collect();
        for record in &records {
            // The parent's own record has an id that no worker has, so it changes no pid here.
            self.pids.get_mut(record.id as usize).into_iter().for_each(|pid| *pid = record.pid);
        }
        Ok(records)
    }

    fn await_records(&self) -> io::Result<()> {
        let mut wanted = libc::pollfd { fd: self.records.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: poll(2) accesses one entry, as the count says, and `wanted` is one.
        match unsafe { libc::poll(&raw mut wanted, 1, PATIENCE) } {
            1.. => Ok(()),
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        self.program.kill()?;
        self.program.wait()?;
        // The driver is the parent of these workers now, so their pids cannot be reused before the driver reaps them.
        let mut left: HashSet<u64> = self.pids.iter().copied().filter(|&pid| pid != 0).collect();
        loop {
            left.iter().filter(|&&pid| is_living_child(pid)).try_for_each(|&pid| kill(pid))?;
            let late = self.read()?;
            if late.is_empty() {
                break;
            }
            left.extend(late.iter().map(|record| record.pid));
        }
        left.into_iter().for_each(reap);
        Ok(())
    }
}

/// Kills all processes of the program. A read from the pipe returns the end of the file when the last of them has
/// exited.
impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{}: {error}", env!("CARGO_CRATE_NAME"));
        }
    }
}

/// Makes the driver a subreaper. When it kills a parent, it becomes the parent of the workers that are left.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: prctl(2) with PR_SET_CHILD_SUBREAPER takes an integer, and accesses no memory.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn kill(pid: u64) -> io::Result<()> {
    // SAFETY: kill(2) accesses no memory, and the pid is that of a child, or of a living child of a child.
    match unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_living_child(pid: u64) -> bool {
    // SAFETY: waitpid(2) accepts a null pointer for the status.
    unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), libc::WNOHANG) == 0 }
}

fn reap(pid: u64) {
    // SAFETY: waitpid(2) accepts a null pointer for the status.
    unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), 0) };
}
