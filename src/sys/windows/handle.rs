//! Functions for handles. Each handle has an owner from the moment it is opened, and is inheritable only while this
//! process starts a program.
//!
//! # Safety
//! A system call fails with `ERROR_INVALID_HANDLE` and accesses no memory if its handle is not open. Each handle is
//! closed only once, because an `OwnedHandle` is its only owner.

use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle, RawHandle};
use std::ptr;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{
    DUPLICATE_SAME_ACCESS, DuplicateHandle, HANDLE, HANDLE_FLAG_INHERIT, INVALID_HANDLE_VALUE, SetHandleInformation,
    WAIT_OBJECT_0,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, INFINITE, WaitForSingleObject};

use crate::sys::CallError;

/// Takes ownership of a handle. `call` is the name of the system call that has just returned the handle. If the handle
/// is null or `INVALID_HANDLE_VALUE`, returns the error of that call.
///
/// # Safety
/// A handle that is neither null nor `INVALID_HANDLE_VALUE` must be open, and must have no other owner.
pub(super) unsafe fn owned(handle: HANDLE, call: &'static str) -> Result<OwnedHandle, CallError> {
    if handle.is_null() || handle == INVALID_HANDLE_VALUE {
        return Err(CallError::last(call));
    }
    // SAFETY: the handle is open and has no other owner, as the caller guarantees.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Returns an inheritable copy of the handle. The copy refers to the same object.
pub(super) fn inheritable(handle: RawHandle) -> Result<OwnedHandle, CallError> {
    copy_of(handle, 0, DUPLICATE_SAME_ACCESS)
}

/// Returns an inheritable copy of the handle that allows only this access. So a worker can use the object only in the
/// way that the worker needs.
pub(super) fn inheritable_for(handle: RawHandle, access: u32) -> Result<OwnedHandle, CallError> {
    copy_of(handle, access, 0)
}

fn copy_of(handle: RawHandle, access: u32, options: u32) -> Result<OwnedHandle, CallError> {
    let mut copy = ptr::null_mut();
    // SAFETY: DuplicateHandle writes one handle, and fails for a handle that is not open. GetCurrentProcess returns a
    // pseudo handle, which does not need to be closed.
    let copied = unsafe {
        let this = GetCurrentProcess();
        DuplicateHandle(this, handle, this, &raw mut copy, access, 1, options)
    };
    if copied == 0 {
        return Err(CallError::last("DuplicateHandle"));
    }
    // SAFETY: DuplicateHandle has succeeded, so the copy is open. The copy is new, so it has no other owner.
    unsafe { owned(copy, "DuplicateHandle") }
}

/// Sets whether the programs that this process starts inherit this handle.
pub(super) fn set_inheritable(handle: RawHandle, yes: bool) -> Result<(), CallError> {
    // SAFETY: SetHandleInformation fails for a handle that is not open, and changes only a flag of the handle.
    match unsafe { SetHandleInformation(handle, HANDLE_FLAG_INHERIT, if yes { HANDLE_FLAG_INHERIT } else { 0 }) } {
        0 => Err(CallError::last("SetHandleInformation")),
        _ => Ok(()),
    }
}

/// Waits until the object is signalled or `timeout` has passed. If `timeout` is `None`, waits without a limit. Returns
/// whether the object is signalled.
pub(super) fn wait(handle: &OwnedHandle, timeout: Option<Duration>) -> bool {
    // If the deadline overflows `Instant`, this function waits without a deadline.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // SAFETY: WaitForSingleObject takes an open handle. The handle stays open during the wait, because this
        // function borrows the `OwnedHandle`.
        if unsafe { WaitForSingleObject(handle.as_raw_handle(), left.map_or(INFINITE, round_up)) } == WAIT_OBJECT_0 {
            return true;
        }
        if left.is_none_or(|left| left.is_zero()) {
            return false;
        }
    }
}

/// Returns the duration in whole milliseconds, and always less than `INFINITE`. Rounds up, because otherwise the loop
/// in `wait` would use the CPU without a pause during the last fraction of a millisecond.
fn round_up(left: Duration) -> u32 {
    u32::try_from(left.as_nanos().div_ceil(1_000_000)).map_or(INFINITE - 1, |millis| millis.min(INFINITE - 1))
}
