//! Events: one process sets them, another one waits.

use std::io;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use windows_sys::Win32::Foundation::ERROR_ALREADY_EXISTS;
use windows_sys::Win32::System::Threading::{CreateEventW, ResetEvent, SetEvent};

use super::handle;
use crate::sys::CallError;

#[derive(Clone, Debug)]
pub(super) struct EventHandle(Arc<OwnedHandle>);

impl EventHandle {
    /// Makes an event that stays set (manual reset).
    pub fn lasting() -> Result<EventHandle, CallError> {
        EventHandle::create(true, ptr::null())
    }

    /// Makes an event that is reset once a wait has ended because of it (auto reset).
    pub fn passing() -> Result<EventHandle, CallError> {
        EventHandle::create(false, ptr::null())
    }

    /// Makes an auto-reset event that other processes can open by its name. Fails if the name exists already, because
    /// that event may be of another kind.
    pub fn named(name: &str) -> Result<EventHandle, CallError> {
        let name: Vec<u16> = name.encode_utf16().chain([0]).collect();
        let event = EventHandle::create(false, name.as_ptr())?;
        let last = io::Error::last_os_error();
        let is_there = last.raw_os_error() == Some(ERROR_ALREADY_EXISTS as i32);
        if is_there { Err(CallError::new("CreateEventW", last)) } else { Ok(event) }
    }

    /// Makes an event. The name is null or ends with zero.
    fn create(lasting: bool, name: *const u16) -> Result<EventHandle, CallError> {
        // SAFETY: the name is null or a string that ends with zero. Without attributes the handle is not inheritable,
        // and it has no other owner.
        let event = unsafe { handle::owned(CreateEventW(ptr::null(), lasting.into(), 0, name), "CreateEventW") };
        Ok(EventHandle(Arc::new(event?)))
    }

    pub fn set(&self) -> Result<(), CallError> {
        // SAFETY: the handle is open.
        match unsafe { SetEvent(self.0.as_raw_handle()) } {
            0 => Err(CallError::last("SetEvent")),
            _ => Ok(()),
        }
    }

    pub fn reset(&self) -> Result<(), CallError> {
        // SAFETY: the handle is open.
        match unsafe { ResetEvent(self.0.as_raw_handle()) } {
            0 => Err(CallError::last("ResetEvent")),
            _ => Ok(()),
        }
    }

    /// Waits until the event is set, for `timeout` at most. Returns whether it is set.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        handle::wait(&self.0, timeout)
    }

    pub fn handle(&self) -> &Arc<OwnedHandle> {
        &self.0
    }
}

/// Makes an event of an inherited handle. If the handle is something else, setting it fails.
impl From<OwnedHandle> for EventHandle {
    fn from(handle: OwnedHandle) -> EventHandle {
        EventHandle(Arc::new(handle))
    }
}
