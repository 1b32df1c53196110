//! Lets a spawned worker check that a status slot belongs to it. A status slot is an array of 16 integers (words) in
//! the shared memory. Some of these words contain a secret, a claim flag and the pid of the worker.
//!
//! # Safety
//! A spawned worker reads the numbers of its descriptors from an environment variable. The variable alone proves
//! nothing, because any program can set it. If the memory contains the same secret as the variable, the parent has
//! passed the descriptors. The claim flag allows only one caller to take ownership of the descriptors.

use std::sync::atomic::Ordering;

use super::{InheritedMemory, Owned, OwnedSocket, Shared};

/// The index of the first word of the secret. The secret has four words, and three more words follow it: the claim
/// flag, the pid of the process that may claim the slot, and a flag that only Windows uses. That flag is set if the
/// process listens for stop requests.
const SECRET: usize = 8;
const CLAIMED: usize = SECRET + 4;
const EXPECTED_PID: usize = CLAIMED + 1;
#[cfg(windows)]
const LISTENS: usize = EXPECTED_PID + 1;

impl Shared {
    /// Writes the secret of the worker that will use this slot, and zeroes the words after the secret. The parent calls
    /// this before it starts the worker.
    pub fn offer(&self, slot: usize, secret: [u32; 4]) {
        for (word, part) in self[slot][SECRET..].iter().zip(secret.into_iter().chain([0; 3])) {
            word.store(part, Ordering::Relaxed);
        }
    }

    /// Writes the pid of the worker. The parent calls this after it has started the worker, because the pid is unknown
    /// before.
    pub fn set_expected_pid(&self, slot: usize, pid: u32) {
        self[slot][EXPECTED_PID].store(pid, Ordering::Relaxed);
    }

    /// Returns the pid of the process that may claim the slot. A spawned program calls this. Returns `None` if the
    /// memory cannot be mapped or the secret is wrong. Returns the pid 0 if the parent ended before it wrote the pid.
    pub fn expected_pid(inherited: &InheritedMemory) -> Option<u32> {
        let memory = Shared::map_inherited(inherited)?;
        memory.has_secret_of(inherited).then(|| memory[inherited.slot][EXPECTED_PID].load(Ordering::Relaxed))
    }

    /// Claims the slot, and returns the shared memory and the other descriptors that this process inherits. A spawned
    /// program calls this. Returns `None` if the inherited memory is not that of the parent, if the secret is wrong, or
    /// if the slot was claimed before.
    pub fn accept(inherited: &InheritedMemory) -> Option<(Shared, [Option<Owned>; 2], Vec<OwnedSocket>)> {
        let memory = Shared::map_inherited(inherited)?;
        if !memory.has_secret_of(inherited) || memory[inherited.slot][CLAIMED].swap(1, Ordering::Relaxed) != 0 {
            return None;
        }
        // SAFETY: the secret in the memory is right, so the parent has passed the descriptors with these numbers. The
        // descriptors have no other owner, because this function succeeds only once for each slot.
        let (passed, sockets) = unsafe { Shared::own(inherited) }?;
        Some((memory, passed, sockets))
    }

    fn has_secret_of(&self, inherited: &InheritedMemory) -> bool {
        let secret = self[inherited.slot][SECRET..CLAIMED].iter().zip(inherited.secret);
        secret.into_iter().all(|(word, part)| word.load(Ordering::Relaxed) == part)
    }

    /// Records that the worker in this slot listens for stop requests.
    #[cfg(windows)]
    pub fn note_listener(&self, slot: usize) {
        self[slot][LISTENS].store(1, Ordering::Release);
    }

    #[cfg(windows)]
    pub fn has_listener(&self, slot: usize) -> bool {
        self[slot][LISTENS].load(Ordering::Acquire) != 0
    }
}
