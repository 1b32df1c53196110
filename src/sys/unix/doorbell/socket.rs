//! The doorbell as a socket pair, where there is no eventfd(2).

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::sys::CallError;

/// The parent's end of the doorbell.
#[derive(Debug)]
pub(crate) struct WakeReceiver(UnixStream);

/// The workers' end of the doorbell.
#[derive(Debug)]
pub(crate) struct Waker(UnixStream);

/// Makes the doorbell. std makes a socket pair close-on-exec on every system, and writes to it without SIGPIPE.
pub(crate) fn doorbell() -> Result<(WakeReceiver, Waker), CallError> {
    let (wake_receiver, waker) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
    for end in [&wake_receiver, &waker] {
        end.set_nonblocking(true).map_err(|error| CallError::new("ioctl", error))?;
    }
    Ok((WakeReceiver(wake_receiver), Waker(waker)))
}

impl WakeReceiver {
    /// Reads up to 4096 bytes. Returns whether none are left. If some may be left, the caller reads them after its next
    /// wait, so a worker that wakes the parent again and again cannot keep it in a loop here.
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

/// Makes the waker of a spawned worker.
impl From<OwnedFd> for Waker {
    fn from(fd: OwnedFd) -> Waker {
        Waker(UnixStream::from(fd))
    }
}

impl Waker {
    /// Wakes the parent. Ignores errors: if the socket is full, the parent wakes up anyway, and if the parent has
    /// ended, there is nothing to wake.
    pub fn wake(&self) {
        while (&self.0).write(&[0]).is_err_and(|error| error.kind() == ErrorKind::Interrupted) {}
    }
}
