//! A pipe that ends a wait for a socket, and the wait itself.
//!
//! # Safety
//! dup2(2) takes integers here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::guarded_socket::GuardedSocket;
use crate::sys::CallError;

/// A socket pair, whose reader stays readable from the first `wake` on.
#[derive(Debug)]
pub(crate) struct WakePipe {
    reader: GuardedSocket,
    writer: GuardedSocket,
}

impl WakePipe {
    pub fn open() -> io::Result<WakePipe> {
        let (reader, writer) = GuardedSocket::pair().map_err(|error| error.source)?;
        Ok(WakePipe { reader, writer })
    }

    /// Returns whether the program has closed neither end.
    pub fn is_open(&self) -> bool {
        self.reader.is_open() && self.writer.is_open()
    }

    /// Only makes calls that are async-signal-safe. Changes `errno`.
    pub fn wake(&self) {
        self.writer.send_byte();
    }
}

/// Waits until the socket or the pipe is readable, or `timeout` has passed. Returns whether the pipe is readable. Also
/// returns if a signal interrupts poll(2).
pub(crate) fn wait_for_socket(
    socket: BorrowedFd<'_>,
    pipe: Option<&WakePipe>,
    timeout: Option<Duration>,
) -> io::Result<bool> {
    let millis = timeout.map(|timeout| u16::try_from(timeout.as_millis()).unwrap_or(u16::MAX));
    let timeout = millis.map_or(PollTimeout::NONE, PollTimeout::from);
    let socket = PollFd::new(socket, PollFlags::POLLIN);
    let Some(pipe) = pipe else {
        return retry_later(poll(&mut [socket], timeout)).map(|_| false);
    };
    let mut both = [socket, PollFd::new(pipe.reader.as_fd(), PollFlags::POLLIN)];
    retry_later(poll(&mut both, timeout))?;
    Ok(both[1].any().unwrap_or_default())
}

fn retry_later(result: nix::Result<i32>) -> io::Result<()> {
    match result {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Closes a socket, but leaves another file under its number: a socket that is not connected to anything. So the number
/// still belongs to the owner of the socket, and no other file gets it.
pub(crate) fn close_in_place(socket: BorrowedFd<'_>) -> Result<(), CallError> {
    let placeholder = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(|error| CallError::new("socket", error))?;
    replace(&placeholder.into(), socket)
}

#[cfg(not(target_os = "macos"))]
fn replace(by: &OwnedFd, fd: BorrowedFd<'_>) -> Result<(), CallError> {
    // SAFETY: dup3(2) takes integers here. The number stays open, so its owner may still use and close it.
    let result = unsafe { libc::dup3(by.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) };
    if result == -1 { Err(CallError::last("dup3")) } else { Ok(()) }
}

#[cfg(target_os = "macos")]
fn replace(by: &OwnedFd, fd: BorrowedFd<'_>) -> Result<(), CallError> {
    // SAFETY: dup2(2) takes integers here. The number stays open, so its owner may still use and close it.
    if unsafe { libc::dup2(by.as_raw_fd(), fd.as_raw_fd()) } == -1 {
        return Err(CallError::last("dup2"));
    }
    // SAFETY: fcntl(2) takes integers here.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    if result == -1 { Err(CallError::last("fcntl")) } else { Ok(()) }
}

/// Returns whether accept(2) has failed because of one connection, so that a caller should call it again. Linux returns
/// network errors that are pending on the new connection.
pub(crate) fn is_of_connection(error: &io::Error) -> bool {
    let Some(errno) = error.raw_os_error().map(Errno::from_raw) else {
        // macOS returns no address if the client has gone already, and then std closes the connection.
        return cfg!(target_os = "macos") && error.kind() == io::ErrorKind::InvalidInput;
    };
    #[cfg(target_os = "linux")]
    if errno == Errno::ENONET {
        return true;
    }
    matches!(
        errno,
        Errno::EINTR
            | Errno::ECONNABORTED
            | Errno::ECONNRESET
            | Errno::EPROTO
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::ENOPROTOOPT
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
    )
}
