//! Passes an offer from a parent to a spawned worker. On Windows, the offer is in a section. The worker inherits a
//! handle that allows only reading.
//!
//! The process reads the offer before `main`, and makes the inherited handles not inheritable. So programs that it
//! starts before its call do not inherit them.
//!
//! # Safety
//! One function of this module runs before `main`, when no other thread exists, and allocates no memory. The calls fail
//! for a handle that is not open or has another type. A view of a section is mapped once and never unmapped, and no
//! process can write to it any more.

use std::os::windows::io::{AsRawHandle, BorrowedSocket, FromRawHandle, FromRawSocket};
use std::os::windows::io::{OwnedHandle, OwnedSocket, RawHandle, RawSocket};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::{io, ptr, slice, str};

use windows_sys::Win32::Foundation::{CloseHandle, DuplicateHandle, HANDLE_FLAG_INHERIT, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Foundation::{HMODULE, SetHandleInformation};
use windows_sys::Win32::System::Environment::GetEnvironmentVariableW;
use windows_sys::Win32::System::LibraryLoader::{
    GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT, GetModuleHandleExW,
    GetModuleHandleW,
};
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, FILE_MAP_READ, FILE_MAP_WRITE, MEMORY_MAPPED_VIEW_ADDRESS, MapViewOfFile, PAGE_READWRITE,
    UnmapViewOfFile,
};
use windows_sys::Win32::System::Threading::GetCurrentProcess;
use windows_sys::w;

use super::handle::owned;
use super::inherited_handles::{InheritedFds, Number};
use super::program::{executable_id, take_env_var};
use super::shm::start_sockets;
use crate::sys::offer::{Offer, ProgramId, Secret, VARIABLE, Variable};
use crate::sys::{CallError, Inherited, Origin, PassedText, Shared};

/// The address of the message, if it was valid before `main`, and its length.
static MESSAGE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static MESSAGE_LEN: AtomicUsize = AtomicUsize::new(0);
static SECRET: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

/// The program that was started as a worker, according to the environment variable. Zeroes if there is no variable.
static PROGRAM: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Whether this process owns the inherited handles.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);
/// Whether this process has become a worker.
static IS_WORKER: AtomicBool = AtomicBool::new(false);

/// Records the offer, if a parent has started this process as a worker. Runs before `main`.
pub(super) fn record() {
    if !is_in_main_program() {
        return;
    }
    let mut value = [0; 256];
    let Some(variable) = read_variable(&mut value).and_then(|value| Variable::from_str(value).ok()) else { return };
    PROGRAM[0].store(variable.program.0, Ordering::Relaxed);
    PROGRAM[1].store(variable.program.1, Ordering::Relaxed);
    for (word, part) in SECRET.iter().zip(variable.secret) {
        word.store(part, Ordering::Relaxed);
    }
    let section = variable.number as RawHandle;
    // SAFETY: MapViewOfFile chooses an unused address. It fails for a handle that does not belong to a section, and for
    // a section that is too short.
    let view = unsafe { MapViewOfFile(section, FILE_MAP_READ, 0, 0, variable.len) };
    if view.Value.is_null() {
        return;
    }
    // SAFETY: MapViewOfFile has mapped these bytes.
    let message = unsafe { slice::from_raw_parts(view.Value.cast(), variable.len) };
    let Some(offer) = Offer::read(message, variable.secret) else {
        // SAFETY: this function has mapped the view, and uses it no longer.
        unsafe { UnmapViewOfFile(view) };
        return;
    };
    for handle in parse_list(offer.inherited) {
        // SAFETY: SetHandleInformation fails for a handle that is not open, and changes only its flag.
        unsafe { SetHandleInformation(handle as RawHandle, HANDLE_FLAG_INHERIT, 0) };
    }
    MESSAGE_LEN.store(variable.len, Ordering::Relaxed);
    MESSAGE.store(view.Value.cast(), Ordering::Release);
    // SAFETY: the section has the secret of this start. So the parent has passed the handle, and nothing else uses it.
    unsafe { CloseHandle(section) };
}

/// Returns where this process comes from.
pub(crate) fn origin() -> Origin {
    if !is_in_main_program() {
        return Origin::Library;
    }
    if IS_WORKER.load(Ordering::Relaxed) {
        return Origin::Independent;
    }
    let [volume, file] = PROGRAM.each_ref().map(|number| number.load(Ordering::Relaxed));
    let has_variable = volume != 0 || file != 0;
    match offer() {
        Some(offer) => Origin::Worker(offer.text),
        None if has_variable && executable_id().is_ok_and(|program| program == ProgramId(volume, file)) => {
            Origin::Descendant
        }
        None => Origin::Independent,
    }
}

