//! The memory of a process on macOS.
//!
//! # Safety
//! proc_pid_rusage writes a structure of the requested version into memory of the right size.

use crate::sys::CallError;

/// Returns the same as [`private_memory`], because the kernel keeps this number as a counter.
pub(crate) fn private_memory_bound(pid: u32) -> Result<u64, CallError> {
    private_memory(pid)
}

/// Returns the footprint of this process in bytes, which Activity Monitor shows as its memory. Returns 0 for a process
/// that has exited but was not reaped.
pub(crate) fn private_memory(pid: u32) -> Result<u64, CallError> {
    match usage(pid) {
        Err(error) if error.source.raw_os_error() == Some(libc::ESRCH) => Ok(0),
        usage => Ok(usage?.ri_phys_footprint),
    }
}

/// Returns what this process uses.
pub(super) fn usage(pid: u32) -> Result<libc::rusage_info_v0, CallError> {
    // SAFETY: all-zero bytes are a valid rusage_info_v0, because it consists of integers.
    let mut usage: libc::rusage_info_v0 = unsafe { std::mem::zeroed() };
    // SAFETY: with RUSAGE_INFO_V0, the call writes one rusage_info_v0. Its pointer type is that of an opaque structure.
    let result = unsafe { libc::proc_pid_rusage(pid as libc::c_int, libc::RUSAGE_INFO_V0, (&raw mut usage).cast()) };
    if result == 0 { Ok(usage) } else { Err(CallError::last("proc_pid_rusage")) }
}
