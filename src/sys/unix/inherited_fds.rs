//! The descriptors that a spawned worker inherits from its parent.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::doorbell::Waker;
use super::lifeline::Lifeline;
use crate::sys::{CallError, Shared};

/// The descriptors that a spawned worker inherits. They have the same numbers in the worker as in the parent.
#[derive(Debug)]
pub(crate) struct InheritedFds<'a> {
    memory: Option<BorrowedFd<'a>>,
    waker: BorrowedFd<'a>,
    lifeline: Option<BorrowedFd<'a>>,
    sockets: Vec<BorrowedFd<'a>>,
}

/// The number of an inherited descriptor, or -1 if there is none.
pub(crate) type Number = RawFd;

/// An owned descriptor, which is closed when it is dropped.
pub(crate) type Owned = OwnedFd;

/// A borrowed socket. On Unix, a socket is a descriptor like any other.
pub(crate) type BorrowedSocket<'a> = BorrowedFd<'a>;
pub(crate) type OwnedSocket = OwnedFd;

/// Returns whether both have the same number.
pub(crate) fn is_same_socket(one: BorrowedSocket<'_>, other: BorrowedSocket<'_>) -> bool {
    one.as_raw_fd() == other.as_raw_fd()
}

impl<'a> InheritedFds<'a> {
    /// The position of the first socket in the list of everything that a worker inherits.
    pub const FIRST_SOCKET: usize = 3;

    pub fn new(
        memory: &'a Arc<Shared>,
        _: usize,
        waker: &'a Waker,
        lifeline: &'a Lifeline,
        sockets: Vec<BorrowedSocket<'a>>,
    ) -> Result<InheritedFds<'a>, CallError> {
        Ok(InheritedFds {
            memory: memory.file().map(AsFd::as_fd),
            waker: waker.as_fd(),
            lifeline: lifeline.passed(),
            sockets,
        })
    }

    /// Returns the memory, the waker, the lifeline and the sockets, in this order. `None` means that there is none.
    pub(super) fn numbered(&self) -> impl Iterator<Item = Option<BorrowedFd<'a>>> {
        [self.memory, Some(self.waker), self.lifeline].into_iter().chain(self.sockets.iter().copied().map(Some))
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'a>> {
        self.numbered().flatten()
    }
}
