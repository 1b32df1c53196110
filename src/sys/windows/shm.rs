//! Creates shared memory in the parent, and maps the inherited memory in a spawned worker. On Windows, shared memory is
//! a section (file mapping object) of the paging file.
//!
//! # Safety
//! A section keeps the size with which it was created (CreateFileMappingW). So the memory that this module maps never
//! shrinks.

use std::os::windows::io::{AsRawHandle, FromRawHandle, FromRawSocket, OwnedHandle, OwnedSocket, RawHandle, RawSocket};
use std::ptr::{self, NonNull};
use std::{io, mem};

use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Networking::WinSock::{WSADATA, WSAStartup};
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, FILE_MAP_READ, FILE_MAP_WRITE, MEMORY_MAPPED_VIEW_ADDRESS, MapViewOfFile, PAGE_READWRITE,
    UnmapViewOfFile,
};

use super::handle;
use super::inherited_handles::{Number, Owned};
use crate::sys::shared::whole_pages;
use crate::sys::{CallError, InheritedMemory, Shared, StatusSlot};

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

    /// Returns true without a check of the inherited handles. They are open, because programs on Windows do not close
    /// inherited handles that they do not know.
    pub fn is_passed(_: &InheritedMemory) -> bool {
        true
    }

    /// Maps the memory of the parent through the inherited handle. A spawned worker calls this. Returns `None` if the
    /// handle does not belong to a section, or if the section is too short. Also returns `None` if the worker's slot is
    /// beyond the end of the memory.
    pub fn map_inherited(inherited: &InheritedMemory) -> Option<Shared> {
        let shared = Shared::map(inherited.len, inherited.memory, None).ok()?;
        (inherited.slot < inherited.len).then_some(shared)
    }

    /// Takes ownership of the handles that a spawned worker has inherited, and makes them not inheritable. The worker
    /// calls this. Closes the handle of the memory, because mapped memory stays valid without it (MapViewOfFile).
    ///
    /// # Safety
    /// This process must have inherited these handles, and no other code in this process may own them.
    pub unsafe fn own(inherited: &InheritedMemory) -> Option<([Option<Owned>; 2], Vec<OwnedSocket>)> {
        // SAFETY: the handles are open and have no other owner, as the caller guarantees.
        let own = |number: Number| unsafe { OwnedHandle::from_raw_handle(number as RawHandle) };
        drop(own(inherited.memory));
        let passed = inherited.passed.map(own);
        let handles = passed.iter().map(AsRawHandle::as_raw_handle);
        for handle in handles.chain(inherited.sockets.iter().map(|&socket| socket as RawHandle)) {
            handle::set_inheritable(handle, false).ok()?;
        }
        if !inherited.sockets.is_empty() {
            start_sockets()?;
        }
        // SAFETY: the sockets are open and have no other owner, as the caller guarantees.
        let own = |&number: &Number| unsafe { OwnedSocket::from_raw_socket(number as RawSocket) };
        Some((passed.map(Some), inherited.sockets.iter().map(own).collect()))
    }
}

/// Initializes Winsock. std initializes Winsock when it creates its first socket, but std does not create the inherited
/// sockets.
fn start_sockets() -> Option<()> {
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

#[cfg(test)]
mod tests {
    use std::os::windows::io::IntoRawHandle;
    use std::sync::atomic::Ordering;

    use super::*;

    /// Creates shared memory and writes `secret` to slot 2. Also returns the `InheritedMemory` that a spawned worker in
    /// this slot would get.
    fn offered(secret: [u32; 4]) -> (Shared, InheritedMemory) {
        let shared = Shared::for_programs(3).expect("memory");
        shared.offer(2, secret);
        let copy = || shared.file().expect("a section").try_clone().expect("a handle").into_raw_handle() as Number;
        let inherited = InheritedMemory {
            memory: copy(),
            len: shared.len(),
            slot: 2,
            passed: [copy(), copy()],
            sockets: vec![],
            secret,
        };
        (shared, inherited)
    }

    #[test]
    fn a_slot_can_be_accepted_only_once() {
        let (shared, inherited) = offered([1, 2, 3, 4]);
        let (claimed, ..) = Shared::accept(&inherited).expect("the memory");
        claimed[2][0].store(71, Ordering::Relaxed);
        assert_eq!(shared[2][0].load(Ordering::Relaxed), 71);
        let again = InheritedMemory {
            memory: shared.file().expect("a section").as_raw_handle() as Number,
            ..inherited.clone()
        };
        assert!(Shared::accept(&again).is_none());
    }

    #[test]
    fn wrong_inherited_memory_is_refused_and_closes_nothing() {
        let (shared, inherited) = offered([1, 2, 3, 4]);
        let file = std::fs::File::open(std::env::current_exe().expect("this program")).expect("a file");
        for wrong in [
            InheritedMemory { secret: [1, 2, 3, 5], ..inherited.clone() },
            InheritedMemory { slot: 1, ..inherited.clone() },
            InheritedMemory { slot: inherited.len, ..inherited.clone() },
            InheritedMemory { len: inherited.len + (1 << 20), ..inherited.clone() },
            InheritedMemory { len: usize::MAX, ..inherited.clone() },
            InheritedMemory { memory: -1, ..inherited.clone() },
            InheritedMemory { memory: 0, ..inherited.clone() },
            InheritedMemory { memory: 1 << 20, ..inherited.clone() },
            InheritedMemory { memory: file.as_raw_handle() as Number, len: 64, slot: 0, ..inherited.clone() },
        ] {
            assert!(Shared::accept(&wrong).is_none(), "{wrong:?}");
        }
        assert!(file.metadata().is_ok() && shared.file().is_some());
        assert!(Shared::accept(&inherited).is_some(), "the right `InheritedMemory` is still accepted");
    }
}
