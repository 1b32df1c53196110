//! Creates shared memory in the parent, and maps the inherited memory in a spawned worker.
//!
//! # Safety
//! An access to mapped memory beyond the end of its file raises SIGBUS (mmap(2)). The memory that this module maps does
//! not shrink. Memory without a file cannot shrink. On Linux and FreeBSD, a mapped file is sealed against shrinking. On
//! macOS, a mapped file is unlinked, so that no other program can open and truncate it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::{io, mem};

use super::descriptor::close_inherited;
use crate::sys::shared::whole_pages;
use crate::sys::{CallError, Shared, StatusSlot};

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
        forbid_seals(file.as_fd())?;
        Shared::map(len, file.as_raw_fd(), Some(file))
    }

    /// Sets whether processes that are forked from now on have this memory. By default they have it.
    ///
    /// A worker does not need the memory of the other pools, and must not write to it. To leave it out of the fork
    /// takes less time than to unmap it in each worker.
    pub fn set_inherited(&self, yes: bool) -> Result<(), CallError> {
        let size = size_of_val(&**self);
        // SAFETY: the call changes only what a forked child gets, for whole pages that belong to this mapping
        // (madvise(2), minherit(2)).
        match unsafe { advise_fork(self.as_ptr().cast_mut().cast(), size, yes) } {
            0 => Ok(()),
            _ => Err(CallError::last(ADVISE_FORK)),
        }
    }

    /// Closes the file of the memory in a forked worker. The mapping does not need the file (mmap(2)). Does not change
    /// this value, because that would write to memory that the worker still shares with the parent (copy-on-write). So
    /// this value must not be dropped in the worker.
    pub fn close_file_in_child(&self) {
        self.file().into_iter().for_each(|file| close_inherited(file.as_fd()));
    }

    /// Maps the memory of a scoreboard that the program before an upgrade has used, and keeps its file. Returns an
    /// error if the file could shrink or is too short.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub fn from_file(file: OwnedFd, slots: usize) -> Result<Shared, CallError> {
        let mapped = Shared::map_inherited(file.as_raw_fd(), slots);
        let mut shared = mapped.ok_or_else(|| CallError::new("mmap", io::ErrorKind::InvalidData))?;
        shared.keep_file(file);
        Ok(shared)
    }

    /// Maps the memory that was passed to a candidate, which becomes a worker. Closes the file, because a mapping does
    /// not need it (mmap(2)). Returns `None` if the file could shrink or is too short.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub fn from_passed(file: OwnedFd, slots: usize) -> Option<Shared> {
        Shared::map_inherited(file.as_raw_fd(), slots)
    }

    /// Maps the memory that a spawned worker inherits. The worker calls this. Returns `None` if the file could shrink
    /// or is too short.
    pub(super) fn map_inherited(file: RawFd, slots: usize) -> Option<Shared> {
        let size = slots.checked_mul(size_of::<StatusSlot>())?;
        // The size is checked last. If the file could shrink, its size could still change after the check.
        let is_long_enough = never_shrinks(file) && has_length(file, size);
        if is_long_enough { Shared::map(slots, file, None).ok() } else { None }
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

#[cfg(target_os = "linux")]
const ADVISE_FORK: &str = "madvise";
#[cfg(not(target_os = "linux"))]
const ADVISE_FORK: &str = "minherit";

/// Sets whether a forked child has these pages.
///
/// # Safety
/// The pages must belong to a mapping of this module. The child must not use them if it does not have them.
#[cfg(target_os = "linux")]
unsafe fn advise_fork(start: *mut libc::c_void, size: usize, has: bool) -> libc::c_int {
    // SAFETY: the caller guarantees that the pages are mapped, and that the child does not miss them.
    unsafe { libc::madvise(start, size, if has { libc::MADV_DOFORK } else { libc::MADV_DONTFORK }) }
}

#[cfg(target_os = "macos")]
unsafe fn advise_fork(start: *mut libc::c_void, size: usize, has: bool) -> libc::c_int {
    // SAFETY: see the version for Linux.
    unsafe { libc::minherit(start, size, if has { libc::VM_INHERIT_SHARE } else { libc::VM_INHERIT_NONE }) }
}

#[cfg(target_os = "freebsd")]
unsafe fn advise_fork(start: *mut libc::c_void, size: usize, has: bool) -> libc::c_int {
    // SAFETY: see the version for Linux.
    unsafe { libc::minherit(start, size, if has { libc::INHERIT_SHARE } else { libc::INHERIT_NONE }) }
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

/// Returns whether the file has this length and can never be changed again.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub(super) fn never_changes(fd: RawFd, len: usize) -> bool {
    const SEALS: libc::c_int = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK;
    // SAFETY: fcntl(2) takes integers here, and fails for a descriptor that cannot be sealed.
    let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
    seals != -1 && seals & SEALS == SEALS && has_length(fd, len)
}

/// Returns whether the file is unlinked and long enough. So only a process that holds a descriptor can change it.
#[cfg(target_os = "macos")]
pub(super) fn never_changes(fd: RawFd, len: usize) -> bool {
    never_shrinks(fd) && has_length(fd, len)
}

fn has_length(fd: RawFd, len: usize) -> bool {
    stat_of(fd).is_some_and(|stat| usize::try_from(stat.st_size).is_ok_and(|size| size >= len))
}

/// Makes the file unchangeable. No writable mapping of it may exist.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub(super) fn seal(file: BorrowedFd<'_>) -> Result<(), CallError> {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: fcntl(2) takes integers here.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        -1 => Err(CallError::last("fcntl")),
        _ => Ok(()),
    }
}

