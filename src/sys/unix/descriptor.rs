//! Numbers of descriptors: which file is behind a number, and the numbers 0, 1 and 2.
//!
//! # Safety
//! fstat(2) writes one stat. fcntl(2), open(2) and close(2) take integers and a C string.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::sys::CallError;

/// The first number that is not one of standard input, output and error.
const FIRST: RawFd = libc::STDERR_FILENO + 1;

/// The file behind a descriptor. Each socket, pipe and directory has an inode of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FdIdentity {
    device: libc::dev_t,
    inode: libc::ino_t,
}

impl FdIdentity {
    pub fn of(fd: BorrowedFd<'_>) -> Option<FdIdentity> {
        FdIdentity::behind(fd.as_raw_fd())
    }

    /// Returns whether this file is still behind the number. Programs that become a daemon close all descriptors, and
    /// open files under the same numbers. fstat(2) is async-signal-safe (signal-safety(7)).
    pub fn is_behind(&self, number: RawFd) -> bool {
        FdIdentity::behind(number).as_ref() == Some(self)
    }

    fn behind(number: RawFd) -> Option<FdIdentity> {
        // SAFETY: stat consists of integers, for which zero bytes are a valid value.
        let mut stat: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: fstat(2) writes one stat, and fails for a number that is no open descriptor.
        (unsafe { libc::fstat(number, &raw mut stat) } == 0)
            .then_some(FdIdentity { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// Returns the descriptor under a number above 2. The program may have closed standard input, output or error, and
/// would otherwise read or write this file in their place.
pub(crate) fn above_standard(fd: OwnedFd) -> Result<OwnedFd, CallError> {
    if fd.as_raw_fd() >= FIRST {
        return Ok(fd);
    }
    // SAFETY: fcntl(2) takes integers here. It returns a new descriptor, which has no other owner.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST) } {
        -1 => Err(CallError::last("fcntl")),
        // SAFETY: as above.
        moved => Ok(unsafe { OwnedFd::from_raw_fd(moved) }),
    }
}

/// Closes, in a forked child, the child's copy of a descriptor that its parent has opened. The child must not use or
/// drop the owner of the descriptor afterwards. For an owner that the child forgets: dropping it would also free
/// memory, and freeing memory writes to pages that the child still shares with the parent (copy-on-write).
pub(crate) fn close_inherited(fd: BorrowedFd<'_>) {
    // SAFETY: close(2) takes an integer. The caller guarantees that nothing uses the number any more.
    unsafe { libc::close(fd.as_raw_fd()) };
}

/// Placeholders under those of the numbers 0, 1 and 2 that are closed. While they exist, no other descriptor gets such
/// a number. A read or write fails as if the number was closed.
///
/// Dropping them closes them again, except for a number under which the program has opened a file meanwhile.
#[derive(Debug, Default)]
pub(crate) struct StandardFds {
    placeholders: Vec<(RawFd, FdIdentity)>,
}

impl StandardFds {
    pub fn reserve() -> Result<StandardFds, CallError> {
        let mut reserved = StandardFds::default();
        // SAFETY: fcntl(2) takes integers here, and fails for a number that is no open descriptor.
        if (0..FIRST).all(|number| unsafe { libc::fcntl(number, libc::F_GETFD) } != -1) {
            return Ok(reserved);
        }
        loop {
            // A descriptor of the directory is not enough to read or write anything.
            // SAFETY: open(2) reads a C string.
            let number = unsafe { libc::open(c"/".as_ptr(), PLACEHOLDER_FLAGS) };
            if number == -1 {
                return Err(CallError::last("open"));
            }
            // SAFETY: the descriptor was just opened, so it has no other owner.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            let Some(identity) = FdIdentity::behind(number).filter(|_| number < FIRST) else { return Ok(reserved) };
            reserved.placeholders.push((fd.into_raw_fd(), identity));
        }
    }
}

impl Drop for StandardFds {
    #[inline]
    fn drop(&mut self) {
        for (number, identity) in &self.placeholders {
            if identity.is_behind(*number) {
                // SAFETY: `reserve` has opened this descriptor, and the same directory is still behind its number.
                drop(unsafe { OwnedFd::from_raw_fd(*number) });
            }
        }
    }
}

#[cfg(target_os = "linux")]
const PLACEHOLDER_FLAGS: libc::c_int = libc::O_PATH | libc::O_CLOEXEC;
#[cfg(not(target_os = "linux"))]
const PLACEHOLDER_FLAGS: libc::c_int = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
