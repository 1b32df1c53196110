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

use crate::sys::CallError;

/// A child that has ended and is not reaped yet, if there is any. It stays as it is.
pub(crate) fn peek_exited() -> Result<Option<u32>, CallError> {
    // SAFETY: siginfo_t consists of integers and unions of them, for which zeroes are fine.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a siginfo_t to be written.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } != 0 {
        let error = CallError::last("waitid");
        return if is_no_child(&error.source) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid(2) fills in the fields of SIGCHLD, or leaves the pid zero if no child has ended.
    let pid = unsafe { info.si_pid() };
    Ok(u32::try_from(pid).ok().filter(|&pid| pid != 0))
}

/// Reaps this child if it has ended.
pub(crate) fn reap(pid: u32) -> Result<Option<ExitStatus>, CallError> {
    wait_for(pid, libc::WNOHANG)
}

/// Waits until this child has ended, and reaps it.
pub(crate) fn reap_blocking(pid: u32) -> Result<Option<ExitStatus>, CallError> {
    loop {
        match wait_for(pid, 0) {
            Err(error) if error.source.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
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

fn is_no_child(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECHILD)
}

pub(crate) fn is_init() -> bool {
    std::process::id() == 1
}
