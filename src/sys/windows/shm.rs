//! Shared memory as a section (file mapping object) of the paging file: how a parent creates it, and how a spawned
//! worker inherits it.
//!
//! # Safety
//! A section keeps the size that it was created with (CreateFileMappingW). So the memory mapped here never shrinks.

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
    /// Maps zeroed memory for at least this number of slots.
    pub fn new(at_least: usize) -> Result<Shared, CallError> {
        Shared::for_programs(at_least)
    }

    /// Maps zeroed memory for at least this number of slots, in a section that programs can inherit.
    pub fn for_programs(at_least: usize) -> Result<Shared, CallError> {
        let len = whole_pages(at_least);
        let too_large = || CallError::new("CreateFileMappingW", io::ErrorKind::InvalidInput);
        let size = len.checked_mul(size_of::<StatusSlot>()).ok_or_else(too_large)? as u64;
        // SAFETY: CreateFileMappingW accepts null for the attributes and the name, and INVALID_HANDLE_VALUE for the
        // paging file. It returns a new handle, which has no other owner.
        let section = unsafe {
            let high = (size >> 32) as u32;
            let low = size as u32;
            let made = CreateFileMappingW(INVALID_HANDLE_VALUE, ptr::null(), PAGE_READWRITE, high, low, ptr::null());
            handle::owned(made, "CreateFileMappingW")?
        };
        Shared::map(len, section.as_raw_handle() as Number, Some(section))
    }

    /// Returns true, because programs on Windows do not close inherited handles that they do not know.
    pub fn is_passed(_: &InheritedMemory) -> bool {
        true
    }

    /// Maps, in a spawned program, the memory behind the inherited handle. Returns `None` if the handle is not one of a
    /// section, or if the section is too short.
    pub fn map_inherited(inherited: &InheritedMemory) -> Option<Shared> {
        let shared = Shared::map(inherited.len, inherited.memory, None).ok()?;
        (inherited.slot < inherited.len).then_some(shared)
    }

    /// Takes ownership, in a spawned program, of the handles that it inherits, and makes them not inheritable. Closes
    /// that of the memory, because a mapped view keeps its section (MapViewOfFile).
    ///
    /// # Safety
    /// The process must have inherited these handles, and nothing else in it may own them.
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

/// Initializes Winsock. std does that when it creates its first socket, but std does not create the inherited ones.
fn start_sockets() -> Option<()> {
    const VERSION: u16 = 0x202;
    // SAFETY: WSADATA consists of integers and pointers, for which zeroes are valid.
    let mut data: WSADATA = unsafe { mem::zeroed() };
    // SAFETY: WSAStartup writes one WSADATA.
    (unsafe { WSAStartup(VERSION, &raw mut data) } == 0).then_some(())
}

/// Maps slots of a section. Fails if the handle is not one of a section, or if the section is too short.
pub(in crate::sys) fn map_slots(len: usize, section: Number) -> Result<NonNull<StatusSlot>, CallError> {
    let too_large = || CallError::new("MapViewOfFile", io::ErrorKind::InvalidInput);
    let size = len.checked_mul(size_of::<StatusSlot>()).ok_or_else(too_large)?;
    // SAFETY: MapViewOfFile chooses the address, so it does not touch an existing view. It fails for a handle that is
    // not one of a section, and for more bytes than the section has.
    let view = unsafe { MapViewOfFile(section as RawHandle, FILE_MAP_READ | FILE_MAP_WRITE, 0, 0, size) };
    NonNull::new(view.Value.cast()).ok_or_else(|| CallError::last("MapViewOfFile"))
}

/// Unmaps slots.
///
/// # Safety
/// `map_slots` must have mapped slots at this address, and no borrow of them may exist.
pub(in crate::sys) unsafe fn unmap_slots(slots: NonNull<StatusSlot>, _: usize) {
    // SAFETY: UnmapViewOfFile gets the address that MapViewOfFile returned, as the caller guarantees.
    unsafe { UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: slots.as_ptr().cast() }) };
}

#[cfg(test)]
mod tests {
    use std::os::windows::io::IntoRawHandle;
    use std::sync::atomic::Ordering;

    use super::*;

    /// Returns memory, and the description of it that a spawned program would get.
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
    fn the_secret_gives_the_memory_once() {
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
    fn a_wrong_offer_is_refused_and_closes_nothing() {
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
        assert!(Shared::accept(&inherited).is_some(), "the right offer is still accepted");
    }
}
