//! Sends signals to child processes, and reaps them with waitid(2) and waitpid(2).
//!
//! This module does not use nix, because nix's `WaitStatus` cannot represent real-time signals. If a real-time signal
//! has killed a child, nix reaps the child but returns an error instead of the status.
//!
//! # Safety
//! waitid(2) and waitpid(2) write a status into memory of the right size. They affect only children of this process.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::{io, mem};

use super::signal::number;
use crate::sys::{CallError, Signal};

/// A child process that has not been reaped yet. The kernel cannot give the pid of an unreaped child to another
/// process.
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
        // SAFETY: all-zero bytes are a valid siginfo_t, because it consists of integers and pointers.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: waitid(2) writes one siginfo_t. With WNOWAIT it reaps nothing.
        let result = unsafe { libc::waitid(libc::P_PID, self.pid as libc::id_t, &raw mut info, flags) };
        result != 0 && is_echild(&CallError::last("waitid"))
    }

    /// Sends a signal to the child. Has no effect if the child has exited but was not reaped.
    pub fn send(&self, signal: Signal) -> Result<(), CallError> {
        // SAFETY: kill(2) takes integers and accesses no memory.
        match unsafe { libc::kill(self.pid as libc::pid_t, number(signal)) } {
            0 => Ok(()),
            _ => Err(CallError::last("kill")),
        }
    }

    /// Reaps the child if it has exited, and returns its status. Returns `None` if the child has not exited. The caller
    /// must drop this handle, once the child was reaped, because the kernel may then give the pid to another process.
    pub fn reap(&self) -> Result<Option<ExitStatus>, CallError> {
        wait_for(self.pid, libc::WNOHANG)
    }

    /// Waits until the child has exited, reaps it, and returns its status.
    pub fn reap_blocking(&self) -> Result<Option<ExitStatus>, CallError> {
        loop {
            match wait_for(self.pid, 0) {
                Err(error) if error.source.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// Returns the pid of a child that has exited, without reaping the child.
pub(crate) fn peek_exited() -> Result<Option<u32>, CallError> {
    // SAFETY: all-zero bytes are a valid siginfo_t, because it consists of integers and pointers.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: waitid(2) writes one siginfo_t. With WNOWAIT it reaps nothing.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } != 0 {
        let error = CallError::last("waitid");
        // ECHILD means that this process has no children.
        return if is_echild(&error) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid(2) fills in the fields that a siginfo_t for SIGCHLD has, and the pid is one of these fields. If no
    // child has exited, the pid is still zero.
    let pid = unsafe { info.si_pid() };
    Ok(u32::try_from(pid).ok().filter(|&pid| pid != 0))
}

/// Returns the signal that killed the process, or `None` if the process was not killed by a signal.
pub(crate) fn signal_of(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// Reaps a child that is not a worker, but only if this process is pid 1. The kernel makes every orphan a child of pid
/// 1, and the orphan stays a zombie until pid 1 reaps it. Returns whether the child was reaped, here or by other code
/// in this process.
pub(crate) fn reap_as_init(pid: u32) -> Result<bool, CallError> {
    if std::process::id() != 1 {
        return Ok(false);
    }
    match wait_for(pid, libc::WNOHANG) {
        Err(error) if is_echild(&error) => Ok(true),
        result => Ok(result?.is_some()),
    }
}

/// Returns whether the error is `ECHILD`, which means that there is no such child to wait for. After a wait for a
/// certain pid, it means that other code in this process has reaped that child.
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
