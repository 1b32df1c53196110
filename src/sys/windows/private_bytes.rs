//! The private memory of a process on Windows.
//!
//! # Safety
//! OpenProcess takes integers and returns a handle, which has no other owner. GetProcessMemoryInfo writes at most as
//! many bytes as its size argument says, into memory of this size.

use std::os::windows::io::AsRawHandle;

use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS_EX};
use windows_sys::Win32::System::Threading::{OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION};

use crate::sys::CallError;
use crate::sys::windows::handle;

/// Returns the same as [`private_memory`], because the kernel keeps this number as a counter.
pub(crate) fn private_memory_bound(pid: u32) -> Result<u64, CallError> {
    private_memory(pid)
}

/// Returns the private bytes of this process: the memory that it has allocated and that no other process can use.
pub(crate) fn private_memory(pid: u32) -> Result<u64, CallError> {
    // SAFETY: OpenProcess takes integers. Its result is null or a new handle, which has no other owner.
    let process = unsafe { handle::owned(OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid), "OpenProcess")? };
    let mut counters = PROCESS_MEMORY_COUNTERS_EX::default();
    let size = size_of::<PROCESS_MEMORY_COUNTERS_EX>() as u32;
    // SAFETY: the call writes at most `size` bytes, which is the size of `counters`. A PROCESS_MEMORY_COUNTERS_EX
    // begins with the fields of a PROCESS_MEMORY_COUNTERS, and the size selects the longer structure.
    let written = unsafe { K32GetProcessMemoryInfo(process.as_raw_handle(), (&raw mut counters).cast(), size) };
    if written == 0 {
        return Err(CallError::last("GetProcessMemoryInfo"));
    }
    // Both fields are the commit charge of the process. Wine 8 fills only the second one.
    Ok(counters.PrivateUsage.max(counters.PagefileUsage) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_a_process_fills_is_private() {
        let own = std::process::id();
        let before = private_memory(own).expect("its memory");
        let filled = vec![1_u8; 64 << 20];
        let added = private_memory(own).expect("its memory").saturating_sub(before);
        // Other tests allocate and free memory at the same time.
        assert!((48 << 20..96 << 20).contains(&added), "{added} bytes");
        drop(filled);
    }
}
