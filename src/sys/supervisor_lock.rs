//! The lock that allows one supervisor in a process, because a process has one disposition for each signal, and one
//! SIGCHLD for all children.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// The pid of the process that supervises. A fork inherits this value, but its own pid differs, so it holds no lock.
static SUPERVISOR: AtomicU32 = AtomicU32::new(NONE);
const NONE: u32 = 0;

/// The right to supervise, which this process has while this value exists.
#[derive(Debug)]
pub(crate) struct SupervisorLock(());

impl SupervisorLock {
    /// Returns `None` if a supervisor exists in this process.
    pub fn begin() -> Option<SupervisorLock> {
        let own = process::id();
        (SUPERVISOR.swap(own, Ordering::AcqRel) != own).then(|| SupervisorLock(()))
    }
}

impl Drop for SupervisorLock {
    #[inline]
    fn drop(&mut self) {
        // In a fork the lock belongs to the parent. Writing it there would copy its page (copy-on-write).
        if SUPERVISOR.load(Ordering::Relaxed) == process::id() {
            SUPERVISOR.store(NONE, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_lock_at_a_time() {
        let first = SupervisorLock::begin().expect("no supervisor yet");
        assert!(SupervisorLock::begin().is_none());
        assert!(SupervisorLock::begin().is_none(), "a refused call releases nothing");
        drop(first);
        drop(SupervisorLock::begin().expect("the lock was released"));
        SUPERVISOR.store(process::id() + 1, Ordering::Relaxed);
        drop(SupervisorLock::begin().expect("in a fork of a supervisor"));
    }
}
