//! Memory that a process shares with its children, forked or spawned.
//!
//! # Safety
//! The memory is used only as atomics, because other processes may change it at any time. Any bytes are valid for an
//! atomic integer. A mapping is unmapped when the [`Shared`] that owns it is dropped. The object behind it never
//! shrinks, which each platform guarantees. (On Unix, an access beyond the end of a shrunk file raises SIGBUS,
//! mmap(2).)

use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU32;

use super::{CallError, Number, Owned, map_slots, unmap_slots};

/// One cache line of shared memory, for one worker.
pub(crate) type StatusSlot = [AtomicU32; 16];

/// Memory that is shared with every child that is forked while this value exists, and with every program that inherits
/// its file.
#[derive(Debug)]
pub(crate) struct Shared {
    slots: NonNull<StatusSlot>,
    len: usize,
    file: Option<Owned>,
}

// SAFETY: a mapping belongs to the process, so any thread may use and unmap it.
unsafe impl Send for Shared {}
// SAFETY: a reference gives access to atomics only, which any number of threads may use at the same time.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps `len` slots of the object with this number. `file` owns that object, in the process that has created it.
    pub(super) fn map(len: usize, number: Number, file: Option<Owned>) -> Result<Shared, CallError> {
        Ok(Shared { slots: map_slots(len, number)?, len, file })
    }

    /// Returns the object behind the memory, which a program can inherit. `None` in a process that has not created it.
    pub(super) fn file(&self) -> Option<&Owned> {
        self.file.as_ref()
    }
}

/// Rounds the number of slots up, so that they fill one or more pages of 4096 bytes. A mapping begins at a page
/// boundary, so each slot of 64 bytes is a whole cache line.
pub(super) fn whole_pages(slots: usize) -> usize {
    const PAGE: usize = 4096 / size_of::<StatusSlot>();
    slots.max(1).next_multiple_of(PAGE)
}

impl Deref for Shared {
    type Target = [StatusSlot];

    fn deref(&self) -> &[StatusSlot] {
        // SAFETY: the mapping has `len` slots at a page boundary, exists as long as `self`, and is used only as
        // atomics.
        unsafe { slice::from_raw_parts(self.slots.as_ptr(), self.len) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: `map_slots` has mapped `len` slots at this address. No borrow of them exists, because it would borrow
        // `self`.
        unsafe { unmap_slots(self.slots, self.len) };
    }
}
