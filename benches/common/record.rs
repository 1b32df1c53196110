//! The records that the compared programs write for the driver.

use std::io;

/// The supervisor of a compared program: taskfork (`Ours`), or the bare loop (`Bare`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Ours,
    Bare,
}

/// A record that a worker writes when it begins to run, by one write(2). Times are nanoseconds of `CLOCK_MONOTONIC`,
/// which is the same clock in all processes.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub id: u64,
    pub pid: u64,
    /// The time just before the parent began to start workers.
    pub called: u64,
    /// The time when the worker's own code began to run.
    pub ran: u64,
}

impl Role {
    pub const BOTH: [Role; 2] = [Role::Ours, Role::Bare];

    pub const fn name(self) -> &'static str {
        match self {
            Role::Ours => "ours",
            Role::Bare => "bare",
        }
    }

    /// Returns both roles in an order that alternates by round, so that neither always runs right after the other.
    pub fn in_round(round: usize) -> [Role; 2] {
        let mut roles = Role::BOTH;
        roles.rotate_left(round % 2);
        roles
    }

    pub fn from_arguments(arguments: &[String]) -> Option<(Role, usize)> {
        let [role, workers] = arguments else { return None };
        let role = Role::BOTH.into_iter().find(|known| known.name() == role)?;
        Some((role, workers.parse().ok()?))
    }
}

impl Record {
    pub const SIZE: usize = 32;

    pub fn write(self) -> io::Result<()> {
        let bytes = self.to_bytes();
        // SAFETY: write(2) reads `bytes` for its length.
        match unsafe { libc::write(libc::STDOUT_FILENO, bytes.as_ptr().cast(), bytes.len()) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

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

pub fn end_with_parent() -> io::Result<()> {
    // SAFETY: prctl(2) with PR_SET_PDEATHSIG takes an integer, and accesses no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes `time`, and cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
