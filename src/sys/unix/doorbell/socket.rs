//! A pair of sockets, where there is no eventfd(2).

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::sys::CallError;

/// The parent's end.
#[derive(Debug)]
pub(crate) struct WakeReceiver(UnixStream);

/// The end that all workers have.
#[derive(Debug)]
pub(crate) struct Waker(UnixStream);

/// A pair of sockets, which std makes close-on-exec everywhere, and writes to without SIGPIPE.
pub(crate) fn doorbell() -> Result<(WakeReceiver, Waker), CallError> {
    let (wake_receiver, waker) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
    for end in [&wake_receiver, &waker] {
        end.set_nonblocking(true).map_err(|error| CallError::new("ioctl", error))?;
    }
    Ok((WakeReceiver(wake_receiver), Waker(waker)))
}

impl WakeReceiver {
    /// Until it rings again. Whether it is silent now: a worker that rings without end does not hold up the parent. Only what
    /// comes when all was read wakes again.
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

/// As it was passed to a program.
impl From<OwnedFd> for Waker {
    fn from(fd: OwnedFd) -> Waker {
        Waker(UnixStream::from(fd))
    }
}

impl Waker {
    /// A socket that is full wakes the parent as well, and a parent that is gone needs no waking.
    pub fn wake(&self) {
        while (&self.0).write(&[0]).is_err_and(|error| error.kind() == ErrorKind::Interrupted) {}
    }
}
