//! A directory that is opened once, and the files in it.
//!
//! Another user may own the directory, and so can rename it and replace its files at any time. The functions here
//! resolve the path of the directory once. After that they use the descriptor of the directory, or of the file.
//!
//! # Safety
//! flock(2) and fchmod(2) take a descriptor and integers, and the descriptors are open for as long as they are
//! borrowed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, geteuid, unlinkat};

use crate::sys::CallError;

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory(OwnedFd);

/// A file in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStatus {
    /// Device number and inode number. Together they identify the file for as long as the file exists.
    pub id: (u64, u64),
    pub is_socket: bool,
    pub is_regular: bool,
}

/// An open file that can be neither read nor written: it stands for the file, whatever is at the file's path by now.
#[derive(Debug)]
pub(crate) struct FileHandle {
    fd: OwnedFd,
    path: PathBuf,
}

/// An exclusive lock, which is a file with a lock of flock(2). Dropping this value removes the file. The kernel
/// releases the lock if this process is killed. Then the file stays, and the next process that takes the lock removes
/// it.
#[derive(Debug)]
pub(crate) struct FileLock<'a> {
    directory: &'a Directory,
    name: OsString,
    _file: OwnedFd,
}

impl Directory {
    pub fn open(path: &Path) -> Result<Directory, CallError> {
        // On Linux, opening a directory for reading would require the permission to list it.
        #[cfg(target_os = "linux")]
        let flags = OFlag::O_PATH;
        #[cfg(not(target_os = "linux"))]
        let flags = OFlag::O_RDONLY;
        let flags = flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat(AT_FDCWD, path, flags, Mode::empty()).map(Directory).map_err(refused("open"))
    }

    /// Returns the file with this name, or `None` if there is none. Does not follow a symbolic link.
    pub fn file(&self, name: &OsStr) -> Result<Option<FileStatus>, CallError> {
        match fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(None),
            found => found.map(|stat| Some(stat.into())).map_err(refused("fstatat")),
        }
    }

    /// Opens the file with this name for reading, without following a symbolic link. Does not wait for the writer of a
    /// FIFO. Returns `None` if there is no file.
    pub fn open_file(&self, name: &OsStr) -> Result<Option<File>, CallError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        match openat(&self.0, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => Ok(None),
            opened => opened.map(|fd| Some(fd.into())).map_err(refused("openat")),
        }
    }

    /// Creates a file that only this user and root can open. Fails if there is a file with this name.
    pub fn create_file(&self, name: &OsStr) -> Result<File, CallError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        openat(&self.0, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from).map_err(refused("openat"))
    }

    /// Renames a file in this directory, and replaces the file that has the new name, or the symbolic link.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), CallError> {
        renameat(&self.0, from, &self.0, to).map_err(refused("renameat"))
    }

    pub fn remove(&self, name: &OsStr) -> Result<(), CallError> {
        unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir).map_err(refused("unlinkat"))
    }

    /// Opens the file with this name, without following a symbolic link. Returns `None` if this system has no such
    /// handles: they take Linux with a mounted `/proc`.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub fn handle(&self, name: &OsStr) -> Result<Option<FileHandle>, CallError> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.0, name, flags, Mode::empty()).map_err(refused("openat"))?;
        // The kernel leads this path to the open file itself, so that nobody else can change where it leads
        // (proc_pid_fd(5)).
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok(path.symlink_metadata().is_ok().then_some(FileHandle { fd, path }))
    }

    #[cfg(not(all(target_os = "linux", not(taskfork_portable))))]
    pub fn handle(&self, _: &OsStr) -> Result<Option<FileHandle>, CallError> {
        Ok(None)
    }

    /// Returns whether only root and the user of this process can replace files of this user in the directory. (The
    /// sticky bit lets a file's owner and the directory's owner replace it.) The members of the directory's group count
    /// as this user, unless this user is root.
    pub fn is_trusted(&self) -> Result<bool, CallError> {
        let stat = fstat(&self.0).map_err(refused("fstat"))?;
        let user = geteuid();
        let is_owner_trusted = stat.st_uid == user.as_raw() || stat.st_uid == 0;
        let mode = Mode::from_bits_truncate(stat.st_mode);
        let strangers = if user.is_root() { Mode::S_IWGRP | Mode::S_IWOTH } else { Mode::S_IWOTH };
        Ok(is_owner_trusted && (mode.contains(Mode::S_ISVTX) || !mode.intersects(strangers)))
    }

    /// Returns the status of a file that is open.
    pub fn status_of(fd: BorrowedFd<'_>) -> Result<FileStatus, CallError> {
        fstat(fd).map(FileStatus::from).map_err(refused("fstat"))
    }

    /// Changes the owner of a file. The directory must be [trusted](Directory::is_trusted).
    pub fn set_owner(&self, name: &OsStr, user: Option<u32>, group: Option<u32>) -> Result<(), CallError> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(&self.0, name, user.map(Uid::from_raw), group.map(Gid::from_raw), flags).map_err(refused("fchownat"))
    }

    /// Changes the mode of a file. The directory must be [trusted](Directory::is_trusted), and the file no symbolic
    /// link.
    pub fn set_mode(&self, name: &OsStr, mode: u32) -> Result<(), CallError> {
        fchmodat(&self.0, name, mode_of(mode), FchmodatFlags::FollowSymlink).map_err(refused("fchmodat"))
    }

    /// Takes the lock with this name, which is the name of a file in this directory. Returns `None` if another process
    /// has the lock. Also returns `None` if this process may not open the file: then another user's process has the
    /// lock, or has been killed while it had the lock.
    pub fn lock(&self, name: &OsStr) -> Result<Option<FileLock<'_>>, CallError> {
        let Some(file) = self.lock_file(name)? else { return Ok(None) };
        if !FileStatus::from(fstat(&file).map_err(refused("fstat"))?).is_regular {
            return Err(CallError::new("openat", Errno::EEXIST));
        }
        // SAFETY: see the top of this file.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return match Errno::last() {
                Errno::EWOULDBLOCK | Errno::EINTR => Ok(None),
                error => Err(CallError::new("flock", error)),
            };
        }
        // The process that had the lock may have removed the file before it released the lock. Then another process may
        // lock a new file at the same path.
        let locked = FileStatus::from(fstat(&file).map_err(refused("fstat"))?);
        let is_current = self.file(name)? == Some(locked);
        Ok(is_current.then(|| FileLock { directory: self, name: name.to_owned(), _file: file }))
    }

    /// Opens the file of a lock, and creates it if there is none. Opening with O_CREAT alone is not enough, because
    /// `fs.protected_regular` forbids it for another user's file.
    fn lock_file(&self, name: &OsStr) -> Result<Option<OwnedFd>, CallError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let opened = match openat(&self.0, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => {
                let new = flags | OFlag::O_CREAT | OFlag::O_EXCL;
                match openat(&self.0, name, new, Mode::S_IRUSR | Mode::S_IWUSR) {
                    Err(Errno::EEXIST) => return Ok(None),
                    created => created,
                }
            }
            Err(Errno::EACCES) => return Ok(None),
            opened => opened,
        };
        opened.map(Some).map_err(refused("openat"))
    }
}

