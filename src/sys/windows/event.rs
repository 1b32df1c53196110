//! Event objects of Windows. One process sets an event, and another process waits until the event is set.
//!
//! # Safety
//! The calls take handles and a name. The handles are open, because an `OwnedHandle` owns them. The name is null or
//! ends with zero.

use std::io;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use windows_sys::Win32::Foundation::ERROR_ALREADY_EXISTS;
use windows_sys::Win32::System::Threading::{CreateEventW, ResetEvent, SetEvent};

use super::handle;
use crate::sys::CallError;

/// A handle to an event object.
#[derive(Clone, Debug)]
pub(super) struct EventHandle(Arc<OwnedHandle>);

impl EventHandle {
    /// Creates an event that stays set until `reset` is called.
    pub fn manual_reset() -> Result<EventHandle, CallError> {
        EventHandle::create(true, ptr::null())
    }

    /// Creates an event that wakes only one waiting thread each time it is set. The system resets the event when it
    /// wakes that thread.
    pub fn auto_reset() -> Result<EventHandle, CallError> {
        EventHandle::create(false, ptr::null())
    }

    /// Creates an auto-reset event that other processes can open by its name. Fails if an event with this name exists
    /// already, because the existing event may not be an auto-reset event.
    pub fn named(name: &str) -> Result<EventHandle, CallError> {
        let name: Vec<u16> = name.encode_utf16().chain([0]).collect();
        let event = EventHandle::create(false, name.as_ptr())?;
        let last = io::Error::last_os_error();
        // If an event with this name exists already, CreateEventW succeeds, but sets the last error to this code.
        let existed = last.raw_os_error() == Some(ERROR_ALREADY_EXISTS as i32);
        if existed { Err(CallError::new("CreateEventW", last)) } else { Ok(event) }
    }

    /// Creates an event. `name` must be null or a string that ends with zero.
    fn create(is_manual_reset: bool, name: *const u16) -> Result<EventHandle, CallError> {
        // SAFETY: CreateEventW reads the name, which is null or ends with zero. CreateEventW returns a new handle,
        // which has no other owner.
        let event =
            unsafe { handle::owned(CreateEventW(ptr::null(), is_manual_reset.into(), 0, name), "CreateEventW") };
        Ok(EventHandle(Arc::new(event?)))
    }

    pub fn set(&self) -> Result<(), CallError> {
        // SAFETY: SetEvent takes an open handle, and accesses no memory of this process.
        match unsafe { SetEvent(self.0.as_raw_handle()) } {
            0 => Err(CallError::last("SetEvent")),
            _ => Ok(()),
        }
    }

    pub fn reset(&self) -> Result<(), CallError> {
        // SAFETY: ResetEvent takes an open handle, and accesses no memory of this process.
        match unsafe { ResetEvent(self.0.as_raw_handle()) } {
            0 => Err(CallError::last("ResetEvent")),
            _ => Ok(()),
        }
    }

    /// Waits until the event is set or `timeout` has passed. If `timeout` is `None`, waits without a limit. Returns
    /// whether the event was set.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        handle::wait(&self.0, timeout)
    }

    pub fn handle(&self) -> &Arc<OwnedHandle> {
        &self.0
    }
}

/// Wraps an inherited handle. If the handle does not belong to an event, `set` and `reset` return an error.
impl From<OwnedHandle> for EventHandle {
    fn from(handle: OwnedHandle) -> EventHandle {
        EventHandle(Arc::new(handle))
    }
}
