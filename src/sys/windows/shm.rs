//! Creates shared memory in the parent, and maps the inherited memory in a spawned worker. On Windows, shared memory is
//! a section (file mapping object) of the paging file.
//!
//! # Safety
//! A section keeps the size with which it was created (CreateFileMappingW). So the memory that this module maps never
//! shrinks.

use std::os::windows::io::{AsRawHandle, RawHandle};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering;
use std::{io, mem};

use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Networking::WinSock::{WSADATA, WSAStartup};
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, FILE_MAP_READ, FILE_MAP_WRITE, MEMORY_MAPPED_VIEW_ADDRESS, MapViewOfFile, PAGE_READWRITE,
    UnmapViewOfFile,
};

use super::handle;
use super::inherited_handles::Number;
use crate::sys::shared::whole_pages;
use crate::sys::{CallError, Shared, StatusSlot};

/// The word of a status slot that is set while the worker listens for stop requests. The scoreboard uses no word with
/// this index.
const LISTENS: usize = 5;

impl Shared {
    /// Maps zeroed memory for at least this number of status slots.
    pub fn new(at_least: usize) -> Result<Shared, CallError> {
        Shared::for_programs(at_least)
    }

    /// Maps zeroed memory for at least this number of status slots. The memory belongs to a section, and spawned
    /// programs can inherit the handle of the section.
    pub fn for_programs(at_least: usize) -> Result<Shared, CallError> {
        let len = whole_pages(at_least);
        let too_large = || CallError::new("CreateFileMappingW", io::ErrorKind::InvalidInput);
        let size = len.checked_mul(size_of::<StatusSlot>()).ok_or_else(too_large)? as u64;
        // SAFETY: CreateFileMappingW accepts null for the attributes and the name. INVALID_HANDLE_VALUE selects the
        // paging file. CreateFileMappingW returns a new handle, which has no other owner.
        let section = unsafe {
            let high = (size >> 32) as u32;
            let low = size as u32;
            let made = CreateFileMappingW(INVALID_HANDLE_VALUE, ptr::null(), PAGE_READWRITE, high, low, ptr::null());
            handle::owned(made, "CreateFileMappingW")?
        };
        Shared::map(len, section.as_raw_handle() as Number, Some(section))
    }

    /// Records that the worker in this slot listens for stop requests.
    pub fn note_listener(&self, slot: usize) {
        self[slot][LISTENS].store(1, Ordering::Release);
    }

    /// Returns whether the worker in this slot has called `note_listener`.
    pub fn has_listener(&self, slot: usize) -> bool {
        self[slot][LISTENS].load(Ordering::Acquire) != 0
    }

    /// Resets the slot, for a process that is about to be started.
    pub fn clear_listener(&self, slot: usize) {
        self[slot][LISTENS].store(0, Ordering::Relaxed);
    }
}

/// Initializes Winsock. std initializes Winsock when it creates its first socket, but std does not create the inherited
/// sockets.
pub(super) fn start_sockets() -> Option<()> {
    const VERSION: u16 = 0x202;
    // SAFETY: all-zero bytes are a valid WSADATA, because it consists of integers and pointers.
    let mut data: WSADATA = unsafe { mem::zeroed() };
    // SAFETY: WSAStartup writes one WSADATA.
    (unsafe { WSAStartup(VERSION, &raw mut data) } == 0).then_some(())
}

/// Maps `len` status slots of a section. Fails if the handle does not belong to a section, or if the section is too
/// short.
pub(in crate::sys) fn map_slots(len: usize, section: Number) -> Result<NonNull<StatusSlot>, CallError> {
    let too_large = || CallError::new("MapViewOfFile", io::ErrorKind::InvalidInput);
    let size = len.checked_mul(size_of::<StatusSlot>()).ok_or_else(too_large)?;
    // SAFETY: MapViewOfFile chooses an unused address, so it does not change existing mappings. It fails if the handle
    // does not belong to a section, and if the section has fewer than `size` bytes.
    let view = unsafe { MapViewOfFile(section as RawHandle, FILE_MAP_READ | FILE_MAP_WRITE, 0, 0, size) };
    NonNull::new(view.Value.cast()).ok_or_else(|| CallError::last("MapViewOfFile"))
}

/// Unmaps status slots.
///
/// # Safety
/// `map_slots` must have mapped slots at this address, and no reference to them may exist.
pub(in crate::sys) unsafe fn unmap_slots(slots: NonNull<StatusSlot>, _: usize) {
    // SAFETY: the caller guarantees that MapViewOfFile has returned this address.
    unsafe { UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: slots.as_ptr().cast() }) };
}
