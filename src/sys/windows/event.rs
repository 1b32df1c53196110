//! Events: what one process sets, another waits for.

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
    /// That stays set.
    pub fn lasting() -> Result<EventHandle, CallError> {
        EventHandle::create(true, ptr::null())
    }

    /// That is set until somebody has waited for it.
    pub fn passing() -> Result<EventHandle, CallError> {
        EventHandle::create(false, ptr::null())
    }

    /// The same, for whoever knows its name. One that somebody else has made is refused: it may be of another kind.
    pub fn named(name: &str) -> Result<EventHandle, CallError> {
        let name: Vec<u16> = name.encode_utf16().chain([0]).collect();
        let event = EventHandle::create(false, name.as_ptr())?;
        let last = io::Error::last_os_error();
        let is_there = last.raw_os_error() == Some(ERROR_ALREADY_EXISTS as i32);
        if is_there { Err(CallError::new("CreateEventW", last)) } else { Ok(event) }
    }

    /// The name, if there is one, ends with zero.
    fn create(lasting: bool, name: *const u16) -> Result<EventHandle, CallError> {
        // SAFETY: as above; without attributes it is not inheritable.
        let event = unsafe { handle::owned(CreateEventW(ptr::null(), lasting.into(), 0, name), "CreateEventW") };
        Ok(EventHandle(Arc::new(event?)))
    }

    pub fn set(&self) -> Result<(), CallError> {
        // SAFETY: it is open.
        match unsafe { SetEvent(self.0.as_raw_handle()) } {
            0 => Err(CallError::last("SetEvent")),
            _ => Ok(()),
        }
    }

    pub fn reset(&self) -> Result<(), CallError> {
        // SAFETY: it is open.
        match unsafe { ResetEvent(self.0.as_raw_handle()) } {
            0 => Err(CallError::last("ResetEvent")),
            _ => Ok(()),
        }
    }

    /// Waits until it is set, and for this time at most. Whether it is.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        handle::wait(&self.0, timeout)
    }

    pub fn handle(&self) -> &Arc<OwnedHandle> {
        &self.0
    }
}

/// As it was passed to a program. If it is something else, it cannot be set.
impl From<OwnedHandle> for EventHandle {
    fn from(handle: OwnedHandle) -> EventHandle {
        EventHandle(Arc::new(handle))
    }
}
