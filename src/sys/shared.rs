//! Memory that a process shares with its children: those that it forks, and those that are programs of their own.
//!
//! # Safety
//! A mapping is of zeroes at first, which are valid atomics, is only ever used as atomics, and is unmapped when nobody in this
//! process has it any more. Other processes may change it at any time, as other threads may an atomic. What is behind it
//! never shrinks, which each platform sees to.

use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU32;

use super::{CallError, Number, Owned, map_slots, unmap_slots};

/// What no two processes write to: one cache line.
pub(crate) type StatusSlot = [AtomicU32; 16];

/// Zeroes, shared with every child that is forked while this exists, or that they are passed to.
#[derive(Debug)]
pub(crate) struct Shared {
    slots: NonNull<StatusSlot>,
    len: usize,
    file: Option<Owned>,
}

// SAFETY: it is a slice of atomics, which any thread may use and any thread may unmap.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// So many lines of what is behind this number.
    pub(super) fn map(len: usize, number: Number, file: Option<Owned>) -> Result<Shared, CallError> {
        Ok(Shared { slots: map_slots(len, number)?, len, file })
    }

    /// What is behind it, to be passed to a program; in the process that has made it.
    pub(super) fn file(&self) -> Option<&Owned> {
        self.file.as_ref()
    }
}

/// At least so many lines, and more than none. What is mapped begins where a page does, and so a cache line.
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
        // SAFETY: it is the mapping that was made, and every borrow of it has ended.
        unsafe { unmap_slots(self.slots, self.len) };
    }
}
