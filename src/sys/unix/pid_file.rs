//! The file with the pid of the parent. A record lock of fcntl(2) shows whether the parent is alive.
//!
//! The kernel releases the lock when the process exits, however it exits. A forked child does not inherit the lock.
//! exec(3) keeps it. The kernel also releases the lock when the process closes any descriptor of the file. So this
//! module never opens the file of a `LockedPidFile` again.
//!
//! Another user may own the directory of the file, and can rename and replace files there at any time. So this module
//! opens the directory once, never writes to a file that it has not created, and follows no symbolic link.
//!
//! # Safety
//! fcntl(2) reads or writes one flock here. The descriptors are open for as long as they are borrowed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use std::{mem, thread};

use super::directory::{Directory, FileStatus};
use crate::sys::pid_file::PidFileRefusal;
use crate::sys::{CallError, close_inherited};

/// Everybody can read the file, whatever the umask of the program is.
const MODE: u32 = 0o644;

/// A process has the lock of the directory for less than a millisecond.
const LOCK_ATTEMPTS: u32 = 100;

/// The name of a pid file in its directory, and the names of two other files that exist for a moment.
struct Place {
    directory: Directory,
    name: OsString,
}

/// A pid file that this process has written and locked. Dropping this value releases the lock, and leaves the file.
#[derive(Debug)]
pub(crate) struct LockedPidFile {
    file: File,
    status: FileStatus,
}

impl LockedPidFile {
    /// Writes the file and locks it. Replaces a pid file whose process has exited. Other processes see the old file or
    /// the whole new one.
    pub fn write(path: &Path, text: &str) -> Result<LockedPidFile, PidFileRefusal> {
        let place = Place::open(path)?;
        place.with_lock(|| {
            place.check()?;
            let new = place.name_of_new();
            // A process that was killed may have left such a file.
            if place.directory.file(&new)?.is_some() {
                place.directory.remove(&new)?;
            }
            let file = place.directory.create_file(&new)?;
            let written = fill(file, text).and_then(|locked| {
                place.directory.rename(&new, &place.name)?;
                Ok(locked)
            });
            if written.is_err() {
                let _ = place.directory.remove(&new);
            }
            Ok(written?)
        })
    }

    /// Removes the file, unless another file is at the path by now. If another process has the lock of the directory
    /// for a long time, the file stays, and the next service at this path replaces it.
    pub fn remove(&self, path: &Path) {
        let Ok(place) = Place::open(path) else { return };
        let _ = place.with_lock(|| {
            if self.is_in(&place) {
                place.directory.remove(&place.name)?;
            }
            Ok(())
        });
    }

    /// Closes, in a forked child, the child's copy of the descriptor. The parent keeps the lock, because a record lock
    /// belongs to one process. The child must not use or drop this value afterwards.
    #[inline]
    pub fn close_inherited(&self) {
        close_inherited(self.file.as_fd());
    }

    fn is_in(&self, place: &Place) -> bool {
        place.directory.file(&place.name).is_ok_and(|file| file == Some(self.status))
    }
}

/// What a candidate and the new program of an upgrade need.
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
impl LockedPidFile {
    /// Checks that [`LockedPidFile::write`] could write this file now, without writing anything. The process `owner`
    /// may have the file.
    pub fn check(path: &Path, owner: u32) -> Result<(), PidFileRefusal> {
        match Place::open(path)?.check() {
            Err(PidFileRefusal::Live(Some(pid))) if pid == owner => Ok(()),
            checked => checked,
        }
    }

    /// Takes over the file that the program before exec(3) has written. Locks it again, because the new program may
    /// have opened and closed the file before its call. Fails if another process has the lock by now.
    pub fn adopt(fd: OwnedFd) -> Result<LockedPidFile, CallError> {
        let file = File::from(fd);
        lock(&file)?;
        let status = Directory::status_of(file.as_fd())?;
        Ok(LockedPidFile { file, status })
    }

