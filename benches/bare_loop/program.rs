//! The programs that are compared. Each has one thread, starts its workers, and replaces whoever ends.

use std::convert::Infallible;
use std::io;

/// Which of the two supervises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Ours,
    Bare,
}

/// What a worker writes, in one write(2). The times are of `CLOCK_MONOTONIC`, which all processes share.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub id: u64,
    pub pid: u64,
    /// When its parent was about to make the call.
    pub called: u64,
    /// When the worker's own code began to run.
    pub ran: u64,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Role::Ours => "ours",
            Role::Bare => "bare",
        }
    }

    pub fn from_arguments(arguments: &[String]) -> Option<(Role, usize)> {
        let [role, workers] = arguments else { return None };
        let role = [Role::Ours, Role::Bare].into_iter().find(|known| known.name() == role)?;
        Some((role, workers.parse().ok()?))
    }
}

impl Record {
    pub const SIZE: usize = 32;

    fn to_bytes(self) -> [u8; Record::SIZE] {
        let mut bytes = [0; Record::SIZE];
        for (to, field) in bytes.chunks_exact_mut(8).zip([self.id, self.pid, self.called, self.ran]) {
            to.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Record {
        let field = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at * 8 + byte]));
        Record { id: field(0), pid: field(1), called: field(2), ran: field(3) }
    }
}

pub fn run(role: Role, workers: usize) -> io::Result<Infallible> {
    end_with_parent(libc::SIGKILL)?;
    let called = now();
    match role {
        Role::Ours => ours(workers, called),
        Role::Bare => bare(workers, called),
    }
}

fn ours(workers: usize, called: u64) -> io::Result<Infallible> {
    let id = taskfork::fork_processes(workers, 1_000_000);
    let ran = now();
    work(Record { id: id? as u64, pid: std::process::id().into(), called, ran })
}

fn bare(workers: usize, called: u64) -> io::Result<Infallible> {
    let mut pids = vec![0; workers];
    for (id, pid) in pids.iter_mut().enumerate() {
        *pid = fork_worker(id, called)?;
    }
    loop {
        // SAFETY: a null pointer is allowed for a status that nobody asks for.
        let ended = unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
        if ended == -1 {
            return Err(io::Error::last_os_error());
        }
        if let Some(id) = pids.iter().position(|&pid| pid == ended) {
            pids[id] = fork_worker(id, called)?;
        }
    }
}

fn fork_worker(id: usize, called: u64) -> io::Result<libc::pid_t> {
    // SAFETY: this program has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let ran = now();
            let worked = work(Record { id: id as u64, pid: std::process::id().into(), called, ran });
            worked.map(|never| match never {})
        }
        pid => Ok(pid),
    }
}

/// Idles until it is killed, or its parent is.
fn work(record: Record) -> io::Result<Infallible> {
    let bytes = record.to_bytes();
    // SAFETY: the buffer is readable for its length, and the descriptor is nobody else's business.
    if unsafe { libc::write(libc::STDOUT_FILENO, bytes.as_ptr().cast(), bytes.len()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // Here, so that it costs the bare loop nothing that is measured.
    end_with_parent(libc::SIGKILL)?;
    loop {
        // SAFETY: it does nothing but wait.
        unsafe { libc::pause() };
    }
}

fn end_with_parent(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: it concerns this process alone.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is there to be written; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
