//! Handles: owned from birth, and never inheritable but for the moment of a start.

use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle, RawHandle};
use std::ptr;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{
    DUPLICATE_SAME_ACCESS, DuplicateHandle, HANDLE, HANDLE_FLAG_INHERIT, INVALID_HANDLE_VALUE, SetHandleInformation,
    WAIT_OBJECT_0,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, INFINITE, WaitForSingleObject};

use crate::sys::CallError;

/// What a call has just opened.
///
/// # Safety
/// It is nobody else's.
pub(super) unsafe fn owned(handle: HANDLE, call: &'static str) -> Result<OwnedHandle, CallError> {
    if handle.is_null() || handle == INVALID_HANDLE_VALUE {
        return Err(CallError::last(call));
    }
    // SAFETY: it is open, and nobody else's, as the caller says.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// The same object under another number, which a program that is started can inherit.
pub(super) fn inheritable(handle: RawHandle) -> Result<OwnedHandle, CallError> {
    let mut copy = ptr::null_mut();
    // SAFETY: a handle that is not open is refused, and there is room for the copy.
    let copied = unsafe {
        let this = GetCurrentProcess();
        DuplicateHandle(this, handle, this, &raw mut copy, 0, 1, DUPLICATE_SAME_ACCESS)
    };
    if copied == 0 {
        return Err(CallError::last("DuplicateHandle"));
    }
    // SAFETY: it was just made.
    unsafe { owned(copy, "DuplicateHandle") }
}

/// Whether a program that is started can inherit this.
pub(super) fn set_inheritable(handle: RawHandle, yes: bool) -> Result<(), CallError> {
    // SAFETY: a handle that is not open is refused, and this concerns nothing but its flag.
    match unsafe { SetHandleInformation(handle, HANDLE_FLAG_INHERIT, if yes { HANDLE_FLAG_INHERIT } else { 0 }) } {
        0 => Err(CallError::last("SetHandleInformation")),
        _ => Ok(()),
    }
}

/// Waits until this is signalled, and for this time at most. Whether it is.
pub(super) fn wait(handle: &OwnedHandle, timeout: Option<Duration>) -> bool {
    // A deadline that no clock can tell is none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // SAFETY: the handle is open.
        if unsafe { WaitForSingleObject(handle.as_raw_handle(), left.map_or(INFINITE, round_up)) } == WAIT_OBJECT_0 {
            return true;
        }
        if left.is_none_or(|left| left.is_zero()) {
            return false;
        }
    }
}

/// Milliseconds, of which part of one is one, so that nobody spins through the last; and no more than can be waited for at a
/// time.
fn round_up(left: Duration) -> u32 {
    u32::try_from(left.as_nanos().div_ceil(1_000_000)).map_or(INFINITE - 1, |millis| millis.min(INFINITE - 1))
}
