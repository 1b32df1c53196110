//! That this process supervises workers: once at a time, for it has one disposition for each signal, and one notice of a
//! child's end.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Which process does, if any. A copy of it in a fork says nothing of that one.
static SUPERVISOR: AtomicU32 = AtomicU32::new(NOBODY);
const NOBODY: u32 = 0;

/// The right to it, as long as this lives.
#[derive(Debug)]
pub(crate) struct SupervisorLock(());

impl SupervisorLock {
    /// None: somebody else in this process has it.
    pub fn begin() -> Option<SupervisorLock> {
        let own = process::id();
        (SUPERVISOR.swap(own, Ordering::AcqRel) != own).then(|| SupervisorLock(()))
    }
}

impl Drop for SupervisorLock {
    #[inline]
    fn drop(&mut self) {
        // In a fork it is another one's, and to write it would be to copy it first.
        if SUPERVISOR.load(Ordering::Relaxed) == process::id() {
            SUPERVISOR.store(NOBODY, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_had_once_at_a_time_and_again_when_it_was_given_back() {
        let first = SupervisorLock::begin().expect("the first");
        assert!(SupervisorLock::begin().is_none());
        assert!(SupervisorLock::begin().is_none(), "who was refused has given nothing back");
        drop(first);
        drop(SupervisorLock::begin().expect("the next"));
        SUPERVISOR.store(process::id() + 1, Ordering::Relaxed);
        drop(SupervisorLock::begin().expect("in a fork of one that has it"));
    }
}
