//! What a program that is started finds open.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::doorbell::Waker;
use super::lifeline::Lifeline;
use crate::sys::{CallError, Shared};

/// What the parent passes to it: open under the same numbers in both.
#[derive(Debug)]
pub(crate) struct InheritedFds<'a> {
    memory: Option<BorrowedFd<'a>>,
    waker: BorrowedFd<'a>,
    lifeline: Option<BorrowedFd<'a>>,
    sockets: Vec<BorrowedFd<'a>>,
}

/// The number of something that is passed; -1 for none.
pub(crate) type Number = RawFd;

/// What was passed, in the program that has got it.
pub(crate) type Owned = OwnedFd;

/// Here, sockets are like everything else.
pub(crate) type BorrowedSocket<'a> = BorrowedFd<'a>;
pub(crate) type OwnedSocket = OwnedFd;

impl<'a> InheritedFds<'a> {
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

    /// The memory, the others, and the sockets.
    pub fn numbers(&self) -> (Number, [Number; 2], Vec<Number>) {
        let number = |fd: Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd());
        let sockets = self.sockets.iter().map(AsRawFd::as_raw_fd).collect();
        (number(self.memory), [number(Some(self.waker)), number(self.lifeline)], sockets)
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'a>> {
        self.memory.into_iter().chain([self.waker]).chain(self.lifeline).chain(self.sockets.iter().copied())
    }
}
