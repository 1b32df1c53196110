//! Records before `main` how this process was started, because the program may change all of it later: its pid, working
//! directory, name and arguments, and what its parent has passed.
//!
//! # Safety
//! The recording function runs before `main`, when no other thread exists. It allocates no memory, because the
//! program's allocator may not work yet. It writes to atomics and to memory that nothing else uses.

use std::ffi::{CStr, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::main_program;
use super::program::is_secure_exec;
use super::recorded::Recorded;
use super::start_offer;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use super::upgrade;

/// The size of the longest path, including the zero byte at its end.
const LONGEST: usize = libc::PATH_MAX as usize;

/// The pid. It is 0 if nothing was recorded, because this crate is in a library.
static PID: AtomicU32 = AtomicU32::new(0);

/// The working directory, as a C string. Empty if the directory is unknown.
static DIRECTORY: [AtomicU8; LONGEST] = [const { AtomicU8::new(0) }; LONGEST];

/// The name of the process in ps(1), as a C string. Empty if the system has no such name.
static NAME: [AtomicU8; 16] = [const { AtomicU8::new(0) }; 16];

/// The arguments, each with a zero byte at its end.
static ARGUMENTS: Recorded = Recorded::new();

/// Runs `record` before `main`. The number is the highest priority that a program may use. So `record` runs before the
/// program's own functions of this kind.
#[used]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_os = "macos"), unsafe(link_section = ".init_array.00101"))]
static AT_START: unsafe extern "C" fn(libc::c_int, *const *const libc::c_char) = record;

/// Set if the C library passes the arguments of `main` to `record`. musl passes nothing.
const HAS_ARGUMENTS: bool = cfg!(any(not(target_os = "linux"), target_env = "gnu"));

unsafe extern "C" fn record(count: libc::c_int, arguments: *const *const libc::c_char) {
    if !main_program::contains_this_crate() {
        return;
    }
    PID.store(std::process::id(), Ordering::Relaxed);
    record_directory();
    record_name();
    if !record_command_line() && HAS_ARGUMENTS {
        // SAFETY: these C libraries pass the arguments of `main`.
        unsafe { record_arguments(count, arguments) };
    }
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    upgrade::record_start();
    // If the program has more rights than the user that started it, that user may have chosen the environment.
    if !is_secure_exec() {
        #[cfg(all(target_os = "linux", not(taskfork_portable)))]
        upgrade::record_state();
        start_offer::record();
    }
}

fn record_directory() {
    let bytes = DIRECTORY.as_ptr() as *mut libc::c_char;
    // SAFETY: getcwd(3) writes at most LONGEST bytes. An array of AtomicU8 has the layout of an array of bytes, and may
    // be written through a shared reference.
    if unsafe { libc::getcwd(bytes, LONGEST) }.is_null() {
        DIRECTORY[0].store(0, Ordering::Relaxed);
    }
}

#[cfg(target_os = "linux")]
fn record_name() {
    // SAFETY: PR_GET_NAME writes 16 bytes (prctl(2)). An array of AtomicU8 has the layout of an array of bytes, and may
    // be written through a shared reference.
    unsafe { libc::prctl(libc::PR_GET_NAME, NAME.as_ptr()) };
}

/// Sets and records the name of this process. A process that was started by a descriptor is named after the
/// descriptor's number.
#[cfg(target_os = "linux")]
pub(super) fn set_name(name: &[u8; 16]) {
    // SAFETY: PR_SET_NAME reads at most 16 bytes (prctl(2)).
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    record_name();
}

#[cfg(not(target_os = "linux"))]
fn record_name() {}

#[cfg(not(target_os = "linux"))]
pub(super) fn set_name(_: &[u8; 16]) {}

/// Records the command line that the kernel has. If the program was started as an argument of the dynamic linker, this
/// command line is complete, in contrast to the arguments of `main`. Returns whether it could be read.
fn record_command_line() -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    // SAFETY: open(2) reads a C string.
    let file = unsafe { libc::open(c"/proc/self/cmdline".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    let is_recorded = file != -1 && ARGUMENTS.record_file(file);
    // SAFETY: close(2) takes an integer. This function has opened the file, and nothing else owns it.
    unsafe { libc::close(file) };
    is_recorded
}

/// Copies the arguments of `main`.
///
/// # Safety
/// There must be `count` arguments, each of which is a C string.
unsafe fn record_arguments(count: libc::c_int, arguments: *const *const libc::c_char) {
    let count = usize::try_from(count).unwrap_or_default();
    // SAFETY: the caller guarantees that these are C strings.
    let all = || (0..count).map(|at| unsafe { CStr::from_ptr(*arguments.add(at)) }.to_bytes_with_nul());
    ARGUMENTS.record(all().map(<[u8]>::len).sum(), |bytes| {
        let mut at = 0;
        for argument in all() {
            bytes[at..at + argument.len()].copy_from_slice(argument);
            at += argument.len();
        }
        true
    });
}

/// Returns the pid of the process that was recorded. A fork of that process has another pid. Returns `None` if this
/// crate is in a library.
pub(super) fn pid() -> Option<u32> {
    Some(PID.load(Ordering::Relaxed)).filter(|&pid| pid != 0)
}

/// Returns the working directory in which this program was started.
pub(super) fn directory() -> Option<PathBuf> {
    let bytes = until_zero(&DIRECTORY);
    (!bytes.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(&bytes)))
}

/// Returns the name of this process in ps(1), at its start.
pub(super) fn name() -> Vec<u8> {
    until_zero(&NAME)
}

/// Returns the arguments with which this program was started. The first one is its name.
pub(super) fn arguments() -> Vec<OsString> {
    let Some(bytes) = ARGUMENTS.get() else { return std::env::args_os().collect() };
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    bytes.split(|&byte| byte == 0).map(|argument| OsStr::from_bytes(argument).to_owned()).collect()
}

/// Returns the first recorded argument, which is the name under which the program was started.
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(super) fn first_argument() -> Option<&'static CStr> {
    CStr::from_bytes_until_nul(ARGUMENTS.get()?).ok()
}

fn until_zero(text: &[AtomicU8]) -> Vec<u8> {
    text.iter().map(|byte| byte.load(Ordering::Relaxed)).take_while(|&byte| byte != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_agrees_with_std() {
        assert_eq!(pid(), Some(std::process::id()));
        assert_eq!(arguments(), std::env::args_os().collect::<Vec<_>>());
        assert_eq!(directory(), std::env::current_dir().ok());
    }
}
