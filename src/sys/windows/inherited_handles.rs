//! The handles that a spawned worker inherits from its parent.

use std::os::windows::io::{AsRawHandle, AsRawSocket, OwnedHandle, RawHandle};
pub(crate) use std::os::windows::io::{BorrowedSocket, OwnedSocket};
use std::sync::Arc;

use windows_sys::Win32::System::Threading::EVENT_MODIFY_STATE;

use super::doorbell::Waker;
use super::event::EventHandle;
use super::handle::{inheritable, inheritable_for, set_inheritable};
use super::lifeline::Lifeline;
use crate::sys::{CallError, Shared};

/// The handles that a spawned worker inherits. Each handle has the same number in the worker as in the parent. The
/// worker inherits the sockets themselves, and inheritable copies of all other handles. The parent drops this value
/// after the start of the worker, which closes the copies.
#[derive(Debug)]
pub(crate) struct InheritedFds<'a> {
    copies: [OwnedHandle; 3],
    sockets: Vec<BorrowedSocket<'a>>,
    /// The event through which the parent requests a stop.
    pub(super) stop: EventHandle,
    pub(super) status_slot: (Arc<Shared>, usize),
    /// The job object in which the worker starts.
    pub(super) job: &'a OwnedHandle,
}

/// The number of an inherited handle.
pub(crate) type Number = isize;

/// An inherited handle that the worker owns.
pub(crate) type Owned = OwnedHandle;

/// Returns whether both have the same number.
pub(crate) fn is_same_socket(one: BorrowedSocket<'_>, other: BorrowedSocket<'_>) -> bool {
    one.as_raw_socket() == other.as_raw_socket()
}

impl<'a> InheritedFds<'a> {
    /// The position of the first socket in the list of everything that a worker inherits.
    pub const FIRST_SOCKET: usize = 3;

    pub fn new(
        memory: &Arc<Shared>,
        slot: usize,
        waker: &Waker,
        lifeline: &'a Lifeline,
        sockets: Vec<BorrowedSocket<'a>>,
    ) -> Result<InheritedFds<'a>, CallError> {
        memory.clear_listener(slot);
        let stop = EventHandle::manual_reset()?;
        let section = memory.file().map_or(std::ptr::null_mut(), AsRawHandle::as_raw_handle);
        let copies = [
            inheritable(section)?,
            // A worker that could wait for this event would take the wakeups of other workers.
            inheritable_for(waker.event().handle().as_raw_handle(), EVENT_MODIFY_STATE)?,
            inheritable(stop.handle().as_raw_handle())?,
        ];
        let inherited_handles =
            InheritedFds { copies, sockets, stop, status_slot: (Arc::clone(memory), slot), job: lifeline.job() };
        // DuplicateHandle cannot copy sockets: the copy of a socket handle does not work as a socket. So the socket
        // itself becomes inheritable.
        inherited_handles.sockets().try_for_each(|socket| set_inheritable(socket, true))?;
        Ok(inherited_handles)
    }

    /// Returns all handles that the worker inherits: the memory, the waker, the stop event and the sockets.
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
            // Ignores errors. Clearing this flag fails only for a socket whose flag `new` could not set either.
            let _ = set_inheritable(socket, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::doorbell::doorbell;
    use super::*;

    #[test]
    fn workers_cannot_take_the_wakeups_of_other_workers() {
        let memory = Arc::new(Shared::for_programs(1).expect("memory"));
        let (receiver, waker) = doorbell().expect("a doorbell");
        let lifeline = Lifeline::new(Duration::ZERO).expect("a lifeline");
        let inherited = InheritedFds::new(&memory, 0, &waker, &lifeline, vec![]).expect("handles");
        let [_, waker, _] = &inherited.copies;
        let waker = EventHandle::from(waker.try_clone().expect("a handle"));
        waker.set().expect("a wakeup");
        assert!(!waker.wait(Some(Duration::ZERO)), "a worker cannot wait for the event");
        assert!(receiver.has_woken());
    }
}