/// Returns whether a parent has started this process as a worker, and the process has not become the worker.
pub(crate) fn was_spawned() -> bool {
    !IS_WORKER.load(Ordering::Relaxed) && offer().is_some()
}

/// Returns the text that another process has passed to this one, until this process has reached its call.
pub(crate) fn passed_text() -> Option<PassedText> {
    let offer = offer().filter(|_| was_spawned())?;
    Some(PassedText { text: offer.text, to_parent: false })
}

/// Returns a copy of the passed socket at this position of the list. Returns `None` if this process has taken what it
/// inherits, or if the socket cannot be copied. The position must be that of a socket.
pub(crate) fn copy_passed(position: usize) -> Option<OwnedSocket> {
    let number = parse_list(offer()?.inherited).nth(position)?;
    if IS_TAKEN.load(Ordering::Relaxed) {
        return None;
    }
    start_sockets()?;
    // SAFETY: the parent has passed this socket, and no code owns it yet. WSADuplicateSocketW fails for a number that
    // is no open socket.
    unsafe { BorrowedSocket::borrow_raw(number as RawSocket) }.try_clone_to_owned().ok()
}

/// Takes ownership of what a spawned worker inherits. The worker calls this. Returns `None` if something is missing, or
/// if this was called before.
pub(crate) fn take_inherited(slots: usize, slot: usize) -> Option<Inherited> {
    let numbers: Vec<Number> = parse_list(offer()?.inherited).collect();
    let [memory, waker, stop, sockets @ ..] = &numbers[..] else { return None };
    if slot >= slots || IS_TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the parent has passed these handles. They have no other owner, because this function takes them once.
    let own = |&number: &Number| unsafe { OwnedHandle::from_raw_handle(number as RawHandle) };
    // Mapped memory stays valid without its handle (MapViewOfFile), so this handle is closed here.
    let memory = own(memory);
    let memory = Shared::map(slots, memory.as_raw_handle() as Number, None).ok()?;
    if !sockets.is_empty() {
        start_sockets()?;
    }
    // SAFETY: as for the handles.
    let own_socket = |&number: &Number| unsafe { OwnedSocket::from_raw_socket(number as RawSocket) };
    Some(Inherited {
        memory,
        waker: own(waker),
        lifeline: Some(own(stop)),
        sockets: sockets.iter().map(own_socket).collect(),
    })
}

/// Removes the traces of the start when this process has become a worker. Programs that it starts from now on are
/// independent of its parent.
pub(crate) fn become_independent() {
    IS_WORKER.store(true, Ordering::Relaxed);
    take_env_var(VARIABLE);
}

/// Writes an offer into a section. Returns an inheritable handle for reading, and the value of the environment
/// variable.
pub(super) fn write_offer(
    secret: Secret,
    program: ProgramId,
    inherited: &InheritedFds<'_>,
    text: &str,
) -> Result<(OwnedHandle, String), CallError> {
    let numbers: Vec<String> = inherited.handles().map(|handle| (handle as Number).to_string()).collect();
    let offer = Offer { secret, start: "", inherited: &numbers.join(" "), text }.to_string();
    let too_long = |_| CallError::new("CreateFileMappingW", io::ErrorKind::InvalidInput);
    let size = u32::try_from(offer.len()).map_err(too_long)?;
    // SAFETY: CreateFileMappingW accepts null for the attributes and the name. INVALID_HANDLE_VALUE selects the paging
    // file. CreateFileMappingW returns a new handle, which has no other owner.
    let section = unsafe {
        let made = CreateFileMappingW(INVALID_HANDLE_VALUE, ptr::null(), PAGE_READWRITE, 0, size, ptr::null());
        owned(made, "CreateFileMappingW")?
    };
    // SAFETY: MapViewOfFile maps `offer.len()` bytes at an unused address, or returns null. They are unmapped after the
    // last use.
    unsafe {
        let view = MapViewOfFile(section.as_raw_handle(), FILE_MAP_WRITE, 0, 0, offer.len());
        if view.Value.is_null() {
            return Err(CallError::last("MapViewOfFile"));
        }
        ptr::copy_nonoverlapping(offer.as_ptr(), view.Value.cast(), offer.len());
        UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: view.Value });
    }
    let mut copy = ptr::null_mut();
    // SAFETY: DuplicateHandle writes one handle. The pseudo handle of the current process needs no closing
    // (GetCurrentProcess).
    let is_copied = unsafe {
        let this = GetCurrentProcess();
        DuplicateHandle(this, section.as_raw_handle(), this, &raw mut copy, FILE_MAP_READ, 1, 0)
    };
    if is_copied == 0 {
        return Err(CallError::last("DuplicateHandle"));
    }
    // SAFETY: DuplicateHandle has just opened this handle, and it has no other owner.
    let for_reading = unsafe { owned(copy, "DuplicateHandle")? };
    let variable = Variable { number: copy as Number, len: offer.len(), secret, program };
    Ok((for_reading, variable.to_string()))
}

