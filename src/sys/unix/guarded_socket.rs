//! A socket whose descriptor other code in the process may close.
//!
//! # Safety
//! send(2) reads one byte of a static string. A descriptor is closed only while the socket is behind its number.

use std::io::{self, ErrorKind};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::descriptor::{FdIdentity, above_standard};
use crate::sys::CallError;

/// Do not wait, and raise no SIGPIPE.
#[cfg(not(target_os = "macos"))]
const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// Do not wait. macOS has no flag against SIGPIPE, so std sets the option `SO_NOSIGPIPE` of the socket.
#[cfg(target_os = "macos")]
const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT;

/// One end of a socket pair. A worker may close all descriptors that it does not know, and open files of its own under
/// the same numbers. So each use first checks that the socket is still behind the number. (A thread that closes the
/// descriptor between the check and the use is not noticed.)
#[derive(Debug)]
pub(super) struct GuardedSocket {
    fd: ManuallyDrop<OwnedFd>,
    identity: Option<FdIdentity>,
}

impl GuardedSocket {
    /// Creates a pair of connected sockets above the standard descriptors. std makes both close-on-exec on every
    /// system.
    pub fn pair() -> Result<(GuardedSocket, GuardedSocket), CallError> {
        let (one, other) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
        Ok((above_standard(one.into())?.into(), above_standard(other.into())?.into()))
    }

    /// Returns whether the socket is still behind the number. Only makes calls that are async-signal-safe.
    pub fn is_open(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.is_behind(self.fd.as_raw_fd()))
    }

    /// Writes a byte, or does nothing if the socket was closed. Never waits: if the socket is full, the other end is
    /// readable anyway. Only makes calls that are async-signal-safe. Changes `errno`.
    pub fn send_byte(&self) {
        // SAFETY: send(2) reads one byte of a static string.
        let send = || unsafe { libc::send(self.fd.as_raw_fd(), c"".as_ptr().cast(), 1, SEND_FLAGS) };
        while self.is_open() && send() == -1 && io::Error::last_os_error().kind() == ErrorKind::Interrupted {}
    }
}

impl From<OwnedFd> for GuardedSocket {
    fn from(fd: OwnedFd) -> GuardedSocket {
        GuardedSocket { identity: FdIdentity::of(fd.as_fd()), fd: ManuallyDrop::new(fd) }
    }
}

impl AsFd for GuardedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Closes the descriptor, unless other code has closed it already, because its number may be that of another file.
impl Drop for GuardedSocket {
    fn drop(&mut self) {
        if self.is_open() {
            // SAFETY: the value is not used any more, because it is dropped once.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}
