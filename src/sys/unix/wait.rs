//! waitid(2) and waitpid(2).
//!
//! nix is not used here, because its status has no real-time signals: if one of these has killed a child, nix reaps the
//! child and returns an error.
//!
//! # Safety
//! Both calls write a status into memory of the right size, and affect only children of this process.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::{io, mem};

use super::signal::number;
use crate::sys::{CallError, Signal};

/// A child that has not been reaped yet. So its pid still belongs to it.
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

    /// Returns whether other code in this process has reaped the child. Returns false for a child that has exited but
    /// was not reaped.
    pub fn was_reaped_elsewhere(&self) -> bool {
        // SAFETY: siginfo_t consists of integers and pointers, for which zeroes are valid.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: waitid(2) writes one siginfo_t. With WNOWAIT it reaps nothing.
        let result = unsafe { libc::waitid(libc::P_PID, self.pid as libc::id_t, &raw mut info, flags) };
        result != 0 && is_echild(&CallError::last("waitid"))
    }

    /// Sends a signal. Has no effect on a child that has exited but was not reaped.
    pub fn send(&self, signal: Signal) -> Result<(), CallError> {
        // SAFETY: kill(2) takes integers and accesses no memory.
        match unsafe { libc::kill(self.pid as libc::pid_t, number(signal)) } {
            0 => Ok(()),
            _ => Err(CallError::last("kill")),
        }
    }

    /// Reaps the child if it has exited. The caller must then drop the handle, because the pid may be used again.
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
    // SAFETY: siginfo_t consists of integers and pointers, for which zeroes are valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: waitid(2) writes one siginfo_t. With WNOWAIT it reaps nothing.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } != 0 {
        let error = CallError::last("waitid");
        // ECHILD: this process has no child.
        return if is_echild(&error) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid(2) has written the fields of SIGCHLD. If no child has exited, the pid is still zero.
    let pid = unsafe { info.si_pid() };
    Ok(u32::try_from(pid).ok().filter(|&pid| pid != 0))
}

/// Returns the signal that killed the process.
pub(crate) fn signal_of(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// Reaps a child that is no worker, if this process is pid 1, because every orphan becomes a child of pid 1. Returns
/// whether the child was reaped, here or by other code.
pub(crate) fn reap_as_init(pid: u32) -> Result<bool, CallError> {
    if std::process::id() != 1 {
        return Ok(false);
    }
    match wait_for(pid, libc::WNOHANG) {
        Err(error) if is_echild(&error) => Ok(true),
        result => Ok(result?.is_some()),
    }
}

/// Returns whether a wait for a child failed with `ECHILD`, because other code in this process has reaped the child.
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