    /// Returns whether this file is at the path.
    pub fn is_at(&self, path: &Path) -> bool {
        Place::open(path).is_ok_and(|place| self.is_in(&place))
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Place {
    fn open(path: &Path) -> Result<Place, PidFileRefusal> {
        let name = path.file_name().ok_or(PidFileRefusal::NotAPidFile)?;
        let directory = Directory::open(path.parent().unwrap_or(Path::new("/")))?;
        Ok(Place { directory, name: name.to_owned() })
    }

    /// Runs a closure while no other service writes or removes a pid file of this name.
    fn with_lock<T>(&self, run: impl FnOnce() -> Result<T, PidFileRefusal>) -> Result<T, PidFileRefusal> {
        let name = dotted(&self.name, ".taskfork");
        for _ in 0..LOCK_ATTEMPTS {
            if let Some(_lock) = self.directory.lock(&name)? {
                return run();
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err(PidFileRefusal::Locked(name))
    }

    fn name_of_new(&self) -> OsString {
        dotted(&self.name, ".new")
    }

    /// Checks that there is no file at the path, or the pid file of a process that has exited.
    fn check(&self) -> Result<(), PidFileRefusal> {
        let Some(status) = self.directory.file(&self.name)? else { return Ok(()) };
        if !status.is_regular {
            return Err(PidFileRefusal::NotAPidFile);
        }
        let Some(mut file) = self.directory.open_file(&self.name)? else { return Ok(()) };
        // Another user may have replaced the file since then.
        if !Directory::status_of(file.as_fd())?.is_regular {
            return Err(PidFileRefusal::NotAPidFile);
        }
        if let Some(pid) = holder(&file)? {
            return Err(PidFileRefusal::Live(u32::try_from(pid).ok().filter(|&pid| pid > 0)));
        }
        if is_pid(&mut file)? { Ok(()) } else { Err(PidFileRefusal::NotAPidFile) }
    }
}

/// Locks a new file, writes the text, and lets everybody read the file.
fn fill(mut file: File, text: &str) -> Result<LockedPidFile, CallError> {
    // Before others can open the file, because a lock of theirs would be in the way.
    lock(&file)?;
    file.write_all(text.as_bytes()).map_err(|error| CallError::new("write", error))?;
    file.set_permissions(Permissions::from_mode(MODE)).map_err(|error| CallError::new("fchmod", error))?;
    let status = Directory::status_of(file.as_fd())?;
    Ok(LockedPidFile { file, status })
}

/// Returns whether the file contains a pid, or nothing. Other services may write a pid without a line break.
fn is_pid(file: &mut File) -> Result<bool, CallError> {
    /// Longer than any pid with its line break.
    const LONGEST: u64 = 32;
    let mut content = Vec::new();
    file.take(LONGEST).read_to_end(&mut content).map_err(|error| CallError::new("read", error))?;
    let content = content.trim_ascii();
    Ok(content.iter().all(u8::is_ascii_digit) && content.len() < LONGEST as usize)
}

/// Takes the lock of the whole file.
fn lock(file: &File) -> Result<(), CallError> {
    let mut wanted = whole_file(libc::F_WRLCK);
    // SAFETY: see the top of this file.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw mut wanted) } {
        -1 => Err(CallError::last("fcntl")),
        _ => Ok(()),
    }
}

/// Returns the pid of the process that has locked the file for writing. The pid is not positive if the process is in
/// another pid namespace or on another machine. Ignores read locks, because everybody who can read the file can have
/// one.
fn holder(file: &File) -> Result<Option<libc::pid_t>, CallError> {
    let mut found = whole_file(libc::F_RDLCK);
    // SAFETY: see the top of this file.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut found) } == -1 {
        return Err(CallError::last("fcntl"));
    }
    Ok((found.l_type != libc::F_UNLCK as libc::c_short).then_some(found.l_pid))
}

#[allow(clippy::unnecessary_cast, reason = "the types of the constants differ between systems")]
fn whole_file(kind: impl Into<libc::c_int>) -> libc::flock {
    // SAFETY: flock consists of integers, for which zero bytes are a valid value. A length of zero means the whole
    // file.
    let mut lock: libc::flock = unsafe { mem::zeroed() };
    lock.l_type = kind.into() as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock
}

/// Returns the name of a file that belongs to the file `name`.
fn dotted(name: &OsStr, end: &str) -> OsString {
    [OsStr::new("."), name, OsStr::new(end)].into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// A directory for one test, which is removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("taskfork-pid-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("a directory");
            Scratch(path)
        }

        fn files(&self) -> Vec<OsString> {
            fs::read_dir(&self.0).expect("a directory").map(|file| file.expect("a file").file_name()).collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_stale_file_is_replaced_by_a_new_one() {
        let scratch = Scratch::new("stale");
        let path = scratch.0.join("pid");
        for stale in ["", "1\n", " 71 ", "4194304"] {
            fs::write(&path, stale).expect("a file");
            // A process that was killed may have left both of them.
            fs::write(scratch.0.join(".pid.new"), "half").expect("a file");
            fs::write(scratch.0.join(".pid.taskfork"), "").expect("a file");
            let mut reader = File::open(&path).expect("a file");
            let written = LockedPidFile::write(&path, "72\n").expect(stale);
            assert_eq!(fs::read_to_string(&path).expect("a file"), "72\n");
            let mut old = String::new();
            reader.read_to_string(&mut old).expect("the old file");
            assert_eq!(old, stale, "a reader sees one whole file");
            assert_eq!(scratch.files(), ["pid"]);
            written.remove(&path);
            assert_eq!(scratch.files(), [""; 0]);
        }
    }

    #[test]
    fn other_files_are_refused_and_stay() {
        let scratch = Scratch::new("other");
        let path = scratch.0.join("pid");
        let refuse = || match LockedPidFile::write(&path, "72\n") {
            Err(PidFileRefusal::NotAPidFile) => assert_eq!(scratch.files().len(), 1),
            written => panic!("{written:?}"),
        };
        for text in ["root:x:0:0::/root:/bin/sh\n", "-1", "7 1", "123456789012345678901234567890123456789"] {
            fs::write(&path, text).expect("a file");
            refuse();
            assert_eq!(fs::read_to_string(&path).expect("a file"), text);
        }
        fs::remove_file(&path).expect("a file");
        mkfifo(&path, Mode::S_IRWXU).expect("a FIFO");
        refuse();
        fs::remove_file(&path).expect("a FIFO");
        fs::create_dir(&path).expect("a directory");
        refuse();
        fs::remove_dir(&path).expect("a directory");
        symlink("elsewhere", &path).expect("a link");
        refuse();
    }

    #[test]
    fn a_file_of_another_service_is_not_removed() {
        let scratch = Scratch::new("replaced");
        let path = scratch.0.join("pid");
        let written = LockedPidFile::write(&path, "72\n").expect("a file");
        fs::remove_file(&path).expect("a file");
        fs::write(&path, "73\n").expect("a file");
        written.remove(&path);
        assert_eq!(fs::read_to_string(&path).expect("a file"), "73\n");
    }

    #[test]
    fn a_directory_that_is_busy_or_missing_is_an_error() {
        let scratch = Scratch::new("busy");
        let path = scratch.0.join("pid");
        let directory = Directory::open(&scratch.0).expect("a directory");
        let lock = directory.lock(OsStr::new(".pid.taskfork")).expect("a lock").expect("nobody has it");
        match LockedPidFile::write(&path, "72\n") {
            Err(PidFileRefusal::Locked(name)) => assert_eq!(name, ".pid.taskfork"),
            written => panic!("{written:?}"),
        }
        drop(lock);
        match LockedPidFile::write(&scratch.0.join("none/pid"), "72\n") {
            Err(PidFileRefusal::Call(error)) => assert_eq!(error.source.kind(), ErrorKind::NotFound),
            written => panic!("{written:?}"),
        }
        assert_eq!(scratch.files(), [""; 0]);
    }

    /// A thread, as the owner of the directory, replaces the file and the new file by links to a secret again and
    /// again.
    #[test]
    fn links_in_the_place_of_the_file_are_not_followed() {
        const STARTS: usize = 2000;
        let scratch = Scratch::new("links");
        let [path, new, hook, secret] = ["pid", ".pid.new", "hook", "secret"].map(|name| scratch.0.join(name));
        fs::write(&secret, "1").expect("a file");
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("a mode");
        let has_ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !has_ended.load(Ordering::Relaxed) {
                    for place in [&new, &path] {
                        let _ = symlink(&secret, &hook);
                        let _ = fs::rename(&hook, place);
                    }
                    let _ = fs::remove_file(&path);
                }
            });
            for _ in 0..STARTS {
                if let Ok(written) = LockedPidFile::write(&path, "72\n") {
                    written.remove(&path);
                }
            }
            has_ended.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::read_to_string(&secret).expect("a file"), "1");
        assert_eq!(fs::metadata(&secret).expect("a file").permissions().mode() & 0o777, 0o600);
    }
}
