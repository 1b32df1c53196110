//! Creates shared memory in the parent, and maps the inherited memory in a spawned worker.
//!
//! # Safety
//! An access to mapped memory beyond the end of its file raises SIGBUS (mmap(2)). The memory that this module maps does
//! not shrink. Memory without a file cannot shrink. On Linux and FreeBSD, a mapped file is sealed against shrinking. On
//! macOS, a mapped file is unlinked, so that no other program can open and truncate it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::{io, mem};

use crate::sys::shared::whole_pages;
use crate::sys::{CallError, InheritedMemory, Shared, StatusSlot};

impl Shared {
    /// Maps zeroed memory for at least this number of status slots. Forked workers share the memory.
    pub fn new(at_least: usize) -> Result<Shared, CallError> {
        Shared::map(whole_pages(at_least), -1, None)
    }

    /// Maps zeroed memory for at least this number of status slots. Forked workers share the memory, and so do programs
    /// that inherit its file.
    pub fn for_programs(at_least: usize) -> Result<Shared, CallError> {
        let len = whole_pages(at_least);
        let file = nameless_file(len * size_of::<StatusSlot>())?;
        Shared::map(len, file.as_raw_fd(), Some(file))
    }

    /// Returns whether every descriptor number that this process got from its parent is open. A spawned worker calls
    /// this.
    pub fn is_passed(inherited: &InheritedMemory) -> bool {
        let mut numbers =
            inherited.passed.iter().chain(&inherited.sockets).chain([&inherited.memory]).filter(|&&fd| fd != -1);
        // SAFETY: fcntl(2) takes integers here, and fails if the number is not an open descriptor.
        numbers.all(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1)
    }

    /// Maps the memory of the parent through the inherited descriptor. A spawned worker calls this. Returns `None` if
    /// the descriptor cannot be that of the parent's memory: it is not open, its file could shrink, or its file is too
    /// short. Also returns `None` if the worker's slot is beyond the end of the memory.
    pub fn map_inherited(inherited: &InheritedMemory) -> Option<Shared> {
        let size = inherited.len.checked_mul(size_of::<StatusSlot>())?;
        // The size is checked last. If the file could shrink, its size could still change after the check.
        let is_long_enough =
            never_shrinks(inherited.memory) && stat_of(inherited.memory)?.st_size >= size as libc::off_t;
        if !is_long_enough || inherited.slot >= inherited.len {
            return None;
        }
        Shared::map(inherited.len, inherited.memory, None).ok()
    }

    /// Takes ownership of the descriptors that a spawned worker has inherited, and makes them close-on-exec. The worker
    /// calls this. Closes the descriptor of the memory, because a mapping stays valid without it (mmap(2)).
    ///
    /// # Safety
    /// This process must have inherited these descriptors, and no other code in this process may own them.
    pub unsafe fn own(inherited: &InheritedMemory) -> Option<([Option<OwnedFd>; 2], Vec<OwnedFd>)> {
        // SAFETY: the descriptors are open and have no other owner, as the caller guarantees.
        let own = |fd: RawFd| (fd != -1).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        drop(own(inherited.memory));
        let passed = inherited.passed.map(own);
        let sockets: Vec<OwnedFd> = inherited.sockets.iter().copied().filter_map(own).collect();
        for fd in passed.iter().flatten().chain(&sockets) {
            close_on_exec(fd.as_fd(), true).ok()?;
        }
        Some((passed, sockets))
    }
}

/// Maps `len` status slots of the file `fd`. If `fd` is -1, maps zeroed slots that have no file.
pub(in crate::sys) fn map_slots(len: usize, fd: RawFd) -> Result<NonNull<StatusSlot>, CallError> {
    let too_large = || CallError::new("mmap", io::ErrorKind::InvalidInput);
    let size = len.checked_mul(size_of::<StatusSlot>()).ok_or_else(too_large)?;
    let private = if fd == -1 { libc::MAP_ANON } else { 0 };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | private;
    // SAFETY: without MAP_FIXED, mmap(2) does not change an existing mapping.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, fd, 0) };
    NonNull::new(mapped.cast()).filter(|_| mapped != libc::MAP_FAILED).ok_or_else(|| CallError::last("mmap"))
}

/// Unmaps status slots.
///
/// # Safety
/// `map_slots` must have mapped `len` slots at this address, and no reference to them may exist.
pub(in crate::sys) unsafe fn unmap_slots(slots: NonNull<StatusSlot>, len: usize) {
    // SAFETY: the caller guarantees that mmap(2) has returned this address and was called with this size.
    unsafe { libc::munmap(slots.as_ptr().cast(), len * size_of::<StatusSlot>()) };
}

/// Sets whether execve(2) closes this descriptor.
pub(super) fn close_on_exec(fd: BorrowedFd<'_>, yes: bool) -> Result<(), CallError> {
    // SAFETY: fcntl(2) takes integers here. The descriptor is open, and only its close-on-exec flag changes.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, if yes { libc::FD_CLOEXEC } else { 0 }) } {
        -1 => Err(CallError::last("fcntl")),
        _ => Ok(()),
    }
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn never_shrinks(fd: RawFd) -> bool {
    // SAFETY: fcntl(2) takes integers here, and fails if the file of the descriptor cannot have seals.
    let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
    seals != -1 && seals & libc::F_SEAL_SHRINK != 0
}

fn stat_of(fd: RawFd) -> Option<libc::stat> {
    // SAFETY: all-zero bytes are a valid stat, because it consists of integers.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: fstat(2) writes one stat, and fails if the number is not an open descriptor.
    (unsafe { libc::fstat(fd, &raw mut stat) } == 0).then_some(stat)
}

