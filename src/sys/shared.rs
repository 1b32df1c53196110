//! Memory that a process shares with its forked or spawned children.
//!
//! # Safety
//! The memory is accessed only through atomic integers, because other processes may change it at any time. Any bytes
//! are valid for an atomic integer. Dropping a [`Shared`] unmaps its memory. The code for each platform guarantees that
//! the file behind the memory never shrinks. (On Unix, an access beyond the end of a file that has shrunk raises
//! SIGBUS, mmap(2).)

use std::ops::{Deref, Index};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::{CallError, Number, Owned, map_slots, unmap_slots};

/// One cache line of shared memory. One worker uses it for its messages to the parent, which are the words that its
/// index gives, and for its counts.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct StatusSlot {
    words: [AtomicU32; 6],
    pub work: WorkCounts,
}

const _: () = assert!(size_of::<StatusSlot>() == 64);

/// The counts of the units of work of one worker. Each count is the sum of two values, because a thread that is the
/// only writer of a value needs no atomic addition.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct WorkCounts {
    /// Written by one thread of the worker.
    pub owned: UnitCounts,
    /// Written by all other threads of the worker.
    pub shared: UnitCounts,
    /// The number of completed units at which the worker wakes the parent. Zero if there is no such number. Only the
    /// parent writes it, before it starts the worker.
    pub limit: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct UnitCounts {
    pub started: AtomicU64,
    pub completed: AtomicU64,
}

/// Memory that this process shares with its children. A forked child shares the memory if it was forked while this
/// value existed. A spawned program shares the memory if it has inherited the memory's file.
#[derive(Debug)]
pub(crate) struct Shared {
    slots: NonNull<StatusSlot>,
    len: usize,
    file: Option<Owned>,
}

// SAFETY: a mapping belongs to the whole process, so any thread may use it and unmap it.
unsafe impl Send for Shared {}
// SAFETY: a shared reference gives access only to atomics, which several threads may use at the same time.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps `len` status slots. `number` is the descriptor of the memory's file, or on Windows the handle of its
    /// section. `file` is the owner of that descriptor or handle. `file` is `None` if the memory has no file, or if
    /// another process has created the file.
    pub(super) fn map(len: usize, number: Number, file: Option<Owned>) -> Result<Shared, CallError> {
        Ok(Shared { slots: map_slots(len, number)?, len, file })
    }

    /// Makes this value the owner of the file behind the memory.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub(super) fn keep_file(&mut self, file: Owned) {
        self.file = Some(file);
    }

    /// Returns the file behind the memory, which a spawned program can inherit. Returns `None` if the memory has no
    /// file, or if another process has created the file.
    pub fn file(&self) -> Option<&Owned> {
        self.file.as_ref()
    }
}

/// Rounds the number of status slots up, so that the slots fill whole pages of 4096 bytes. A slot has 64 bytes, and a
/// mapping begins at a page boundary. So each slot is a whole cache line.
pub(super) fn whole_pages(slots: usize) -> usize {
    const PAGE: usize = 4096 / size_of::<StatusSlot>();
    slots.max(1).next_multiple_of(PAGE)
}

impl StatusSlot {
    /// Returns the words of the slot for messages.
    #[cfg(unix)]
    pub fn words(&self) -> &[AtomicU32] {
        &self.words
    }
}

impl Index<usize> for StatusSlot {
    type Output = AtomicU32;

    fn index(&self, word: usize) -> &AtomicU32 {
        &self.words[word]
    }
}

impl Deref for Shared {
    type Target = [StatusSlot];

    fn deref(&self) -> &[StatusSlot] {
        // SAFETY: the mapping has `len` slots, begins at a page boundary, and exists as long as `self`. The slots
        // consist of atomics, so other processes may change them.
        unsafe { slice::from_raw_parts(self.slots.as_ptr(), self.len) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: `map_slots` has mapped `len` slots at this address. No reference to them exists, because such a
        // reference would borrow `self`.
        unsafe { unmap_slots(self.slots, self.len) };
    }
}
