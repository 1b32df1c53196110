//! The doorbell as a socket pair, for systems without eventfd(2). A worker wakes the parent by writing a byte.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::sys::CallError;

/// The parent's end of the doorbell. It is readable after a worker has woken the parent.
#[derive(Debug)]
pub(crate) struct WakeReceiver(UnixStream);

/// The workers' end of the doorbell, with which a worker wakes the parent.
#[derive(Debug)]
pub(crate) struct Waker(UnixStream);

/// Creates the doorbell. std makes a socket pair close-on-exec on every system, and prevents SIGPIPE when it writes to
/// a socket.
pub(crate) fn doorbell() -> Result<(WakeReceiver, Waker), CallError> {
    let (wake_receiver, waker) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
    for end in [&wake_receiver, &waker] {
        end.set_nonblocking(true).map_err(|error| CallError::new("ioctl", error))?;
    }
    Ok((WakeReceiver(wake_receiver), Waker(waker)))
}

impl WakeReceiver {
    /// Reads up to 4096 bytes. Returns true if no bytes are left, and false if there may be more. The caller then reads
    /// the rest after its next wait. So a worker that wakes the parent again and again cannot keep the parent in a loop
    /// here.
    pub fn drain(&self) -> Result<bool, CallError> {
        let mut bytes = [0; 4096];
        match (&self.0).read(&mut bytes) {
            Ok(0) => Ok(true),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(false),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(CallError::new("read", error)),
        }
    }
}

impl AsFd for WakeReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Creates the waker in a spawned worker, from the descriptor that the worker has inherited.
impl From<OwnedFd> for Waker {
    fn from(fd: OwnedFd) -> Waker {
        Waker(UnixStream::from(fd))
    }
}

impl Waker {
    /// Wakes the parent. Ignores errors. If the socket is full, the parent still has bytes to read and wakes up anyway.
    /// If the parent has ended, there is no process to wake.
    pub fn wake(&self) {
        while (&self.0).write(&[0]).is_err_and(|error| error.kind() == ErrorKind::Interrupted) {}
    }
}
