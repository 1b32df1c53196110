//! The memory of a process on FreeBSD.
//!
//! # Safety
//! sysctl(3) writes at most as many bytes as its size argument says, into memory of this size.

use std::io::{Error, ErrorKind};
use std::{mem, ptr};

use crate::sys::CallError;

/// Returns the same as [`private_memory`], because the kernel keeps this number as a counter.
pub(crate) fn private_memory_bound(pid: u32) -> Result<u64, CallError> {
    private_memory(pid)
}

/// Returns the resident memory of this process in bytes, including memory that it shares. FreeBSD has no cheaper way to
/// find the private part than to list all mappings of the process.
pub(crate) fn private_memory(pid: u32) -> Result<u64, CallError> {
    let info = process_info(pid)?;
    // SAFETY: getpagesize(3) takes no argument and accesses no memory.
    let page_size = unsafe { libc::getpagesize() };
    Ok(u64::try_from(info.ki_rssize).unwrap_or(0) * u64::try_from(page_size).unwrap_or(0))
}

/// Returns what the kernel knows about this process.
pub(super) fn process_info(pid: u32) -> Result<libc::kinfo_proc, CallError> {
    let name = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, pid as libc::c_int];
    // SAFETY: all-zero bytes are a valid kinfo_proc, because it consists of integers, pointers and arrays of them.
    let mut info: libc::kinfo_proc = unsafe { mem::zeroed() };
    let mut size = mem::size_of_val(&info);
    let length = name.len() as libc::c_uint;
    // SAFETY: sysctl(3) reads `length` integers and writes at most `size` bytes, which is the size of `info`.
    let result = unsafe { libc::sysctl(name.as_ptr(), length, (&raw mut info).cast(), &raw mut size, ptr::null(), 0) };
    if result != 0 {
        return Err(CallError::last("sysctl"));
    }
    if size != mem::size_of_val(&info) {
        return Err(CallError::new("sysctl", Error::from(ErrorKind::NotFound)));
    }
    Ok(info)
}
