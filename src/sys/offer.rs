//! What is written in the line of a program that was given memory, beside what it says itself: who may use it.

use std::sync::atomic::Ordering;

use super::{InheritedMemory, Owned, OwnedSocket, Shared};

/// Where in a line the secret is; and after it whether it was claimed, the pid of who may claim it, and whether that one
/// hears when it is asked to stop.
const SECRET: usize = 8;
const CLAIMED: usize = SECRET + 4;
const EXPECTED_PID: usize = CLAIMED + 1;
#[cfg(windows)]
const LISTENS: usize = EXPECTED_PID + 1;

impl Shared {
    /// What the program that gets this line has to know, until it has claimed it.
    pub fn offer(&self, slot: usize, secret: [u32; 4]) {
        for (word, part) in self[slot][SECRET..].iter().zip(secret.into_iter().chain([0; 3])) {
            word.store(part, Ordering::Relaxed);
        }
    }

    /// Who it is, when that is known.
    pub fn set_expected_pid(&self, slot: usize, pid: u32) {
        self[slot][EXPECTED_PID].store(pid, Ordering::Relaxed);
    }

    /// In a program: who is to claim this, if its secret is right; 0 if the parent did not live to say so.
    pub fn expected_pid(inherited: &InheritedMemory) -> Option<u32> {
        let memory = Shared::look_at(inherited)?;
        memory.knows(inherited).then(|| memory[inherited.slot][EXPECTED_PID].load(Ordering::Relaxed))
    }

    /// In a program: the memory, and what was passed with it, if it was told of them; once. A number that is none, or
    /// somebody else's, gives nothing.
    pub fn accept(inherited: &InheritedMemory) -> Option<(Shared, [Option<Owned>; 2], Vec<OwnedSocket>)> {
        let memory = Shared::look_at(inherited)?;
        if !memory.knows(inherited) || memory[inherited.slot][CLAIMED].swap(1, Ordering::Relaxed) != 0 {
            return None;
        }
        // SAFETY: only who has passed these to this program knows the secret that is in the memory, so they are open under
        // these numbers, and are this function's, because it succeeds once.
        let (passed, sockets) = unsafe { Shared::own(inherited) }?;
        Some((memory, passed, sockets))
    }

    fn knows(&self, inherited: &InheritedMemory) -> bool {
        let secret = self[inherited.slot][SECRET..CLAIMED].iter().zip(inherited.secret);
        secret.into_iter().all(|(word, part)| word.load(Ordering::Relaxed) == part)
    }

    /// Whoever has this line hears when it is asked to stop, from now on.
    #[cfg(windows)]
    pub fn note_listener(&self, slot: usize) {
        self[slot][LISTENS].store(1, Ordering::Release);
    }

    #[cfg(windows)]
    pub fn has_listener(&self, slot: usize) -> bool {
        self[slot][LISTENS].load(Ordering::Acquire) != 0
    }
}
