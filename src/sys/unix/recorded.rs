//! Bytes that are recorded before `main`, in memory of their own.
//!
//! # Safety
//! The memory is mapped by mmap(2) and written once, before its address is stored. After that it is neither changed nor
//! unmapped, so that references to it stay valid.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::{ptr, slice};

/// Bytes that are recorded once. Recording them does not use the allocator of the program, which may not work yet.
#[derive(Debug)]
pub(super) struct Recorded {
    start: AtomicPtr<u8>,
    len: AtomicUsize,
}

impl Recorded {
    pub const fn new() -> Recorded {
        Recorded { start: AtomicPtr::new(ptr::null_mut()), len: AtomicUsize::new(0) }
    }

    /// Returns the bytes. `None` if there are none.
    pub fn get(&self) -> Option<&'static [u8]> {
        let start = self.start.load(Ordering::Acquire);
        // SAFETY: an address is stored only after `record` has mapped and written `len` bytes there, and stays valid.
        (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start, self.len.load(Ordering::Relaxed)) })
    }

    /// Records a file from its beginning to its end. Returns whether this has succeeded. An empty file is a failure.
    pub fn record_file(&self, file: RawFd) -> bool {
        let mut chunk = [0; 4096];
        let mut len = 0;
        while let Some(more @ 1..) = read_at(file, &mut chunk, len) {
            len += more;
        }
        self.record(len, |bytes| {
            let mut done = 0;
            while let Some(more @ 1..) = read_at(file, &mut bytes[done..], done) {
                done += more;
            }
            done == len
        })
    }

    /// Maps `len` bytes and records what `fill` writes there. Records nothing if `fill` returns false. Returns whether
    /// the bytes were recorded.
    pub fn record(&self, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED, mmap(2) does not touch an existing mapping. It refuses a length of 0.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        let start = mapped.cast::<u8>();
        // SAFETY: mmap(2) has mapped `len` zeroed bytes, and nothing else refers to them yet.
        let is_recorded = fill(unsafe { slice::from_raw_parts_mut(start, len) });
        if is_recorded {
            self.len.store(len, Ordering::Relaxed);
            self.start.store(start, Ordering::Release);
        }
        is_recorded
    }
}

/// Reads at this position of the file. Returns `None` if that fails.
fn read_at(file: RawFd, into: &mut [u8], at: usize) -> Option<usize> {
    // SAFETY: pread(2) writes at most as many bytes as there is room for.
    let read = unsafe { libc::pread(file, into.as_mut_ptr().cast(), into.len(), at as libc::off_t) };
    usize::try_from(read).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_long_file_is_recorded_completely() {
        let path = std::env::temp_dir().join(format!("taskfork-recorded-{}", std::process::id()));
        let mut file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.as_mut().expect("a file");
        std::fs::remove_file(&path).expect("a file");
        let recorded = Recorded::new();
        assert!(!recorded.record_file(file.as_raw_fd()) && !recorded.record_file(-1));
        assert_eq!(recorded.get(), None);
        let content: Vec<u8> = (0..50_000_u32).map(|at| at as u8).collect();
        file.write_all(&content).expect("a file");
        assert!(recorded.record_file(file.as_raw_fd()));
        assert_eq!(recorded.get(), Some(&content[..]));
    }
}
