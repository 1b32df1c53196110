//! Memory that a process shares with its children: those that it forks, and those that are programs of their own.
//!
//! # Safety
//! A mapping made here is of zeroes at first, which are valid atomics, is only ever used as atomics, and is unmapped when
//! nobody in this process has it any more. Other processes may change it at any time, as other threads may an atomic. What is
//! behind it never shrinks: it has no file, or one that was sealed or that has no name.

use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::{io, mem, slice};

use crate::sys::{CallError, Claim, Line};

/// Zeroes, shared with every child that is forked while this exists.
#[derive(Debug)]
pub(crate) struct Shared {
    lines: NonNull<Line>,
    len: usize,
    file: Option<OwnedFd>,
}

// SAFETY: it is a slice of atomics, which any thread may use and any thread may unmap.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// At least so many lines, and more than none. mmap(2) maps whole pages, whose start is also that of a cache line.
    pub fn new(at_least: usize) -> Result<Shared, CallError> {
        map(whole_pages(at_least), None)
    }

    /// The same, to be passed to programs too.
    pub fn for_programs(at_least: usize) -> Result<Shared, CallError> {
        let len = whole_pages(at_least);
        let file = nameless_file(len * size_of::<Line>())?;
        map(len, Some(file))
    }

    /// To be passed to a program.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// In a program: the memory that is said to be behind a descriptor, if it can be: nameless, and long enough.
    pub fn look_at(claim: &Claim) -> Option<Shared> {
        // SAFETY: stat consists of integers, for which zeroes are fine, and fstat(2) writes one.
        let mut stat: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: as above. A number that is no descriptor is refused.
        let known = unsafe { libc::fstat(claim.memory, &raw mut stat) } == 0;
        let size = claim.len.checked_mul(size_of::<Line>())?;
        if !known || stat.st_nlink != 0 || stat.st_size < size as libc::off_t || claim.line >= claim.len {
            return None;
        }
        Some(Shared { lines: map_lines(claim.len, claim.memory)?, len: claim.len, file: None })
    }

    /// In a program: what it was passed.
    ///
    /// # Safety
    /// It was, and has not taken it yet.
    pub unsafe fn own(claim: &Claim) -> Option<([Option<OwnedFd>; 2], Vec<OwnedFd>)> {
        // SAFETY: they are open and nobody else's, as the caller says.
        let own = |fd: RawFd| (fd != -1).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        drop(own(claim.memory));
        let passed = claim.passed.map(own);
        let sockets: Vec<OwnedFd> = claim.sockets.iter().copied().filter_map(own).collect();
        for fd in passed.iter().flatten().chain(&sockets) {
            close_on_exec(fd.as_fd(), true).ok()?;
        }
        Some((passed, sockets))
    }
}

fn whole_pages(lines: usize) -> usize {
    const PAGE: usize = 4096 / size_of::<Line>();
    lines.max(1).next_multiple_of(PAGE)
}

fn map(len: usize, file: Option<OwnedFd>) -> Result<Shared, CallError> {
    let fd = file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let lines = map_lines(len, fd).ok_or_else(|| CallError::last("mmap"))?;
    Ok(Shared { lines, len, file })
}

fn map_lines(len: usize, fd: RawFd) -> Option<NonNull<Line>> {
    let size = len.checked_mul(size_of::<Line>())?;
    let private = if fd == -1 { libc::MAP_ANON } else { 0 };
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | private);
    // SAFETY: without MAP_FIXED no mapping that exists is touched.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, fd, 0) };
    NonNull::new(mapped.cast()).filter(|_| mapped != libc::MAP_FAILED)
}

