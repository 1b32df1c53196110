//! Memory that a process shares with the programs that it starts: a section of the paging file.
//!
//! # Safety
//! A view is of zeroes at first, which are valid atomics, is only ever used as atomics, and is unmapped when nobody in this
//! process has it any more. Other processes may change it at any time, as other threads may an atomic. A section never
//! shrinks.

use std::ops::Deref;
use std::os::windows::io::{AsRawHandle, FromRawHandle, FromRawSocket, OwnedHandle, OwnedSocket, RawHandle, RawSocket};
use std::ptr::{self, NonNull};
use std::{io, mem, slice};

use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Networking::WinSock::{WSADATA, WSAStartup};
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, FILE_MAP_READ, FILE_MAP_WRITE, MEMORY_MAPPED_VIEW_ADDRESS, MapViewOfFile, PAGE_READWRITE,
    UnmapViewOfFile,
};

use super::handed::{Number, Owned};
use super::handle;
use crate::sys::{CallError, Claim, Line};

/// Zeroes, shared with every program that they are passed to.
#[derive(Debug)]
pub(crate) struct Shared {
    lines: NonNull<Line>,
    len: usize,
    /// In the process that has made it.
    section: Option<OwnedHandle>,
}

// SAFETY: it is a slice of atomics, which any thread may use and any thread may unmap.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// At least so many lines, and more than none.
    pub fn new(at_least: usize) -> Result<Shared, CallError> {
        Shared::for_programs(at_least)
    }

    /// The same, to be passed to programs too. A view begins where a page does, and so a cache line.
    pub fn for_programs(at_least: usize) -> Result<Shared, CallError> {
        const PAGE: usize = 4096 / size_of::<Line>();
        let len = at_least.max(1).next_multiple_of(PAGE);
        let too_large = || CallError::new("CreateFileMappingW", io::ErrorKind::InvalidInput);
        let size = len.checked_mul(size_of::<Line>()).ok_or_else(too_large)? as u64;
        // SAFETY: it has neither a file, nor attributes, nor a name; and it is nobody else's.
        let section = unsafe {
            let (high, low) = ((size >> 32) as u32, size as u32);
            let made = CreateFileMappingW(INVALID_HANDLE_VALUE, ptr::null(), PAGE_READWRITE, high, low, ptr::null());
            handle::owned(made, "CreateFileMappingW")?
        };
        let lines = map(section.as_raw_handle(), len).ok_or_else(|| CallError::last("MapViewOfFile"))?;
        Ok(Shared { lines, len, section: Some(section) })
    }

    /// To be passed to a program.
    pub fn section(&self) -> Option<&OwnedHandle> {
        self.section.as_ref()
    }

    /// In a program: the memory that is said to be behind a handle, if it can be: long enough.
    pub fn look_at(claim: &Claim) -> Option<Shared> {
        let lines = map(claim.memory as RawHandle, claim.len)?;
        let shared = Shared { lines, len: claim.len, section: None };
        (claim.line < claim.len).then_some(shared)
    }

    /// In a program: what it was passed.
    ///
    /// # Safety
    /// It was, and has not taken it yet.
    pub unsafe fn own(claim: &Claim) -> Option<([Option<Owned>; 2], Vec<OwnedSocket>)> {
        // SAFETY: they are open and nobody else's, as the caller says.
        let own = |number: Number| unsafe { OwnedHandle::from_raw_handle(number as RawHandle) };
        drop(own(claim.memory));
        let passed = claim.passed.map(own);
        let handles = passed.iter().map(AsRawHandle::as_raw_handle);
        for handle in handles.chain(claim.sockets.iter().map(|&socket| socket as RawHandle)) {
            handle::set_inheritable(handle, false).ok()?;
        }
        if !claim.sockets.is_empty() {
            start_sockets()?;
        }
        // SAFETY: the same.
        let own = |&number: &Number| unsafe { OwnedSocket::from_raw_socket(number as RawSocket) };
        Some((passed.map(Some), claim.sockets.iter().map(own).collect()))
    }
}

/// std does this when it makes its first socket, which these are not.
fn start_sockets() -> Option<()> {
    const VERSION: u16 = 0x202;
    // SAFETY: it consists of integers and pointers, for which zeroes are fine.
    let mut data: WSADATA = unsafe { mem::zeroed() };
    // SAFETY: there is room for the data.
    (unsafe { WSAStartup(VERSION, &raw mut data) } == 0).then_some(())
}

/// None if there is no section behind the handle, or a shorter one.
fn map(section: RawHandle, len: usize) -> Option<NonNull<Line>> {
    let size = len.checked_mul(size_of::<Line>())?;
    // SAFETY: a handle that is none is refused, and no view that exists is touched.
    let view = unsafe { MapViewOfFile(section, FILE_MAP_READ | FILE_MAP_WRITE, 0, 0, size) };
    NonNull::new(view.Value.cast())
}

impl Deref for Shared {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: the view has this length, lives as long as `self`, and holds atomics.
        unsafe { slice::from_raw_parts(self.lines.as_ptr(), self.len) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: it is the view that was made, and every borrow of it has ended.
        unsafe { UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: self.lines.as_ptr().cast() }) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::windows::io::IntoRawHandle;
    use std::sync::atomic::Ordering;

    use super::*;

    /// As a program that has inherited it.
    fn invited(secret: [u32; 4]) -> (Shared, Claim) {
        let shared = Shared::for_programs(3).expect("memory");
        shared.invite(2, secret);
        let copy = || shared.section().expect("a section").try_clone().expect("a handle").into_raw_handle() as Number;
        let claim =
            Claim { memory: copy(), len: shared.len(), line: 2, passed: [copy(), copy()], sockets: vec![], secret };
        (shared, claim)
    }

    #[test]
    fn who_knows_the_secret_gets_the_memory_once() {
        let (shared, claim) = invited([1, 2, 3, 4]);
        let (claimed, ..) = Shared::claim(&claim).expect("the memory");
        claimed[2][0].store(71, Ordering::Relaxed);
        assert_eq!(shared[2][0].load(Ordering::Relaxed), 71);
        let again = Claim { memory: shared.section().expect("a section").as_raw_handle() as Number, ..claim.clone() };
        assert!(Shared::claim(&again).is_none());
    }

    #[test]
    fn who_does_not_gets_nothing_and_nothing_is_closed() {
        let (shared, claim) = invited([1, 2, 3, 4]);
        let file = std::fs::File::open(std::env::current_exe().expect("this program")).expect("a file");
        for wrong in [
            Claim { secret: [1, 2, 3, 5], ..claim.clone() },
            Claim { line: 1, ..claim.clone() },
            Claim { line: claim.len, ..claim.clone() },
            Claim { len: claim.len + (1 << 20), ..claim.clone() },
            Claim { len: usize::MAX, ..claim.clone() },
            Claim { memory: -1, ..claim.clone() },
            Claim { memory: 0, ..claim.clone() },
            Claim { memory: 1 << 20, ..claim.clone() },
            Claim { memory: file.as_raw_handle() as Number, len: 64, line: 0, ..claim.clone() },
        ] {
            assert!(Shared::claim(&wrong).is_none(), "{wrong:?}");
        }
        assert!(file.metadata().is_ok() && shared.section().is_some());
        assert!(Shared::claim(&claim).is_some(), "the right one still can");
    }
}