fn offer() -> Option<Offer<'static>> {
    let start = MESSAGE.load(Ordering::Acquire);
    if start.is_null() {
        return None;
    }
    // SAFETY: `record` has stored the address of a view with this length, which is never unmapped or written to.
    let message = unsafe { slice::from_raw_parts(start, MESSAGE_LEN.load(Ordering::Relaxed)) };
    Offer::read(message, SECRET.each_ref().map(|word| word.load(Ordering::Relaxed)))
}

fn parse_list(list: &str) -> impl Iterator<Item = Number> {
    list.split(' ').filter_map(|number| number.parse().ok())
}

/// Reads the environment variable. Allocates no memory. Returns `None` if there is no variable, if it is longer than
/// any that a parent sets, or if it is not ASCII.
fn read_variable(value: &mut [u8; 256]) -> Option<&str> {
    let mut wide = [0; 256];
    // SAFETY: GetEnvironmentVariableW reads a string that ends with zero, and writes at most 256 code units.
    let len = unsafe { GetEnvironmentVariableW(w!("TASKFORK_WORKER"), wide.as_mut_ptr(), wide.len() as u32) };
    let wide = wide.get(..len as usize).filter(|wide| !wide.is_empty())?;
    for (byte, &unit) in value.iter_mut().zip(wide) {
        *byte = u8::try_from(unit).ok()?;
    }
    str::from_utf8(&value[..wide.len()]).ok()
}

/// Returns whether this crate is in the main program and not in a library, which can be loaded at any time.
fn is_in_main_program() -> bool {
    let flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    let mut module: HMODULE = ptr::null_mut();
    // SAFETY: with this flag, GetModuleHandleExW accepts any address, and writes one handle, which needs no closing.
    let is_found = unsafe { GetModuleHandleExW(flags, (&raw const IS_WORKER).cast(), &raw mut module) } != 0;
    // SAFETY: without a name, GetModuleHandleW returns the handle of the main program, which needs no closing.
    is_found && module == unsafe { GetModuleHandleW(ptr::null()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::lifeline::Lifeline;
    use super::*;
    use crate::sys::doorbell;

    #[test]
    fn a_written_offer_can_only_be_read() {
        let memory = Arc::new(Shared::for_programs(1).expect("memory"));
        let (_receiver, waker) = doorbell().expect("a doorbell");
        let lifeline = Lifeline::new(std::time::Duration::ZERO).expect("a lifeline");
        let handles = InheritedFds::new(&memory, 0, &waker, &lifeline, vec![]).expect("handles");
        let program = ProgramId(5, 6);
        let (section, variable) = write_offer([1, 2, 3, 4], program, &handles, "a text").expect("a section");
        let variable: Variable = variable.parse().expect("a variable");
        assert_eq!((variable.number, variable.program), (section.as_raw_handle() as Number, program));
        // SAFETY: MapViewOfFile chooses an unused address, or returns null.
        let view = unsafe { MapViewOfFile(section.as_raw_handle(), FILE_MAP_READ, 0, 0, variable.len) };
        assert!(!view.Value.is_null());
        // SAFETY: MapViewOfFile has mapped these bytes, and they are never unmapped.
        let message = unsafe { slice::from_raw_parts(view.Value.cast(), variable.len) };
        let offer = Offer::read(message, variable.secret).expect("the offer");
        assert_eq!((offer.text, parse_list(offer.inherited).count()), ("a text", 3));
        // SAFETY: as above.
        let writable = unsafe { MapViewOfFile(section.as_raw_handle(), FILE_MAP_WRITE, 0, 0, variable.len) };
        assert!(writable.Value.is_null(), "the handle allows only reading");
    }
}
