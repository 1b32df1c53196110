//! The lock that allows only one supervisor in a process. Two supervisors would conflict, because a process has only
//! one disposition for each signal, and because all children of a process share one SIGCHLD.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// The pid of the process that holds the lock, or `NONE`. A forked child inherits this value. The child does not hold
/// the lock, because its own pid differs from the value.
static SUPERVISOR: AtomicU32 = AtomicU32::new(NONE);
const NONE: u32 = 0;

/// Proves that this process holds the lock. Dropping this value releases the lock.
#[derive(Debug)]
pub(crate) struct SupervisorLock(());

impl SupervisorLock {
    /// Takes the lock. Returns `None` if this process already holds it.
    pub fn begin() -> Option<SupervisorLock> {
        let own = process::id();
        (SUPERVISOR.swap(own, Ordering::AcqRel) != own).then(|| SupervisorLock(()))
    }
}

impl Drop for SupervisorLock {
    #[inline]
    fn drop(&mut self) {
        // A forked child does not write to the lock, which belongs to the parent. A write would copy the memory page of
        // the lock for the child (copy-on-write).
        if SUPERVISOR.load(Ordering::Relaxed) == process::id() {
            SUPERVISOR.store(NONE, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_lock_exists_at_a_time() {
        let first = SupervisorLock::begin().expect("no supervisor yet");
        assert!(SupervisorLock::begin().is_none());
        assert!(SupervisorLock::begin().is_none(), "a call that returned `None` must not release the lock");
        drop(first);
        drop(SupervisorLock::begin().expect("the lock was released"));
        SUPERVISOR.store(process::id() + 1, Ordering::Relaxed);
        drop(SupervisorLock::begin().expect("a forked child does not hold the lock of its parent"));
    }
}
