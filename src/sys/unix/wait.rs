//! waitid(2) and waitpid(2).
//!
//! nix is not used here: its status has no real-time signals, so it would reap a child killed by one and return an
//! error.
//!
//! # Safety
//! Both calls write a status into memory of the right size, and affect only children of this process.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::{io, mem};

use super::signal::number;
use crate::sys::{CallError, Signal};

/// A child that has not been reaped yet, so that its pid is still its own.
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

    /// Returns whether other code in this process has reaped the child. (If only its exit was missed, the child still
    /// waits to be reaped, and SIGCHLD is pending.)
    pub fn was_reaped_elsewhere(&self) -> bool {
        // SAFETY: siginfo_t consists of integers and pointers, for which zeroes are valid.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: waitid(2) writes one siginfo_t.
        let answer = unsafe { libc::waitid(libc::P_PID, self.pid as libc::id_t, &raw mut info, flags) };
        answer != 0 && is_echild(&CallError::last("waitid"))
    }

    /// Sends a signal. A child that has exited but was not reaped takes it without effect.
    pub fn send(&self, signal: Signal) -> Result<(), CallError> {
        // SAFETY: kill(2) takes integers.
        match unsafe { libc::kill(self.pid as libc::pid_t, number(signal)) } {
            0 => Ok(()),
            _ => Err(CallError::last("kill")),
        }
    }

    /// Reaps the child if it has exited. The caller must drop the handle then.
    pub fn reap(&self) -> Result<Option<ExitStatus>, CallError> {
        wait_for(self.pid, libc::WNOHANG)
    }

    /// Waits until the child has exited, and reaps it.
    pub fn reap_blocking(&self) -> Result<Option<ExitStatus>, CallError> {
        loop {
            match wait_for(self.pid, 0) {
                Err(error) if error.source.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// Returns a child that has exited, without reaping it.
pub(crate) fn peek_exited() -> Result<Option<u32>, CallError> {
    // SAFETY: siginfo_t consists of integers and unions of them, for which zeroes are valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: waitid(2) writes one siginfo_t.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } != 0 {
        let error = CallError::last("waitid");
        // There is no child at all.
        return if is_echild(&error) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid(2) fills the fields of SIGCHLD, or leaves the pid zero if no child has exited.
    let pid = unsafe { info.si_pid() };
    Ok(u32::try_from(pid).ok().filter(|&pid| pid != 0))
}

/// Returns the signal that killed the process.
pub(crate) fn signal_of(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// Reaps a child that is no worker, if this process is pid 1, which is the parent of every orphan. Returns whether the
/// child is gone.
pub(crate) fn reap_as_init(pid: u32) -> Result<bool, CallError> {
    if std::process::id() != 1 {
        return Ok(false);
    }
    match wait_for(pid, libc::WNOHANG) {
        Err(error) if is_echild(&error) => Ok(true),
        result => Ok(result?.is_some()),
    }
}

/// Returns whether a child could not be reaped because other code in this process has reaped it.
pub(crate) fn is_echild(error: &CallError) -> bool {
    error.source.raw_os_error() == Some(libc::ECHILD)
}

fn wait_for(pid: u32, flags: libc::c_int) -> Result<Option<ExitStatus>, CallError> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int.
    match unsafe { libc::waitpid(pid as libc::pid_t, &raw mut status, flags) } {
        0 => Ok(None),
        -1 => Err(CallError::last("waitpid")),
        _ => Ok(Some(ExitStatus::from_raw(status))),
    }
}
