//! Sends signals to child processes, and reaps them with waitid(2) and waitpid(2).
//!
//! This module does not use nix, because nix's `WaitStatus` cannot represent real-time signals. If a real-time signal
//! has killed a child, nix reaps the child but returns an error instead of the status.
//!
//! # Safety
//! waitid(2) and waitpid(2) write a status into memory of the right size. They affect only children of this process.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::{fs, mem};

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

    /// Returns whether the kernel is writing a core dump of the child. Linux shows this in /proc (proc_pid_status(5)).
    /// On other systems, and without /proc, returns false.
    pub fn is_dumping_core(&self) -> bool {
        let is_linux = cfg!(target_os = "linux");
        is_linux && fs::read_to_string(format!("/proc/{}/status", self.pid)).is_ok_and(|status| is_dump(&status))
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
}

/// Returns the pid of a child that has exited, without reaping the child.
pub(crate) fn peek_exited() -> Result<Option<u32>, CallError> {
    exited(libc::P_ALL, 0)
}

/// Returns the pid of a selected child that has exited, without reaping the child (waitid(2)).
fn exited(which: libc::idtype_t, id: u32) -> Result<Option<u32>, CallError> {
    // SAFETY: all-zero bytes are a valid siginfo_t, because it consists of integers and pointers.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: waitid(2) writes one siginfo_t. With WNOWAIT it reaps nothing.
    if unsafe { libc::waitid(which, id as libc::id_t, &raw mut info, flags) } != 0 {
        let error = CallError::last("waitid");
        // ECHILD means that this process has no such child.
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

/// Returns whether the kernel makes orphaned processes children of this process: if it is pid 1, or on Linux if it is a
/// subreaper.
pub(crate) fn adopts_orphans() -> bool {
    std::process::id() == 1 || is_subreaper()
}

#[cfg(target_os = "linux")]
fn is_subreaper() -> bool {
    let mut flag: libc::c_int = 0;
    // SAFETY: prctl(2) with PR_GET_CHILD_SUBREAPER writes one int.
    let got = unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut flag) };
    got == 0 && flag != 0
}

#[cfg(not(target_os = "linux"))]
fn is_subreaper() -> bool {
    false
}

/// Reaps a child that has exited and is not a worker. Does nothing if other code in this process has reaped it.
pub(crate) fn reap_stranger(pid: u32) -> Result<(), CallError> {
    match wait_for(pid, libc::WNOHANG) {
        Err(error) if is_echild(&error) => Ok(()),
        result => result.map(|_| ()),
    }
}

/// Returns the children that have exited and were not reaped. Returns `None` if the system does not list them: the
/// kernel may lack the lists, and /proc may show another pid namespace, with other pids.
#[cfg(target_os = "linux")]
pub(crate) fn exited_children() -> Option<Vec<u32>> {
    use std::fs;

    let own = std::process::id().to_string();
    let is_own = fs::read_link("/proc/self").is_ok_and(|pid| pid.to_str() == Some(&own));
    if !is_own || !fs::exists(format!("/proc/self/task/{own}/children")).is_ok_and(|exists| exists) {
        return None;
    }
    // Each thread has a list of the children that it has created or adopted. A thread may have exited meanwhile, and
    // then another thread has its children.
    let tasks = fs::read_dir("/proc/self/task").ok()?.flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids = lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>());
    Some(pids.filter(|&pid| matches!(exited(libc::P_PID, pid), Ok(Some(_)))).collect())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn exited_children() -> Option<Vec<u32>> {
    None
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

fn is_dump(status: &str) -> bool {
    status.lines().filter_map(|line| line.strip_prefix("CoreDumping:")).any(|value| value.trim() == "1")
}
