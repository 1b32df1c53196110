//! What a program that is started finds open.

use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::sync::Arc;

use super::doorbell::Button;
use super::event::Event;
use super::handle::inheritable;
use super::lifeline::Lifeline;
use super::shm::Shared;
use crate::sys::CallError;

/// What the parent passes to it: copies that can be inherited, open under the same numbers in both until the parent drops
/// them.
#[derive(Debug)]
pub(crate) struct Handed<'a> {
    copies: [OwnedHandle; 3],
    pub(super) stop: Event,
    pub(super) seat: (Arc<Shared>, usize),
    pub(super) job: &'a OwnedHandle,
}

/// The number of something that is passed.
pub(crate) type Number = isize;

/// What was passed, in the program that has got it.
pub(crate) type Owned = OwnedHandle;

impl<'a> Handed<'a> {
    pub fn new(
        memory: &Arc<Shared>,
        line: usize,
        button: &Button,
        lifeline: &'a Lifeline,
    ) -> Result<Handed<'a>, CallError> {
        let stop = Event::lasting()?;
        let section = memory.section().map_or(std::ptr::null_mut(), AsRawHandle::as_raw_handle);
        let copies = [
            inheritable(section)?,
            inheritable(button.event().handle().as_raw_handle())?,
            inheritable(stop.handle().as_raw_handle())?,
        ];
        Ok(Handed { copies, stop, seat: (Arc::clone(memory), line), job: lifeline.job() })
    }

    /// The memory, and the others.
    pub fn numbers(&self) -> (Number, [Number; 2]) {
        let [memory, button, stop] = self.copies.each_ref().map(|copy| copy.as_raw_handle() as Number);
        (memory, [button, stop])
    }

    pub(super) fn copies(&self) -> &[OwnedHandle] {
        &self.copies
    }
}