/// Forbids more seals. A worker could otherwise seal the memory against the writes of later workers.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn forbid_seals(file: BorrowedFd<'_>) -> Result<(), CallError> {
    // SAFETY: fcntl(2) takes integers here.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_GROW | libc::F_SEAL_SEAL) } {
        -1 => Err(CallError::last("fcntl")),
        _ => Ok(()),
    }
}

/// Does nothing, because macOS has no seals.
#[cfg(target_os = "macos")]
fn forbid_seals(_: BorrowedFd<'_>) -> Result<(), CallError> {
    Ok(())
}

/// Does nothing, because macOS has no seals.
#[cfg(target_os = "macos")]
pub(super) fn seal(_: BorrowedFd<'_>) -> Result<(), CallError> {
    Ok(())
}

pub(super) fn stat_of(fd: RawFd) -> Option<libc::stat> {
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
pub(super) fn nameless_file(size: usize) -> Result<OwnedFd, CallError> {
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

/// Creates a file and unlinks it at once, because macOS cannot create a file without a name. The name is random,
/// because all users share these names: another user could create a file under a name that can be guessed, and this
/// function would fail.
#[cfg(target_os = "macos")]
pub(super) fn nameless_file(size: usize) -> Result<OwnedFd, CallError> {
    let (name, fd) = loop {
        // SAFETY: arc4random(3) takes nothing and always succeeds.
        let [a, b] = unsafe { [libc::arc4random(), libc::arc4random()] };
        // macOS allows at most 30 characters.
        let name = std::ffi::CString::new(format!("/taskfork-{a:08x}{b:08x}")).unwrap_or_default();
        // SAFETY: shm_open(2) reads a C string.
        let fd = unsafe {
            libc::shm_open(name.as_ptr(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600 as libc::c_uint)
        };
        if fd != -1 {
            break (name, fd);
        }
        let error = CallError::last("shm_open");
        if error.source.kind() != io::ErrorKind::AlreadyExists {
            return Err(error);
        }
    };
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
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn only_long_enough_memory_that_never_shrinks_is_mapped() {
        let shared = Shared::for_programs(3).expect("memory");
        let file = shared.file().expect("a file").as_raw_fd();
        let mapped = Shared::map_inherited(file, shared.len()).expect("the memory");
        mapped[2][0].store(71, Ordering::Relaxed);
        assert_eq!(shared[2][0].load(Ordering::Relaxed), 71);
        let other = std::fs::File::open("/proc/self/exe").or_else(|_| std::fs::File::open("/bin/sh")).expect("a file");
        for (file, slots) in
            [(file, shared.len() + 1), (file, usize::MAX), (-1, 64), (1 << 20, 64), (0, 64), (other.as_raw_fd(), 64)]
        {
            assert!(Shared::map_inherited(file, slots).is_none(), "{file} {slots}");
        }
    }

    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    #[test]
    fn handed_over_memory_keeps_its_file() {
        let shared = Shared::for_programs(3).expect("memory");
        let file = || shared.file().expect("a file").try_clone().expect("a descriptor");
        let again = Shared::from_file(file(), 3).expect("the memory");
        shared[2][0].store(71, Ordering::Relaxed);
        assert_eq!((again.len(), again[2][0].load(Ordering::Relaxed)), (3, 71));
        assert_eq!(
            stat_of(again.file().expect("a file").as_raw_fd()).map(|stat| stat.st_ino),
            stat_of(file().as_raw_fd()).map(|stat| stat.st_ino)
        );
        let error = Shared::from_file(file(), shared.len() + 1).expect_err("it is too short");
        assert_eq!(error.source.kind(), io::ErrorKind::InvalidData);
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn memory_that_can_shrink_is_not_mapped() {
        let shared = Shared::for_programs(3).expect("memory");
        // SAFETY: memfd_create(2) reads a C string.
        let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_ALLOW_SEALING) };
        // SAFETY: the descriptor was just opened and has no other owner.
        let unsealed = unsafe { OwnedFd::from_raw_fd(fd) };
        set_size(&unsealed, shared.len() * size_of::<StatusSlot>()).expect("a size");
        assert!(Shared::map_inherited(fd, shared.len()).is_none());
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn only_a_sealed_file_never_changes() {
        use std::os::fd::AsFd;

        let file = nameless_file(5).expect("a file");
        assert!(!never_changes(file.as_raw_fd(), 5), "it can be written to");
        seal(file.as_fd()).expect("a seal");
        assert!(never_changes(file.as_raw_fd(), 5) && !never_changes(file.as_raw_fd(), 6));
        assert!(!never_changes(-1, 5));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_fork_has_only_the_memory_that_it_inherits() {
        use std::sync::atomic::Ordering;

        let shared = Shared::new(1).expect("memory");
        let is_mapped_in_fork = || {
            // SAFETY: the child makes no calls but mincore(2) and _exit(2), which are async-signal-safe.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let mut page = 0;
                let start = shared.as_ptr().cast_mut().cast();
                // SAFETY: mincore(2) writes one byte for the one page, and fails if the page is not mapped.
                unsafe { libc::_exit(libc::mincore(start, 1, &raw mut page)) }
            }
            let mut status = 0;
            // SAFETY: waitpid(2) writes one int.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            libc::WEXITSTATUS(status) == 0
        };
        assert!(is_mapped_in_fork());
        shared.set_inherited(false).expect("a mapping");
        assert!(!is_mapped_in_fork());
        shared[0][0].store(7, Ordering::Relaxed);
        shared.set_inherited(true).expect("a mapping");
        assert!(is_mapped_in_fork());
        assert_eq!(shared[0][0].load(Ordering::Relaxed), 7, "the parent's memory stays");
    }
}
