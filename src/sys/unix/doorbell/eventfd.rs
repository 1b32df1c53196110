//! The doorbell as an eventfd(2). An eventfd is a counter, and its descriptor is readable while the counter is not
//! zero. A worker wakes the parent by adding 1. One read resets the counter to zero, whatever its value is.
//!
//! # Safety
//! `EventFd::from_owned_fd` of nix requires that the descriptor is an eventfd. A spawned worker inherits the descriptor
//! from its parent, which has created it as an eventfd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sys::CallError;

/// The parent's end of the doorbell. It is readable after a worker has woken the parent.
#[derive(Debug)]
pub(crate) struct WakeReceiver(Arc<EventFd>);

/// The workers' end of the doorbell, with which a worker wakes the parent.
#[derive(Debug)]
pub(crate) struct Waker(Arc<EventFd>);

pub(crate) fn doorbell() -> Result<(WakeReceiver, Waker), CallError> {
    let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
    let eventfd = Arc::new(eventfd.map_err(|error| CallError::new("eventfd", error))?);
    Ok((WakeReceiver(Arc::clone(&eventfd)), Waker(eventfd)))
}

impl WakeReceiver {
    /// Resets the counter to zero. Returns true, because one read is enough to drain the doorbell.
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

/// Creates the waker in a spawned worker, from the descriptor that the worker has inherited.
impl From<OwnedFd> for Waker {
    fn from(fd: OwnedFd) -> Waker {
        // SAFETY: the parent has created this descriptor as an eventfd. With another kind of descriptor, the calls of
        // nix would only fail, or write eight bytes to it.
        Waker(Arc::new(unsafe { EventFd::from_owned_fd(fd) }))
    }
}

impl Waker {
    /// Wakes the parent. If the counter has its maximum value, the write fails. This error is ignored: the counter is
    /// not zero, so the parent wakes up anyway.
    pub fn wake(&self) {
        while self.0.write(1) == Err(Errno::EINTR) {}
    }
}