/// Whether a descriptor ends with the program that has it, or is passed on to the next one.
pub(super) fn close_on_exec(fd: BorrowedFd<'_>, yes: bool) -> Result<(), CallError> {
    // SAFETY: the descriptor is open, and this concerns nothing but its flag.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, if yes { libc::FD_CLOEXEC } else { 0 }) } {
        -1 => Err(CallError::last("fcntl")),
        _ => Ok(()),
    }
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn nameless_file(size: usize) -> Result<OwnedFd, CallError> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"taskfork".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd == -1 {
        return Err(CallError::last("memfd_create"));
    }
    // SAFETY: it was just opened, for nobody else.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    set_size(&file, size)?;
    // SAFETY: it takes integers.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) } {
        -1 => Err(CallError::last("fcntl")),
        _ => Ok(file),
    }
}

/// There is nothing nameless from the beginning.
#[cfg(target_os = "macos")]
fn nameless_file(size: usize) -> Result<OwnedFd, CallError> {
    let name = std::ffi::CString::new(format!("/taskfork-{}", std::process::id())).unwrap_or_default();
    // SAFETY: the name is a C string.
    let fd = unsafe {
        libc::shm_unlink(name.as_ptr());
        libc::shm_open(name.as_ptr(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600 as libc::c_uint)
    };
    if fd == -1 {
        return Err(CallError::last("shm_open"));
    }
    // SAFETY: it was just opened, for nobody else; and the name is a C string.
    let file = unsafe {
        libc::shm_unlink(name.as_ptr());
        OwnedFd::from_raw_fd(fd)
    };
    set_size(&file, size).map(|()| file)
}

fn set_size(file: &OwnedFd, size: usize) -> Result<(), CallError> {
    let size = libc::off_t::try_from(size).map_err(|_| CallError::new("ftruncate", io::ErrorKind::InvalidInput))?;
    // SAFETY: it takes integers.
    match unsafe { libc::ftruncate(file.as_raw_fd(), size) } {
        -1 => Err(CallError::last("ftruncate")),
        _ => Ok(()),
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

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::sync::atomic::Ordering;

    use super::*;

    /// As a program that has inherited it.
    fn invited(secret: [u32; 4]) -> (Shared, Claim) {
        let shared = Shared::for_programs(3).expect("memory");
        shared.invite(2, secret);
        let memory = shared.file().expect("a file").try_clone_to_owned().expect("a descriptor").into_raw_fd();
        let button = shared.file().expect("a file").try_clone_to_owned().expect("a descriptor").into_raw_fd();
        let claim = Claim { memory, len: shared.len(), line: 2, passed: [button, -1], sockets: vec![], secret };
        (shared, claim)
    }

    #[test]
    fn who_knows_the_secret_gets_the_memory_once() {
        let (shared, claim) = invited([1, 2, 3, 4]);
        let (claimed, ..) = Shared::claim(&claim).expect("the memory");
        claimed[2][0].store(71, Ordering::Relaxed);
        assert_eq!(shared[2][0].load(Ordering::Relaxed), 71);
        let again = Claim { memory: shared.file().expect("a file").as_raw_fd(), ..claim.clone() };
        assert!(Shared::claim(&again).is_none());
    }

    #[test]
    fn who_does_not_gets_nothing_and_nothing_is_closed() {
        let (shared, claim) = invited([1, 2, 3, 4]);
        let file = std::fs::File::open("/proc/self/exe").or_else(|_| std::fs::File::open("/bin/sh")).expect("a file");
        for wrong in [
            Claim { secret: [1, 2, 3, 5], ..claim.clone() },
            Claim { line: 1, ..claim.clone() },
            Claim { line: claim.len, ..claim.clone() },
            Claim { len: claim.len + 1, ..claim.clone() },
            Claim { len: usize::MAX, ..claim.clone() },
            Claim { memory: -1, ..claim.clone() },
            Claim { memory: 1 << 20, ..claim.clone() },
            Claim { memory: file.as_raw_fd(), len: 64, line: 0, ..claim.clone() },
            Claim { memory: 0, ..claim.clone() },
        ] {
            assert!(Shared::claim(&wrong).is_none(), "{wrong:?}");
        }
        assert!(file.metadata().is_ok() && shared.file().is_some());
        assert!(Shared::claim(&claim).is_some(), "the right one still can");
    }
}
