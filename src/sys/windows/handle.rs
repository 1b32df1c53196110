//! Handles: owned from the moment they are opened, and inheritable only during a start.
//!
//! # Safety
//! A call with a handle that is not open fails with `ERROR_INVALID_HANDLE` and accesses no memory. A handle is closed
//! once, because an `OwnedHandle` is its only owner.

use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle, RawHandle};
use std::ptr;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{
    DUPLICATE_SAME_ACCESS, DuplicateHandle, HANDLE, HANDLE_FLAG_INHERIT, INVALID_HANDLE_VALUE, SetHandleInformation,
    WAIT_OBJECT_0,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, INFINITE, WaitForSingleObject};

use crate::sys::CallError;

/// Takes ownership of the handle that `call` has just returned. Returns the call's error if the handle is null or
/// `INVALID_HANDLE_VALUE`.
///
/// # Safety
/// Any other handle must be open, and have no other owner.
pub(super) unsafe fn owned(handle: HANDLE, call: &'static str) -> Result<OwnedHandle, CallError> {
    if handle.is_null() || handle == INVALID_HANDLE_VALUE {
        return Err(CallError::last(call));
    }
    // SAFETY: the handle is open and has no other owner, as the caller guarantees.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Returns an inheritable handle of the same object.
pub(super) fn inheritable(handle: RawHandle) -> Result<OwnedHandle, CallError> {
    let mut copy = ptr::null_mut();
    // SAFETY: DuplicateHandle writes one handle, and fails for a handle that is not open. The handle of the current
    // process is a pseudo handle, which needs no closing (GetCurrentProcess).
    let copied = unsafe {
        let this = GetCurrentProcess();
        DuplicateHandle(this, handle, this, &raw mut copy, 0, 1, DUPLICATE_SAME_ACCESS)
    };
    if copied == 0 {
        return Err(CallError::last("DuplicateHandle"));
    }
    // SAFETY: DuplicateHandle has succeeded, so the copy is open. It has no other owner.
    unsafe { owned(copy, "DuplicateHandle") }
}

/// Sets whether a program that this process starts inherits this handle.
pub(super) fn set_inheritable(handle: RawHandle, yes: bool) -> Result<(), CallError> {
    // SAFETY: SetHandleInformation fails for a handle that is not open, and changes only its flag.
    match unsafe { SetHandleInformation(handle, HANDLE_FLAG_INHERIT, if yes { HANDLE_FLAG_INHERIT } else { 0 }) } {
        0 => Err(CallError::last("SetHandleInformation")),
        _ => Ok(()),
    }
}

/// Waits until the object is signalled, for `timeout` at most; `None` waits without a limit. Returns whether it is
/// signalled.
pub(super) fn wait(handle: &OwnedHandle, timeout: Option<Duration>) -> bool {
    // If the deadline overflows `Instant`, waits without one.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // SAFETY: WaitForSingleObject takes a handle that stays open during the wait, because it is borrowed.
        if unsafe { WaitForSingleObject(handle.as_raw_handle(), left.map_or(INFINITE, round_up)) } == WAIT_OBJECT_0 {
            return true;
        }
        if left.is_none_or(|left| left.is_zero()) {
            return false;
        }
    }
}

/// Returns the time in whole milliseconds, rounded up, and less than `INFINITE`. If it was rounded down, the last part
/// of a millisecond would be spent in a busy loop.
fn round_up(left: Duration) -> u32 {
    u32::try_from(left.as_nanos().div_ceil(1_000_000)).map_or(INFINITE - 1, |millis| millis.min(INFINITE - 1))
}
