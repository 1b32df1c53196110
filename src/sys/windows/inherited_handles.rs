//! The handles that a spawned worker inherits.

use std::os::windows::io::{AsRawHandle, AsRawSocket, OwnedHandle, RawHandle};
pub(crate) use std::os::windows::io::{BorrowedSocket, OwnedSocket};
use std::sync::Arc;

use super::doorbell::Waker;
use super::event::EventHandle;
use super::handle::{inheritable, set_inheritable};
use super::lifeline::Lifeline;
use crate::sys::{CallError, Shared};

/// The handles that a worker inherits, which have the same numbers in parent and worker. All but the sockets are
/// inheritable copies, which the parent closes when it drops this value after the start.
#[derive(Debug)]
pub(crate) struct InheritedFds<'a> {
    copies: [OwnedHandle; 3],
    sockets: Vec<BorrowedSocket<'a>>,
    /// The event that requests a stop.
    pub(super) stop: EventHandle,
    pub(super) status_slot: (Arc<Shared>, usize),
    /// The job in which the worker starts.
    pub(super) job: &'a OwnedHandle,
}

/// The number of an inherited handle.
pub(crate) type Number = isize;

/// An inherited handle, in the worker.
pub(crate) type Owned = OwnedHandle;

impl<'a> InheritedFds<'a> {
    pub fn new(
        memory: &Arc<Shared>,
        slot: usize,
        waker: &Waker,
        lifeline: &'a Lifeline,
        sockets: Vec<BorrowedSocket<'a>>,
    ) -> Result<InheritedFds<'a>, CallError> {
        let stop = EventHandle::manual_reset()?;
        let section = memory.file().map_or(std::ptr::null_mut(), AsRawHandle::as_raw_handle);
        let copies = [
            inheritable(section)?,
            inheritable(waker.event().handle().as_raw_handle())?,
            inheritable(stop.handle().as_raw_handle())?,
        ];
        let inherited_handles =
            InheritedFds { copies, sockets, stop, status_slot: (Arc::clone(memory), slot), job: lifeline.job() };
        // DuplicateHandle does not support sockets: a copy does not work as a socket. So the socket itself becomes
        // inheritable.
        inherited_handles.sockets().try_for_each(|socket| set_inheritable(socket, true))?;
        Ok(inherited_handles)
    }

    /// Returns the numbers of the memory, of the waker and the stop event, and of the sockets.
    pub fn numbers(&self) -> (Number, [Number; 2], Vec<Number>) {
        let [memory, waker, stop] = self.copies.each_ref().map(|copy| copy.as_raw_handle() as Number);
        (memory, [waker, stop], self.sockets().map(|socket| socket as Number).collect())
    }

    /// Returns all handles that the worker inherits.
    pub(super) fn handles(&self) -> impl Iterator<Item = RawHandle> {
        self.copies.iter().map(AsRawHandle::as_raw_handle).chain(self.sockets())
    }

    fn sockets(&self) -> impl Iterator<Item = RawHandle> {
        self.sockets.iter().map(|socket| socket.as_raw_socket() as RawHandle)
    }
}

impl Drop for InheritedFds<'_> {
    fn drop(&mut self) {
        for socket in self.sockets() {
            // This fails only for a socket whose flag could not be set either.
            let _ = set_inheritable(socket, false);
        }
    }
}
