//! Starts this program again, in a new process.
//!
//! # Safety
//! One function of this module runs before `main`. It calls only getcwd(3), which writes to static memory, and no other
//! code reads that memory before the function returns. `take_env_var` removes an environment variable only if the
//! process has one thread, because another thread could read the environment at the same time.

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

/// The size of the longest path, including the zero byte at its end.
const LONGEST: usize = libc::PATH_MAX as usize;

/// The working directory in which the program was started, as a C string. Empty if the directory is unknown.
static START_DIRECTORY: [AtomicU8; LONGEST] = [const { AtomicU8::new(0) }; LONGEST];

/// Records the start directory. Runs before `main`, because the program may change its working directory later.
#[used]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_os = "macos"), unsafe(link_section = ".init_array"))]
static AT_START: extern "C" fn() = {
    extern "C" fn note_directory() {
        let bytes = START_DIRECTORY.as_ptr() as *mut libc::c_char;
        // SAFETY: getcwd(3) writes at most LONGEST bytes. An array of AtomicU8 has the same layout as an array of
        // bytes, and may be written through a shared reference.
        if unsafe { libc::getcwd(bytes, LONGEST) }.is_null() {
            START_DIRECTORY[0].store(0, Ordering::Relaxed);
        }
    }
    note_directory
};

/// Returns the working directory in which this program was started, or `None` if it is unknown.
pub(crate) fn start_directory() -> Option<PathBuf> {
    let bytes: Vec<u8> =
        START_DIRECTORY.iter().map(|byte| byte.load(Ordering::Relaxed)).take_while(|&byte| byte != 0).collect();
    (!bytes.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(&bytes)))
}

/// The program that this process runs.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    /// Device number and inode number of the executable. Together they identify the file.
    file: (u64, u64),
}

impl Program {
    pub fn this(_: ExitNotifier) -> Result<Program, CallError> {
        let refused = |source| CallError { call: "readlink", source };
        let path = std::env::current_exe().map_err(refused)?;
        // On Linux, `/proc/self/exe` leads to the file that this process runs, even if another file is at its path now.
        let running = if cfg!(target_os = "linux") { "/proc/self/exe".as_ref() } else { path.as_path() };
        let metadata = running.metadata().map_err(|source| CallError { call: "stat", source })?;
        Ok(Program { file: (metadata.dev(), metadata.ino()), path })
    }

    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Starts the program again in a new process, with the same arguments and in the directory where this process was
    /// started. The new process also inherits the environment variable `name` and the descriptors in `inherited`.
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
            // fcntl(2) fails here only if a descriptor is not open, and these descriptors are open.
            let _ = close_on_exec(fd, true);
        }
        Ok(ChildHandle::new(child?.id()))
    }
}

/// Adds the start directory to `error` if starting the program failed because the new process could not enter that
/// directory. Without this addition, the error would seem to be about the executable.
fn name_start_directory(error: io::Error) -> io::Error {
    let Some(directory) = start_directory() else { return error };
    // This checks whether the directory can be entered, because looking up `.` in a directory requires the same
    // permission as entering it.
    match directory.join(".").metadata() {
        Err(refused) if refused.raw_os_error() == error.raw_os_error() => {
            io::Error::new(error.kind(), format!("it was started in {}: {error}", directory.display()))
        }
        _ => error,
    }
}

/// Returns the value of an environment variable. Also removes the variable, so that programs started by this one do not
/// inherit it. Does not remove it if this process has other threads, because they may be reading the environment.
pub(crate) fn take_env_var(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    if matches!(thread_count(), Ok(Threads::One)) {
        // SAFETY: unsetenv(3) requires that no other thread uses the environment, and this process has only one thread.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Returns whether this program has more rights than the user that started it, for example because of a set-user-ID
/// bit. That user has chosen the environment of the program, so the environment cannot be trusted.
#[cfg(target_os = "linux")]
pub(crate) fn is_secure_exec() -> bool {
    // SAFETY: getauxval(3) takes an integer and returns one.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_secure_exec() -> bool {
    // SAFETY: issetugid(2) takes no arguments, returns an int, and cannot fail.
    unsafe extern "C" {
        safe fn issetugid() -> libc::c_int;
    }
    issetugid() != 0
}

pub(crate) fn parent_id() -> u32 {
    std::os::unix::process::parent_id()
}