/// Returns whether the file is unlinked. This replaces the check of seals, because macOS has no file seals. An unlinked
/// file cannot be opened by name. So only a process that already has a descriptor of the file can truncate it.
#[cfg(target_os = "macos")]
fn never_shrinks(fd: RawFd) -> bool {
    stat_of(fd).is_some_and(|stat| stat.st_nlink == 0)
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn nameless_file(size: usize) -> Result<OwnedFd, CallError> {
    // SAFETY: memfd_create(2) reads a C string.
    let fd = unsafe { libc::memfd_create(c"taskfork".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd == -1 {
        return Err(CallError::last("memfd_create"));
    }
    // SAFETY: the descriptor was just opened and has no other owner.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    set_size(&file, size)?;
    // SAFETY: fcntl(2) takes integers here.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) } {
        -1 => Err(CallError::last("fcntl")),
        _ => Ok(file),
    }
}

/// Creates a file and unlinks it at once, because macOS cannot create a file without a name.
#[cfg(target_os = "macos")]
fn nameless_file(size: usize) -> Result<OwnedFd, CallError> {
    let name = std::ffi::CString::new(format!("/taskfork-{}", std::process::id())).unwrap_or_default();
    // SAFETY: shm_unlink(2) and shm_open(2) read a C string.
    let fd = unsafe {
        libc::shm_unlink(name.as_ptr());
        libc::shm_open(name.as_ptr(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600 as libc::c_uint)
    };
    if fd == -1 {
        return Err(CallError::last("shm_open"));
    }
    // SAFETY: shm_unlink(2) reads a C string. The descriptor was just opened and has no other owner.
    let file = unsafe {
        libc::shm_unlink(name.as_ptr());
        OwnedFd::from_raw_fd(fd)
    };
    set_size(&file, size).map(|()| file)
}

/// Sets the size of a new file. Checks the limit on the size of files (`RLIMIT_FSIZE`) first: beyond it, ftruncate(2)
/// fails with `EFBIG`, but also raises SIGXFSZ, which by default kills the process.
fn set_size(file: &OwnedFd, size: usize) -> Result<(), CallError> {
    if size as u64 > file_size_limit() {
        return Err(CallError::new("ftruncate", io::Error::from_raw_os_error(libc::EFBIG)));
    }
    let size = libc::off_t::try_from(size).map_err(|_| CallError::new("ftruncate", io::ErrorKind::InvalidInput))?;
    // SAFETY: ftruncate(2) takes integers.
    match unsafe { libc::ftruncate(file.as_raw_fd(), size) } {
        -1 => Err(CallError::last("ftruncate")),
        _ => Ok(()),
    }
}

/// Returns the size in bytes up to which this process may extend files.
fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: getrlimit(2) writes one rlimit. It cannot fail with this resource and a valid address.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    // FreeBSD has signed limits.
    #[allow(clippy::unnecessary_cast)]
    let limit = limit.rlim_cur as u64;
    limit
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::sync::atomic::Ordering;

    use super::*;

    /// Creates shared memory and writes `secret` to slot 2. Also returns the `InheritedMemory` that a spawned worker in
    /// this slot would get.
    fn offered(secret: [u32; 4]) -> (Shared, InheritedMemory) {
        let shared = Shared::for_programs(3).expect("memory");
        shared.offer(2, secret);
        let memory = shared.file().expect("a file").try_clone().expect("a descriptor").into_raw_fd();
        let waker = shared.file().expect("a file").try_clone().expect("a descriptor").into_raw_fd();
        let inherited =
            InheritedMemory { memory, len: shared.len(), slot: 2, passed: [waker, -1], sockets: vec![], secret };
        (shared, inherited)
    }

    #[test]
    fn a_slot_can_be_accepted_only_once() {
        let (shared, inherited) = offered([1, 2, 3, 4]);
        let (claimed, ..) = Shared::accept(&inherited).expect("the memory");
        claimed[2][0].store(71, Ordering::Relaxed);
        assert_eq!(shared[2][0].load(Ordering::Relaxed), 71);
        let again = InheritedMemory { memory: shared.file().expect("a file").as_raw_fd(), ..inherited.clone() };
        assert!(Shared::accept(&again).is_none());
    }

    #[test]
    fn wrong_inherited_memory_is_refused_and_closes_nothing() {
        let (shared, inherited) = offered([1, 2, 3, 4]);
        let file = std::fs::File::open("/proc/self/exe").or_else(|_| std::fs::File::open("/bin/sh")).expect("a file");
        for wrong in [
            InheritedMemory { secret: [1, 2, 3, 5], ..inherited.clone() },
            InheritedMemory { slot: 1, ..inherited.clone() },
            InheritedMemory { slot: inherited.len, ..inherited.clone() },
            InheritedMemory { len: inherited.len + 1, ..inherited.clone() },
            InheritedMemory { len: usize::MAX, ..inherited.clone() },
            InheritedMemory { memory: -1, ..inherited.clone() },
            InheritedMemory { memory: 1 << 20, ..inherited.clone() },
            InheritedMemory { memory: file.as_raw_fd(), len: 64, slot: 0, ..inherited.clone() },
            InheritedMemory { memory: 0, ..inherited.clone() },
        ] {
            assert!(Shared::accept(&wrong).is_none(), "{wrong:?}");
        }
        assert!(file.metadata().is_ok() && shared.file().is_some());
        assert!(Shared::accept(&inherited).is_some(), "the right `InheritedMemory` is still accepted");
    }
}
