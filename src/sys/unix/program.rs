//! Starts this program again.
//!
//! # Safety
//! The function that runs before `main` calls only getcwd(3), which writes to memory that no other code reads before it
//! returns. An environment variable is removed only if the process has no other thread, which could read the
//! environment at the same time.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use super::inherited_fds::InheritedFds;
use super::shm::close_on_exec;
use super::signal::ExitNotifier;
use super::threads::{Threads, thread_count};
use super::wait::ChildHandle;
use crate::sys::CallError;

/// The size of the longest path, with its zero at the end.
const LONGEST: usize = libc::PATH_MAX as usize;

/// The directory in which the program was started. Empty if it is unknown.
static START_DIRECTORY: [AtomicU8; LONGEST] = [const { AtomicU8::new(0) }; LONGEST];

/// Notes the start directory. Runs before `main`, because the program may change its directory later.
#[used]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_os = "macos"), unsafe(link_section = ".init_array"))]
static AT_START: extern "C" fn() = {
    extern "C" fn note_directory() {
        let bytes = START_DIRECTORY.as_ptr() as *mut libc::c_char;
        // SAFETY: getcwd(3) writes at most LONGEST bytes. An array of AtomicU8 has the layout of an array of bytes, and
        // may be written through a shared reference.
        if unsafe { libc::getcwd(bytes, LONGEST) }.is_null() {
            START_DIRECTORY[0].store(0, Ordering::Relaxed);
        }
    }
    note_directory
};

/// Returns the directory in which this program was started.
pub(crate) fn start_directory() -> Option<PathBuf> {
    let bytes: Vec<u8> =
        START_DIRECTORY.iter().map(|byte| byte.load(Ordering::Relaxed)).take_while(|&byte| byte != 0).collect();
    (!bytes.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(&bytes)))
}

/// The program that this process runs.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    /// Device and inode of the executable, which identify it.
    file: (u64, u64),
}

impl Program {
    pub fn this(_: ExitNotifier) -> Result<Program, CallError> {
        let refused = |source| CallError { call: "readlink", source };
        let path = std::env::current_exe().map_err(refused)?;
        // On Linux this link leads to the file that runs, even if another file has replaced it at its path.
        let running = if cfg!(target_os = "linux") { "/proc/self/exe".as_ref() } else { path.as_path() };
        let metadata = running.metadata().map_err(|source| CallError { call: "stat", source })?;
        Ok(Program { file: (metadata.dev(), metadata.ino()), path })
    }

    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Starts the program again, with the same arguments and in the directory where this process was started. The new
    /// process also gets this environment variable and these descriptors.
    pub fn start(&self, (name, value): (&str, &str), inherited: InheritedFds<'_>) -> Result<ChildHandle, CallError> {
        let refused = |error: io::Error| CallError::new("posix_spawn", error);
        let metadata = self.path.metadata().map_err(refused)?;
        if (metadata.dev(), metadata.ino()) != self.file {
            return Err(refused(io::Error::other("it was replaced since this process was started")));
        }
        let mut arguments = std::env::args_os();
        let mut command = Command::new(&self.path);
        command.arg0(arguments.next().unwrap_or_default()).args(arguments).env(name, value);
        if let Some(directory) = start_directory() {
            command.current_dir(directory);
        }
        let opened = inherited.descriptors().try_for_each(|fd| close_on_exec(fd, false));
        let child = opened.and_then(|()| command.spawn().map_err(name_start_directory).map_err(refused));
        for fd in inherited.descriptors() {
            // This fails only for a descriptor that is not open (fcntl(2)), and these are open.
            let _ = close_on_exec(fd, true);
        }
        Ok(ChildHandle::new(child?.id()))
    }
}

/// Adds the start directory to an error if entering that directory has failed. Otherwise the error would seem to be
/// about the executable.
fn name_start_directory(error: io::Error) -> io::Error {
    let Some(directory) = start_directory() else { return error };
    // Looking up an entry in the directory requires the same permission as entering it.
    match directory.join(".").metadata() {
        Err(refused) if refused.raw_os_error() == error.raw_os_error() => {
            io::Error::new(error.kind(), format!("it was started in {}: {error}", directory.display()))
        }
        _ => error,
    }
}

/// Returns the value of an environment variable and removes the variable, so that programs started by this one do not
/// inherit it. Does not remove it if there are other threads, because they may be reading the environment.
pub(crate) fn take_env_var(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    if matches!(thread_count(), Ok(Threads::One)) {
        // SAFETY: unsetenv(3) requires that no other thread uses the environment, and the process has one thread.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Returns whether this program runs with more rights than the user that started it and chose its environment, for
/// example because of a set-user-ID bit.
#[cfg(target_os = "linux")]
pub(crate) fn is_secure_exec() -> bool {
    // SAFETY: getauxval(3) takes an integer and returns one.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_secure_exec() -> bool {
    // SAFETY: issetugid(2) takes nothing, returns an int, and cannot fail.
    unsafe extern "C" {
        safe fn issetugid() -> libc::c_int;
    }
    issetugid() != 0
}

pub(crate) fn parent_id() -> u32 {
    std::os::unix::process::parent_id()
}
