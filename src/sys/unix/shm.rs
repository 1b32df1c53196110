//! Memory that a process shares with the children it forks.
//!
//! # Safety
//! A mapping made here is of zeroes at first, which are valid atomics, is only ever used as atomics, and is unmapped when
//! nobody in this process has it any more. Other processes may change it at any time, as other threads may an atomic.

use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU32;

use crate::sys::CallError;

/// What no two processes write to: one cache line.
pub(crate) type Line = [AtomicU32; 16];

/// Zeroes, shared with every child that is forked while this exists.
#[derive(Debug)]
pub(crate) struct Shared {
    lines: NonNull<Line>,
    len: usize,
}

// SAFETY: it is a slice of atomics, which any thread may use and any thread may unmap.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// At least so many lines, and more than none. mmap(2) maps whole pages, whose start is also that of a cache line.
    pub fn new(at_least: usize) -> Result<Shared, CallError> {
        const PAGE: usize = 4096 / size_of::<Line>();
        let len = at_least.max(1).next_multiple_of(PAGE);
        let size = len * size_of::<Line>();
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANON);
        // SAFETY: without MAP_FIXED no mapping that exists is touched.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
        match NonNull::new(mapped.cast()) {
            Some(lines) if mapped != libc::MAP_FAILED => Ok(Shared { lines, len }),
            _ => Err(CallError::last("mmap")),
        }
    }
}

impl Deref for Shared {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: the mapping has this length, lives as long as `self`, and holds atomics.
        unsafe { slice::from_raw_parts(self.lines.as_ptr(), self.len) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: it is the mapping that was made, and every borrow of it has ended.
        unsafe { libc::munmap(self.lines.as_ptr().cast(), self.len * size_of::<Line>()) };
    }
}
