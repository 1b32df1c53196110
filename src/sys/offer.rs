//! The words of a status slot with which a spawned worker proves that it was meant: secret, claim, expected pid.

use std::sync::atomic::Ordering;

use super::{InheritedMemory, Owned, OwnedSocket, Shared};

/// The first word of the secret, which has four. After it come the claim, the pid of the process that may claim the
/// slot, and whether that process listens for stop requests.
const SECRET: usize = 8;
const CLAIMED: usize = SECRET + 4;
const EXPECTED_PID: usize = CLAIMED + 1;
#[cfg(windows)]
const LISTENS: usize = EXPECTED_PID + 1;

impl Shared {
    /// Writes the secret that the worker in this slot must know, and resets the rest.
    pub fn offer(&self, slot: usize, secret: [u32; 4]) {
        for (word, part) in self[slot][SECRET..].iter().zip(secret.into_iter().chain([0; 3])) {
            word.store(part, Ordering::Relaxed);
        }
    }

    /// Writes the pid of the worker, which is known only after it was started.
    pub fn set_expected_pid(&self, slot: usize, pid: u32) {
        self[slot][EXPECTED_PID].store(pid, Ordering::Relaxed);
    }

    /// Returns, in a spawned program, the pid that may claim the slot, if the secret is right. Returns 0 if the parent
    /// died before it wrote the pid.
    pub fn expected_pid(inherited: &InheritedMemory) -> Option<u32> {
        let memory = Shared::look_at(inherited)?;
        memory.knows(inherited).then(|| memory[inherited.slot][EXPECTED_PID].load(Ordering::Relaxed))
    }

    /// Returns, in a spawned program, the memory and the descriptors that it inherits, if the secret is right.
    /// Succeeds once. A number that is no descriptor, or another descriptor, leads to `None`.
    pub fn accept(inherited: &InheritedMemory) -> Option<(Shared, [Option<Owned>; 2], Vec<OwnedSocket>)> {
        let memory = Shared::look_at(inherited)?;
        if !memory.knows(inherited) || memory[inherited.slot][CLAIMED].swap(1, Ordering::Relaxed) != 0 {
            return None;
        }
        // SAFETY: only the parent that passed these descriptors knows the secret in the memory. So they are open under
        // these numbers. Nothing else owns them, because this function succeeds once.
        let (passed, sockets) = unsafe { Shared::own(inherited) }?;
        Some((memory, passed, sockets))
    }

    fn knows(&self, inherited: &InheritedMemory) -> bool {
        let secret = self[inherited.slot][SECRET..CLAIMED].iter().zip(inherited.secret);
        secret.into_iter().all(|(word, part)| word.load(Ordering::Relaxed) == part)
    }

    /// Notes that the worker in this slot listens for stop requests from now on.
    #[cfg(windows)]
    pub fn note_listener(&self, slot: usize) {
        self[slot][LISTENS].store(1, Ordering::Release);
    }

    #[cfg(windows)]
    pub fn has_listener(&self, slot: usize) -> bool {
        self[slot][LISTENS].load(Ordering::Acquire) != 0
    }
}
