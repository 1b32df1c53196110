//! eventfd(2): a number that is not zero wakes the parent, and one read of it makes it zero, however often it was added to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sys::CallError;

/// The parent's end.
#[derive(Debug)]
pub(crate) struct WakeReceiver(Arc<EventFd>);

/// The end that all workers have.
#[derive(Debug)]
pub(crate) struct Waker(Arc<EventFd>);

pub(crate) fn doorbell() -> Result<(WakeReceiver, Waker), CallError> {
    let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
    let eventfd = Arc::new(eventfd.map_err(|error| CallError::new("eventfd", error))?);
    Ok((WakeReceiver(Arc::clone(&eventfd)), Waker(eventfd)))
}

impl WakeReceiver {
    /// Until it rings again. Whether it is silent now.
    pub fn drain(&self) -> Result<bool, CallError> {
        match self.0.read() {
            Ok(_) | Err(Errno::EAGAIN) => Ok(true),
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
        // SAFETY: it is one; and if it were not, a write to it would be an error or would reach whatever it is.
        Waker(Arc::new(unsafe { EventFd::from_owned_fd(fd) }))
    }
}

impl Waker {
    /// A number that is too large to be added to wakes the parent as well.
    pub fn wake(&self) {
        while self.0.write(1) == Err(Errno::EINTR) {}
    }
}
