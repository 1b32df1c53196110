//! Memory that a process shares with its children, forked or spawned.
//!
//! # Safety
//! A mapping starts as zeroes, which are valid atomics. It is used only as atomics, because other processes may change
//! it at any time, as other threads may change an atomic. It is unmapped when its last owner in this process is
//! dropped. The object behind it never shrinks; each platform guarantees that, because an access beyond the end of a
//! shrunk file raises SIGBUS.

use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU32;

use super::{CallError, Number, Owned, map_slots, unmap_slots};

/// One cache line of shared memory, written by one worker.
pub(crate) type StatusSlot = [AtomicU32; 16];

/// Zeroed memory, shared with every child that is forked while this value exists, and with every program that inherits
/// it.
#[derive(Debug)]
pub(crate) struct Shared {
    slots: NonNull<StatusSlot>,
    len: usize,
    file: Option<Owned>,
}

// SAFETY: it is a slice of atomics. Any thread may use it, and any thread may unmap it.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps `len` slots of the object with this number.
    pub(super) fn map(len: usize, number: Number, file: Option<Owned>) -> Result<Shared, CallError> {
        Ok(Shared { slots: map_slots(len, number)?, len, file })
    }

    /// Returns the object behind the memory, which a program can inherit. `None` in a process that has not created it.
    pub(super) fn file(&self) -> Option<&Owned> {
        self.file.as_ref()
    }
}

/// Returns at least this number of slots, and at least one page of them. A mapping begins at a page boundary, and so
/// at a cache line.
pub(super) fn whole_pages(slots: usize) -> usize {
    const PAGE: usize = 4096 / size_of::<StatusSlot>();
    slots.max(1).next_multiple_of(PAGE)
}

impl Deref for Shared {
    type Target = [StatusSlot];

    fn deref(&self) -> &[StatusSlot] {
        // SAFETY: the mapping has this length, lives as long as `self`, and holds atomics.
        unsafe { slice::from_raw_parts(self.slots.as_ptr(), self.len) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that was made, and no borrow of it exists any more.
        unsafe { unmap_slots(self.slots, self.len) };
    }
}
