//! Starting this program once more.
//!
//! # Safety
//! The function that runs before `main` calls getcwd(3) only, into memory that nobody reads before it is done. Environment
//! variables are only removed here where there is no other thread, which could read them meanwhile.

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

const LONGEST: usize = libc::PATH_MAX as usize;

/// Where the program was started; empty if that cannot be told.
static START_DIRECTORY: [AtomicU8; LONGEST] = [const { AtomicU8::new(0) }; LONGEST];

/// What runs before `main`, where the program has had no time yet to go anywhere else.
#[used]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_os = "macos"), unsafe(link_section = ".init_array"))]
static AT_START: extern "C" fn() = {
    extern "C" fn note_directory() {
        let bytes = START_DIRECTORY.as_ptr() as *mut libc::c_char;
        // SAFETY: atomics have the memory of what is in them, so there is room for so many bytes, and it is not constant.
        if unsafe { libc::getcwd(bytes, LONGEST) }.is_null() {
            START_DIRECTORY[0].store(0, Ordering::Relaxed);
        }
    }
    note_directory
};

/// The directory in which this program was started.
pub(crate) fn start_directory() -> Option<PathBuf> {
    let bytes: Vec<u8> =
        START_DIRECTORY.iter().map(|byte| byte.load(Ordering::Relaxed)).take_while(|&byte| byte != 0).collect();
    (!bytes.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(&bytes)))
}

/// This program, as it was started.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    /// Its device and inode, by which it is known.
    file: (u64, u64),
}

impl Program {
    pub fn this(_: ExitNotifier) -> Result<Program, CallError> {
        let refused = |source| CallError { call: "readlink", source };
        let path = std::env::current_exe().map_err(refused)?;
        // On Linux the link leads to the file that runs, whatever is in its place by now.
        let running = if cfg!(target_os = "linux") { "/proc/self/exe".as_ref() } else { path.as_path() };
        let metadata = running.metadata().map_err(|source| CallError { call: "stat", source })?;
        Ok(Program { file: (metadata.dev(), metadata.ino()), path })
    }

    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Starts it once more: with the same arguments, in the directory where this process was started, and with this variable
    /// and these descriptors more.
    pub fn start(&self, (name, value): (&str, &str), handed: InheritedFds<'_>) -> Result<ChildHandle, CallError> {
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
        let opened = handed.descriptors().try_for_each(|fd| close_on_exec(fd, false));
        let child = opened.and_then(|()| command.spawn().map_err(told_of_directory).map_err(refused));
        for fd in handed.descriptors() {
            // It takes no more than an open descriptor, which it is.
            let _ = close_on_exec(fd, true);
        }
        Ok(ChildHandle::new(child?.id()))
    }
}

/// It is told as if the program itself could not be had.
fn told_of_directory(error: io::Error) -> io::Error {
    let Some(directory) = start_directory() else { return error };
    // To look at what is in it takes the same as to go there.
    match directory.join(".").metadata() {
        Err(refused) if refused.raw_os_error() == error.raw_os_error() => {
            io::Error::new(error.kind(), format!("it was started in {}: {error}", directory.display()))
        }
        _ => error,
    }
}

/// Takes a variable out of the environment, so that it is not passed on to programs that this one starts; if there are other
/// threads, which may be reading it, it stays.
pub(crate) fn take_env_var(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    if matches!(thread_count(), Ok(Threads::One)) {
        // SAFETY: there is no other thread.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Whether this program has more rights than who has started it, who has made its environment (a set-user-ID bit).
#[cfg(target_os = "linux")]
pub(crate) fn is_secure_exec() -> bool {
    // SAFETY: it takes an integer.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_secure_exec() -> bool {
    unsafe extern "C" {
        safe fn issetugid() -> libc::c_int;
    }
    issetugid() != 0
}

pub(crate) fn parent_id() -> u32 {
    std::os::unix::process::parent_id()
}
