//! waitid(2) and waitpid(2).
//!
//! Not through nix: its status names the signal by an enum that has no real-time signals, so that a child killed by one is
//! an error, and reaped.
//!
//! # Safety
//! Both calls write a status into memory of the right size. Only children of this process can be named.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::{io, mem};

use super::signal::number;
use crate::sys::{CallError, Signal};

/// A child that is not reaped yet, so that its pid is its own.
#[derive(Debug)]
pub(crate) struct ChildHandle {
    pid: u32,
}

impl ChildHandle {
    pub(crate) fn new(pid: u32) -> ChildHandle {
        ChildHandle { pid }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether somebody else in this process has waited for it: else, when it ends, the signal that tells of it is there.
    pub fn was_reaped_elsewhere(&self) -> bool {
        // SAFETY: siginfo_t consists of integers and pointers, for which zeroes are fine.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` is a siginfo_t to be written.
        let answer = unsafe { libc::waitid(libc::P_PID, self.pid as libc::id_t, &raw mut info, flags) };
        answer != 0 && is_echild(&CallError::last("waitid"))
    }

    /// A signal, also to one that has ended.
    pub fn send(&self, signal: Signal) -> Result<(), CallError> {
        // SAFETY: kill(2) takes integers.
        match unsafe { libc::kill(self.pid as libc::pid_t, number(signal)) } {
            0 => Ok(()),
            _ => Err(CallError::last("kill")),
        }
    }

    /// Reaps it if it has ended. It is to be forgotten then.
    pub fn reap(&self) -> Result<Option<ExitStatus>, CallError> {
        wait_for(self.pid, libc::WNOHANG)
    }

    /// Waits until it has ended, and reaps it.
    pub fn reap_blocking(&self) -> Result<Option<ExitStatus>, CallError> {
        loop {
            match wait_for(self.pid, 0) {
                Err(error) if error.source.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// A child that has ended and is not reaped yet, if there is any. It stays as it is.
pub(crate) fn peek_exited() -> Result<Option<u32>, CallError> {
    // SAFETY: siginfo_t consists of integers and unions of them, for which zeroes are fine.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a siginfo_t to be written.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } != 0 {
        let error = CallError::last("waitid");
        // There is none at all.
        return if is_echild(&error) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid(2) fills in the fields of SIGCHLD, or leaves the pid zero if no child has ended.
    let pid = unsafe { info.si_pid() };
    Ok(u32::try_from(pid).ok().filter(|&pid| pid != 0))
}

/// The signal that killed it.
pub(crate) fn signal_of(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// As pid 1, which is every orphan's parent, reaps this child that nobody knows. Whether it is gone.
pub(crate) fn reap_as_init(pid: u32) -> Result<bool, CallError> {
    if std::process::id() != 1 {
        return Ok(false);
    }
    match wait_for(pid, libc::WNOHANG) {
        Err(error) if is_echild(&error) => Ok(true),
        result => Ok(result?.is_some()),
    }
}

/// Whether a child could not be reaped because somebody else in this process has done it.
pub(crate) fn is_echild(error: &CallError) -> bool {
    error.source.raw_os_error() == Some(libc::ECHILD)
}

fn wait_for(pid: u32, flags: libc::c_int) -> Result<Option<ExitStatus>, CallError> {
    let mut status = 0;
    // SAFETY: `status` is an int to be written.
    match unsafe { libc::waitpid(pid as libc::pid_t, &raw mut status, flags) } {
        0 => Ok(None),
        -1 => Err(CallError::last("waitpid")),
        _ => Ok(Some(ExitStatus::from_raw(status))),
    }
}
