//! Sockets that a service manager has passed to this process (sd_listen_fds(3)).
//!
//! # Safety
//! fcntl(2) with `F_SETFD` takes a number and fails if no descriptor has it. getsockopt(2) writes one integer.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::CallError;

/// The number of the first descriptor that a service manager passes (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// Takes over the passed descriptor with this index, and sets its close-on-exec flag. Call this once for each index:
/// the service manager has passed the descriptor to this process, so nothing else owns it.
pub(crate) fn take_passed(index: RawFd) -> Result<OwnedFd, CallError> {
    let fd = FIRST + index;
    // SAFETY: see the top of this file.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(CallError::last("fcntl"));
    }
    // SAFETY: the descriptor is open, because fcntl(2) has found it. It belongs to the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns whether this socket listens (`SO_ACCEPTCONN`, socket(7)). Fails if the descriptor is no socket.
pub(crate) fn is_listening(socket: BorrowedFd<'_>) -> Result<bool, CallError> {
    let mut value: libc::c_int = 0;
    let mut len = mem::size_of_val(&value) as libc::socklen_t;
    let out = (&raw mut value).cast();
    // SAFETY: getsockopt(2) writes at most `len` bytes, which is the size of `value`.
    match unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ACCEPTCONN, out, &raw mut len) } {
        0 => Ok(value != 0),
        _ => Err(CallError::last("getsockopt")),
    }
}
