//! The words of a status slot by which a spawned worker proves that the slot is its own: secret, claim and expected
//! pid.
//!
//! # Safety
//! The number of a descriptor in an environment variable proves nothing, because any program can set the variable. The
//! secret in the memory proves that the parent has passed the descriptors, and the claim makes sure that they get one
//! owner.

use std::sync::atomic::Ordering;

use super::{InheritedMemory, Owned, OwnedSocket, Shared};

/// The first of the four words of the secret. The words after them are the claim, the pid of the process that may claim
/// the slot, and on Windows a flag that is set if that process listens for stop requests.
const SECRET: usize = 8;
const CLAIMED: usize = SECRET + 4;
const EXPECTED_PID: usize = CLAIMED + 1;
#[cfg(windows)]
const LISTENS: usize = EXPECTED_PID + 1;

impl Shared {
    /// Writes the secret that the worker in this slot must know, and resets the words after it.
    pub fn offer(&self, slot: usize, secret: [u32; 4]) {
        for (word, part) in self[slot][SECRET..].iter().zip(secret.into_iter().chain([0; 3])) {
            word.store(part, Ordering::Relaxed);
        }
    }

    /// Writes the pid of the worker, which is known only after it was started.
    pub fn set_expected_pid(&self, slot: usize, pid: u32) {
        self[slot][EXPECTED_PID].store(pid, Ordering::Relaxed);
    }

    /// Returns, in a spawned program, the pid that may claim the slot, if the secret is right. The pid is 0 if the
    /// parent has ended before it wrote the pid.
    pub fn expected_pid(inherited: &InheritedMemory) -> Option<u32> {
        let memory = Shared::map_inherited(inherited)?;
        memory.has_secret_of(inherited).then(|| memory[inherited.slot][EXPECTED_PID].load(Ordering::Relaxed))
    }

    /// Returns, in a spawned program, the memory and the descriptors that it inherits. Returns `None` if the memory's
    /// number is not that of the parent's memory, if the secret is wrong, or if the slot was claimed before.
    pub fn accept(inherited: &InheritedMemory) -> Option<(Shared, [Option<Owned>; 2], Vec<OwnedSocket>)> {
        let memory = Shared::map_inherited(inherited)?;
        if !memory.has_secret_of(inherited) || memory[inherited.slot][CLAIMED].swap(1, Ordering::Relaxed) != 0 {
            return None;
        }
        // SAFETY: the secret in the memory is right, so the parent has passed the descriptors under these numbers.
        // Nothing else owns them, because this function succeeds once for each slot.
        let (passed, sockets) = unsafe { Shared::own(inherited) }?;
        Some((memory, passed, sockets))
    }

    fn has_secret_of(&self, inherited: &InheritedMemory) -> bool {
        let secret = self[inherited.slot][SECRET..CLAIMED].iter().zip(inherited.secret);
        secret.into_iter().all(|(word, part)| word.load(Ordering::Relaxed) == part)
    }

    /// Notes that the worker in this slot listens for stop requests.
    #[cfg(windows)]
    pub fn note_listener(&self, slot: usize) {
        self[slot][LISTENS].store(1, Ordering::Release);
    }

    #[cfg(windows)]
    pub fn has_listener(&self, slot: usize) -> bool {
        self[slot][LISTENS].load(Ordering::Acquire) != 0
    }
}
