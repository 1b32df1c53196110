//! The doorbell as an eventfd(2): a counter that is readable while it is not zero. One read resets it, however often it
//! was increased.
//!
//! # Safety
//! nix requires that the descriptor is an eventfd. A spawned worker inherits its descriptor from a parent that passes
//! one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sys::CallError;

/// The parent's end of the doorbell.
#[derive(Debug)]
pub(crate) struct WakeReceiver(Arc<EventFd>);

/// The workers' end of the doorbell.
#[derive(Debug)]
pub(crate) struct Waker(Arc<EventFd>);

pub(crate) fn doorbell() -> Result<(WakeReceiver, Waker), CallError> {
    let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
    let eventfd = Arc::new(eventfd.map_err(|error| CallError::new("eventfd", error))?);
    Ok((WakeReceiver(Arc::clone(&eventfd)), Waker(eventfd)))
}

impl WakeReceiver {
    /// Resets the counter. Returns true, because one read drains the doorbell.
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

/// Makes the waker of a spawned worker.
impl From<OwnedFd> for Waker {
    fn from(fd: OwnedFd) -> Waker {
        // SAFETY: the parent has passed an eventfd. With any other descriptor, the calls of nix would only fail, or
        // write eight bytes to it.
        Waker(Arc::new(unsafe { EventFd::from_owned_fd(fd) }))
    }
}

impl Waker {
    /// Wakes the parent. A write to a full counter fails, but then the counter is not zero, so the parent wakes up
    /// anyway.
    pub fn wake(&self) {
        while self.0.write(1) == Err(Errno::EINTR) {}
    }
}
