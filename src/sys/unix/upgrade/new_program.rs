//! The program of an upgrade: one open file, which is first started as a candidate and then executed by the parent.
//!
//! # Safety
//! The system calls here read C strings and take integers. execve(2) reads arrays of C strings with a null pointer at
//! their end.

use std::ffi::{CString, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};

use super::super::descriptor::above_standard;
use super::super::shm::close_on_exec;
use super::super::start_offer::{CANDIDATE, digits_of, write_message};
use super::super::start_record;
use super::super::wait::ChildHandle;
use super::{signal_words, start, state};
use crate::sys::CallError;
use crate::sys::offer::{ProgramId, Secret, VARIABLE};

/// The variables that a new start must not get. The listeners of the service manager are passed in another way.
const REMOVED: [&str; 6] = [VARIABLE, state::VARIABLE, "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The variables that a candidate does not get in addition, because it must not notify the service manager.
const REMOVED_FROM_CANDIDATE: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// The file of the program to which this process is upgraded. It stays the same if its path leads to another file
/// meanwhile.
#[derive(Debug)]
pub(crate) struct NewProgram {
    path: PathBuf,
    id: ProgramId,
    file: OwnedFd,
    arguments: Vec<OsString>,
}

impl NewProgram {
    /// Opens the program at the path that led to this program at its start, or at the chosen path. A relative path
    /// begins at the directory in which this program was started.
    ///
    /// # Errors
    /// Returns the reason, for the operator, if no path is known, or if the file cannot be executed or has rights of
    /// its own.
    pub fn open(chosen: Option<&Path>) -> Result<NewProgram, String> {
        if start_record::pid().is_none() {
            return Err("this code is in a library, so the program is unknown".to_owned());
        }
        let path = match chosen {
            Some(chosen) => start::directory().unwrap_or_default().join(chosen),
            None => start::path().ok_or("no path is known that led to this program; set one with `program`")?,
        };
        let file = open_path(&path).map_err(|error| format!("{} cannot be opened: {error}", path.display()))?;
        let named = format!("/proc/self/fd/{}", file.as_raw_fd());
        let metadata = std::fs::metadata(&named).map_err(|error| format!("/proc is not usable: {error}"))?;
        if !metadata.is_file() {
            return Err(format!("{} is not a file", path.display()));
        }
        let id = ProgramId(metadata.dev(), metadata.ino());
        let named = CString::new(named).map_err(|_| "the path of the descriptor has a null byte")?;
        if let Some(problem) = problem_with(&named, &metadata.permissions()) {
            return Err(format!("{} {problem}", path.display()));
        }
        Ok(NewProgram { path, id, file, arguments: arguments(chosen.is_some()) })
    }

    #[cfg(test)]
    pub fn with_arguments(self, arguments: Vec<OsString>) -> NewProgram {
        NewProgram { arguments, ..self }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the program as a candidate, with an offer of this secret and text and with copies of the descriptors. The
    /// text begins with "candidate ". The candidate gets the arguments, the environment, the directory, the signal mask
    /// and the ignored signals of this program's start.
    pub fn start_candidate(&self, secret: Secret, text: &str, fds: &[BorrowedFd<'_>]) -> Result<ChildHandle, String> {
        debug_assert!(text.starts_with(CANDIDATE));
        let start = format!("{} {}", self.name(), signal_words());
        let passed = fds.iter().copied().map(Some);
        let refused = |error: CallError| format!("{}: {}", error.call, error.source);
        let (offer, variable) = write_message(secret, self.id, &start, passed, text).map_err(refused)?;
        let (name, arguments) = self.arguments.split_first().ok_or("the arguments of this program are unknown")?;
        let mut command = Command::new(self.by_descriptor());
        command.arg0(name).args(arguments).env_clear().envs(environment()).env(VARIABLE, variable);
        for variable in REMOVED_FROM_CANDIDATE {
            command.env_remove(variable);
        }
        if let Some(directory) = start::directory() {
            enter(&directory)?.leave();
            command.current_dir(directory);
        }
        let inherited = Inherited::allow(fds.iter().copied().chain([offer.as_fd()])).map_err(refused)?;
        let child = command.spawn();
        drop(inherited);
        child.map(|child| ChildHandle::new(child.id())).map_err(|error| self.refused(&error))
    }

    /// Executes the program in this process, with a state of this secret and text and with the descriptors. The program
    /// has `timeout` to take the state. Returns the reason if the program could not be executed; then everything is as
    /// before the call. Call this in the thread that has started the workers.
    pub fn exec(&self, secret: Secret, text: &str, fds: &[BorrowedFd<'_>], timeout: Duration) -> String {
        let refused = |error: CallError| format!("{}: {}", error.call, error.source);
        let prepared = state::write(secret, &self.name(), &self.path, timeout, text, fds).map_err(refused);
        let (file, variable) = match prepared {
            Ok(prepared) => prepared,
            Err(reason) => return reason,
        };
        let mut variables: Vec<OsString> = environment().map(|(name, value)| joined(&name, &value)).collect();
        variables.push(joined(state::VARIABLE.as_ref(), variable.as_ref()));
        let mut strings = Strings::default();
        let arguments = strings.add(self.arguments.iter().cloned());
        let variables = strings.add(variables);
        let entered = match start::directory().map(|directory| enter(&directory)).transpose() {
            Ok(entered) => entered,
            Err(reason) => return reason,
        };
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let reason = match Inherited::allow(fds.iter().copied().chain([file.as_fd()])) {
            Ok(inherited) => {
                let reason = self.refused(&execute(&self.by_descriptor(), &arguments, &variables));
                drop(inherited);
                reason
            }
            Err(error) => refused(error),
        };
        if let Some(entered) = entered {
            entered.leave();
        }
        // pthread_sigmask(3) cannot fail here, because an earlier call has returned this mask.
        let _ = before.map(|before| before.thread_set_mask());
        reason
    }

    /// Returns the path by which the file is executed.
    fn by_descriptor(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Returns the name that the process has if it is started by the path, as hexadecimal digits. (By a descriptor, the
    /// process is named after the descriptor's number.)
    fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().as_bytes();
        digits_of(&name[..name.len().min(15)])
    }

    fn refused(&self, error: &io::Error) -> String {
        format!("{} cannot be executed: {error}", self.path.display())
    }
}

impl AsFd for NewProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: open(2) reads a C string.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and has no other owner.
    above_standard(unsafe { OwnedFd::from_raw_fd(fd) }).map_err(|error| error.source)
}

/// Returns why this file is not executed, as the end of a sentence. `file` is a path to its descriptor.
fn problem_with(file: &CString, permissions: &Permissions) -> Option<String> {
    // SAFETY: faccessat(2) reads a C string.
    if unsafe { libc::faccessat(libc::AT_FDCWD, file.as_ptr(), libc::X_OK, libc::AT_EACCESS) } == -1 {
        return Some(format!("is not executable: {}", io::Error::last_os_error()));
    }
    let mode = permissions.mode();
    // SAFETY: getxattr(2) reads two C strings. Without a buffer, it only returns the size of the value.
    let size = unsafe { libc::getxattr(file.as_ptr(), c"security.capability".as_ptr(), ptr::null_mut(), 0) };
    if mode & (libc::S_ISUID | libc::S_ISGID) != 0 || size > 0 {
        return Some("has rights of its own (set-user-ID, set-group-ID or capabilities)".to_owned());
    }
    let mut start = [0; 2];
    let file = File::open(std::ffi::OsStr::from_bytes(file.as_bytes()));
    // A program that cannot be read can be executed.
    let is_script = file.is_ok_and(|mut file| file.read_exact(&mut start).is_ok()) && &start == b"#!";
    // The interpreter would have to open the script under the number of a descriptor.
    is_script.then(|| "is a script; the program that it starts can be set with `program`".to_owned())
}

/// Returns the arguments of this program's start. If the dynamic linker was started with this program as an argument,
/// these arguments fit the dynamic linker, and another program gets those of `main`.
fn arguments(is_other_program: bool) -> Vec<OsString> {
    let recorded = start_record::arguments();
    let of_main: Vec<OsString> = std::env::args_os().collect();
    if is_other_program && recorded.len() != of_main.len() { of_main } else { recorded }
}

/// Returns the environment of this program's start without what concerns only one start.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    start::environment().into_iter().filter(|(name, _)| REMOVED.iter().all(|removed| name != removed))
}

fn joined(name: &std::ffi::OsStr, value: &std::ffi::OsStr) -> OsString {
    let mut joined = name.to_owned();
    joined.push("=");
    joined.push(value);
    joined
}

/// C strings for execve(2).
#[derive(Default)]
struct Strings(Vec<CString>);

impl Strings {
    /// Keeps the strings, and returns their addresses with a null pointer at the end. The addresses stay valid as long
    /// as this value, because each string has memory of its own.
    fn add(&mut self, strings: impl IntoIterator<Item = OsString>) -> Vec<*const libc::c_char> {
        let first = self.0.len();
        // The kernel has returned these strings, so they contain no null byte.
        self.0.extend(strings.into_iter().filter_map(|string| CString::new(string.into_vec()).ok()));
        self.0[first..].iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    }
}

/// Executes the file. Returns only if that has failed.
fn execute(file: &Path, arguments: &[*const libc::c_char], variables: &[*const libc::c_char]) -> io::Error {
    let Ok(file) = CString::new(file.as_os_str().as_bytes()) else { return io::ErrorKind::InvalidInput.into() };
    // SAFETY: execve(2) reads a C string and two arrays of C strings, each with a null pointer at its end.
    unsafe { libc::execve(file.as_ptr(), arguments.as_ptr(), variables.as_ptr()) };
    io::Error::last_os_error()
}

/// Descriptors that a program inherits while this value exists.
struct Inherited<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Inherited<'a> {
    fn allow(fds: impl Iterator<Item = BorrowedFd<'a>>) -> Result<Inherited<'a>, CallError> {
        let inherited = Inherited(fds.collect());
        inherited.0.iter().try_for_each(|fd| close_on_exec(*fd, false))?;
        Ok(inherited)
    }
}

impl Drop for Inherited<'_> {
    fn drop(&mut self) {
        for fd in &self.0 {
            // fcntl(2) fails only for a descriptor that is not open, and these are open.
            let _ = close_on_exec(*fd, true);
        }
    }
}

/// The directory from which this process has gone to another one.
struct Entered {
    before: Option<OwnedFd>,
}

/// Makes this the working directory.
fn enter(directory: &Path) -> Result<Entered, String> {
    let before = open_path(".".as_ref()).ok();
    std::env::set_current_dir(directory).map_err(|error| {
        format!("the directory {} in which this program was started cannot be entered: {error}", directory.display())
    })?;
    Ok(Entered { before })
}

impl Entered {
    /// Goes back.
    fn leave(self) {
        if let Some(before) = self.before {
            // SAFETY: fchdir(2) takes an integer. It can fail only if the directory cannot be searched any more.
            unsafe { libc::fchdir(before.as_raw_fd()) };
        }
    }
}
