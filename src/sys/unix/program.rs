//! Starts this program again, in a new process.
//!
//! # Safety
//! open(2) returns a new descriptor or -1. `take_env_var` removes an environment variable only if the process
//! has one thread, because another thread could read the environment at the same time.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::FromRawFd;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[cfg(target_os = "linux")]
use super::descriptor::above_standard;
use super::descriptor::close_inherited;
use super::inherited_fds::InheritedFds;
use super::shm::close_on_exec;
use super::signal::ExitNotifier;
use super::start_offer::write_offer;
use super::start_record;
use super::threads::{Threads, thread_count};
use super::wait::ChildHandle;
use crate::sys::CallError;
use crate::sys::offer::{ProgramId, Secret, VARIABLE};

/// The program that this process runs.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    id: ProgramId,
    /// The executable, kept open so that it can still be started after it was deleted or replaced. `None` if this
    /// system cannot start a program by a descriptor.
    file: Option<OwnedFd>,
}

impl Program {
    /// The call that starts a program.
    pub const CALL: &str = "posix_spawn";

    pub fn this(_: ExitNotifier) -> Result<Program, CallError> {
        let path = executable_path().map_err(|source| CallError { call: "readlink", source })?;
        let id = executable_id().map_err(|source| CallError { call: "stat", source })?;
        Ok(Program { path, id, file: open_executable()? })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the executable in a forked child, which must not use or drop this value afterwards.
    pub fn release_in_child(&self) {
        if let Some(file) = &self.file {
            close_inherited(file.as_fd());
        }
    }

    /// Starts the program again in a new process, with the same arguments and in the directory where this process was
    /// started. The new process inherits the descriptors in `inherited` and an offer with this secret and text.
    pub fn start(&self, secret: Secret, text: &str, inherited: InheritedFds<'_>) -> Result<ChildHandle, CallError> {
        let refused = |error: io::Error| CallError::new(Program::CALL, error);
        let (offer, variable) = write_offer(secret, self.id, &inherited, text)?;
        let mut arguments = start_record::arguments().into_iter();
        let mut command = Command::new(self.executable().map_err(refused)?);
        command.arg0(arguments.next().unwrap_or_default()).args(arguments).env(VARIABLE, variable);
        if let Some(directory) = start_record::directory() {
            command.current_dir(directory);
        }
        let mut descriptors = inherited.descriptors().chain([offer.as_fd()]);
        let opened = descriptors.try_for_each(|fd| close_on_exec(fd, false));
        let child = opened.and_then(|()| command.spawn().map_err(name_start_directory).map_err(refused));
        for fd in inherited.descriptors() {
            // fcntl(2) fails here only if a descriptor is not open, and these descriptors are open.
            let _ = close_on_exec(fd, true);
        }
        Ok(ChildHandle::new(child?.id()))
    }

    /// Returns a path that leads to the executable, even after the file was deleted or replaced if the system has such
    /// a path.
    fn executable(&self) -> io::Result<PathBuf> {
        let by_descriptor = self.file.as_ref().map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
        if let Some(path) = by_descriptor.filter(|path| id_of(path).is_ok_and(|id| id == self.id)) {
            return Ok(path);
        }
        if id_of(&self.path)? != self.id {
            return Err(io::Error::other("it was replaced since this process was started"));
        }
        Ok(self.path.clone())
    }
}

/// Opens the executable of this process, under a number above those of the standard streams.
#[cfg(target_os = "linux")]
fn open_executable() -> Result<Option<OwnedFd>, CallError> {
    // SAFETY: open(2) reads a C string.
    let file = unsafe { libc::open(c"/proc/self/exe".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    if file == -1 {
        return Err(CallError::last("open"));
    }
    // SAFETY: the descriptor was just opened and has no other owner.
    above_standard(unsafe { OwnedFd::from_raw_fd(file) }).map(Some)
}

#[cfg(not(target_os = "linux"))]
fn open_executable() -> Result<Option<OwnedFd>, CallError> {
    Ok(None)
}

/// Returns the path of the executable of this process. On macOS, the system's path can be relative to the directory in
/// which the process was started.
fn executable_path() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    Ok(start_record::directory().map_or_else(|| path.clone(), |directory| directory.join(&path)))
}

/// Returns the numbers of the file that this process executes. On Linux this is right even if another file is at the
/// path of the executable now.
pub(super) fn executable_id() -> io::Result<ProgramId> {
    if cfg!(target_os = "linux") { id_of("/proc/self/exe".as_ref()) } else { id_of(&executable_path()?) }
}

fn id_of(path: &Path) -> io::Result<ProgramId> {
    path.metadata().map(|metadata| ProgramId(metadata.dev(), metadata.ino()))
}

/// Adds the start directory to `error` if starting the program failed because the new process could not enter that
/// directory. Without this addition, the error would seem to be about the executable.
fn name_start_directory(error: io::Error) -> io::Error {
    let Some(directory) = start_record::directory() else { return error };
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