impl FileHandle {
    /// Returns a path that leads to this file, whatever is at the file's own path by now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn status(&self) -> Result<FileStatus, CallError> {
        fstat(&self.fd).map(FileStatus::from).map_err(refused("fstat"))
    }

    pub fn set_owner(&self, user: Option<u32>, group: Option<u32>) -> Result<(), CallError> {
        std::os::unix::fs::chown(&self.path, user, group).map_err(|error| CallError::new("chown", error))
    }

    pub fn set_mode(&self, mode: u32) -> Result<(), CallError> {
        fchmodat(AT_FDCWD, &self.path, mode_of(mode), FchmodatFlags::FollowSymlink).map_err(refused("chmod"))
    }
}

impl Drop for FileLock<'_> {
    /// Removes the file before the lock is released, because another process may take the lock right after that.
    fn drop(&mut self) {
        let _ = self.directory.remove(&self.name);
    }
}

impl From<FileStat> for FileStatus {
    #[allow(clippy::unnecessary_cast, reason = "the types of the fields differ between systems")]
    fn from(stat: FileStat) -> FileStatus {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        FileStatus {
            id: (stat.st_dev as u64, stat.st_ino as u64),
            is_socket: kind == SFlag::S_IFSOCK,
            is_regular: kind == SFlag::S_IFREG,
        }
    }
}

/// Limits the mode of the file that bind(2) will create for this Unix socket. Does nothing on systems other than Linux.
pub(crate) fn limit_future_mode(socket: BorrowedFd<'_>, mode: u32) -> Result<(), CallError> {
    // On Linux, bind(2) gives the file the mode of the unbound socket, without the bits of the umask.
    // SAFETY: see the top of this file.
    if cfg!(target_os = "linux") && unsafe { libc::fchmod(socket.as_raw_fd(), mode_of(mode).bits()) } != 0 {
        return Err(CallError::last("fchmod"));
    }
    Ok(())
}

fn mode_of(mode: u32) -> Mode {
    #[allow(clippy::unnecessary_cast, reason = "mode_t differs between systems")]
    Mode::from_bits_truncate(mode as libc::mode_t)
}

fn refused(call: &'static str) -> impl Fn(Errno) -> CallError {
    move |error| CallError::new(call, error)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_lock_is_exclusive_and_leaves_no_file() {
        let path = std::env::temp_dir().join(format!("taskfork-lock-{}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        let directories = [(); 2].map(|()| Directory::open(&path).expect("a directory"));
        let name = OsStr::new(".lock");
        let lock = directories[0].lock(name).expect("a lock").expect("nobody has it");
        assert!(directories[1].lock(name).expect("a lock file").is_none());
        // A process that was killed leaves the file.
        let file = directories[1].file(name).expect("a status").expect("the file of the lock");
        assert!(file.is_regular);
        drop(lock);
        assert_eq!(directories[1].file(name).expect("a status"), None);
        fs::write(path.join(".lock"), "").expect("a file");
        drop(directories[1].lock(name).expect("a lock").expect("nobody has it"));
        std::os::unix::fs::symlink("elsewhere", path.join(".lock")).expect("a link");
        directories[0].lock(name).expect_err("a link is not followed");
        fs::remove_dir_all(&path).expect("the directory");
    }

    #[test]
    fn a_directory_of_another_user_is_not_trusted() {
        let path = std::env::temp_dir().join(format!("taskfork-trust-{}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        let directory = Directory::open(&path).expect("a directory");
        for (mode, is_trusted) in [(0o755, true), (0o777, false), (0o1777, true)] {
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("a mode");
            assert_eq!(directory.is_trusted().expect("a status"), is_trusted, "{mode:o}");
        }
        if geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).expect("a user");
            assert!(!directory.is_trusted().expect("a status"));
        }
        fs::remove_dir(&path).expect("the directory");
    }
}
