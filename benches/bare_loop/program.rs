//! The two compared programs: one with `fork_processes`, and a bare loop of fork(2) and waitpid(2). Each has one
//! thread, starts its workers, and replaces each worker that exits.

use std::convert::Infallible;
use std::io;

use crate::common::record::{Record, Role, end_with_parent, now};

pub fn run(role: Role, workers: usize) -> io::Result<Infallible> {
    end_with_parent()?;
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
        // SAFETY: waitpid(2) accepts a null pointer for the status.
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
    // SAFETY: this program has one thread, so the child of fork(2) may call any function.
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

/// Writes the record, and idles until this process or its parent is killed.
fn work(record: Record) -> io::Result<Infallible> {
    record.write()?;
    // This call comes after the record is written, so that the measured time of the bare loop does not include it.
    end_with_parent()?;
    loop {
        // SAFETY: pause(2) only waits for a signal.
        unsafe { libc::pause() };
    }
}
