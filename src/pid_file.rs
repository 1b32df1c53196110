//! The pid file of a service, for scripts that send signals to the parent.

use std::path::{Path, PathBuf};
use std::{env, io, mem, process};

use crate::error::{Error, Result};
use crate::sys::{LockedPidFile, PidFileRefusal};
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(crate) use upgrade::{AdoptedPidFile, GivenPidFile, PassedPidFile};

const SETTING: &str = "pid_file";

/// The pid file of this process. Dropping it in the process that wrote it removes the file.
#[derive(Debug)]
pub(crate) struct PidFile {
    /// The absolute path. On Unix, its directory contains no symbolic link, so the path leads to the same file later.
    path: PathBuf,
    file: LockedPidFile,
    /// The pid of the process that wrote the file.
    pid: u32,
}

impl PidFile {
    /// Refuses a path that cannot be the path of a file.
    pub fn check_path(path: &Path) -> Result<()> {
        match path.file_name() {
            Some(_) => Ok(()),
            None => Err(Error::unfit(SETTING, format!("{:?} has no file name", path.display().to_string()))),
        }
    }

    /// Writes the pid of this process to the file. Requires the `SupervisorLock`, because a process does not see its
    /// own lock on the file.
    pub fn write(path: &Path) -> Result<PidFile> {
        let refused = |refusal| error_of(refusal, path);
        let pid = process::id();
        let absolute = resolve(path).map_err(|error| cannot_write(path, error))?;
        let file = LockedPidFile::write(&absolute, &format!("{pid}\n")).map_err(refused)?;
        Ok(PidFile { path: absolute, file, pid })
    }

    /// Closes the descriptor in a forked worker. Does not free memory, because freeing writes to pages that the kernel
    /// would first copy (copy-on-write).
    #[inline]
    pub fn release_in_child(self) {
        self.file.close_inherited();
        mem::forget(self);
    }
}

/// What an upgrade needs.
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
mod upgrade {
    use std::os::fd::{BorrowedFd, OwnedFd};

    use super::*;

    /// The pid file that the old program hands over.
    #[derive(Debug)]
    pub(crate) struct PassedPidFile<'a> {
        /// The descriptor must stay open in exec(3): the record lock is lost when any descriptor of the file is closed.
        pub fd: BorrowedFd<'a>,
        pub path: &'a Path,
    }

    /// The pid file that the new program has got.
    #[derive(Debug)]
    pub(crate) struct GivenPidFile {
        pub fd: OwnedFd,
        pub path: PathBuf,
    }

    /// The pid file of the new program.
    #[derive(Debug)]
    pub(crate) struct AdoptedPidFile {
        /// If the new file cannot be written, this is the old one.
        pub file: Option<PidFile>,
        /// The reason why the service does not have the pid file of its settings. Not an end of the service, because
        /// the old program is gone.
        pub error: Option<Error>,
    }

    impl PidFile {
        /// Checks in a candidate that the new program will be able to write the file. `parent` is the pid of the
        /// running parent, which may have the file. Changes nothing.
        pub fn check(path: &Path, parent: u32) -> Result<()> {
            let absolute = resolve(path).map_err(|error| cannot_write(path, error))?;
            LockedPidFile::check(&absolute, parent).map_err(|refusal| error_of(refusal, path))
        }

        pub fn passed(&self) -> PassedPidFile<'_> {
            PassedPidFile { fd: self.file.as_fd(), path: &self.path }
        }

        /// Takes over the pid file of the old program in the new one. `wanted` is the path in the settings of the new
        /// program. If it has changed, writes the new file and removes the old one. Does the same if another file is at
        /// the path by now, for example because a link in it leads to another directory.
        pub fn adopt(given: Option<GivenPidFile>, wanted: Option<&Path>) -> AdoptedPidFile {
            let mut adopted = match given.map(PidFile::take).transpose() {
                Ok(file) => AdoptedPidFile { file, error: None },
                Err(error) => AdoptedPidFile { file: None, error: Some(error) },
            };
            match wanted {
                // Removes the old file.
                None => adopted.file = None,
                Some(path) if adopted.file.as_ref().is_some_and(|file| file.is_at(path)) => {}
                Some(path) => match PidFile::write(path) {
                    Ok(new) => adopted = AdoptedPidFile { file: Some(new), error: None },
                    Err(error) => adopted.error = Some(error),
                },
            }
            adopted
        }

        fn take(GivenPidFile { fd, path }: GivenPidFile) -> Result<PidFile> {
            match LockedPidFile::adopt(fd) {
                Ok(file) => Ok(PidFile { path, file, pid: process::id() }),
                Err(error) => {
                    let problem = format!("{} belongs to another process by now", path.display());
                    Err(Error::unfit_for(SETTING, problem, error.source))
                }
            }
        }

        fn is_at(&self, path: &Path) -> bool {
            resolve(path).is_ok_and(|path| path == self.path && self.file.is_at(&path))
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.pid == process::id() {
            self.file.remove(&self.path);
        }
    }
}

/// Returns the absolute path of the file. The program may change its current directory later.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    if cfg!(not(unix)) {
        return std::path::absolute(path);
    }
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => Ok(parent.canonicalize()?.join(name)),
        None => Ok(env::current_dir()?.join(name)),
    }
}

fn error_of(refusal: PidFileRefusal, path: &Path) -> Error {
    let file = path.display();
    match refusal {
        PidFileRefusal::Live(Some(pid)) => {
            Error::unfit(SETTING, format!("{file} belongs to process {pid}, which runs"))
        }
        PidFileRefusal::Live(None) => {
            Error::unfit(SETTING, format!("{file} belongs to a process that runs, in another pid namespace or machine"))
        }
        PidFileRefusal::NotAPidFile => {
            Error::unfit(SETTING, format!("{file} exists and does not contain a pid, so it is not replaced"))
        }
        PidFileRefusal::Locked(lock) => {
            let lock = path.with_file_name(lock);
            Error::unfit(SETTING, format!("cannot write {file}: another process has the lock {}", lock.display()))
        }
        PidFileRefusal::Call(error) => cannot_write(path, error.source),
    }
}

fn cannot_write(path: &Path, source: io::Error) -> Error {
    Error::unfit_for(SETTING, format!("cannot write {}", path.display()), source)
}

#[cfg(all(test, target_os = "linux", not(taskfork_portable)))]
mod tests {
    use std::fs;

    use super::*;

    /// A directory for one test, which is removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = env::temp_dir().join(format!("taskfork-adopt-{name}-{}", process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("a directory");
            Scratch(path)
        }

        fn files(&self) -> Vec<String> {
            let files = fs::read_dir(&self.0).expect("a directory");
            files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Writes the file, as the old program does, and returns what the new program gets.
    fn hand_over(path: &Path) -> GivenPidFile {
        let file = PidFile::write(path).expect("a pid file");
        let PassedPidFile { fd, path } = file.passed();
        let given = GivenPidFile { fd: fd.try_clone_to_owned().expect("a descriptor"), path: path.to_owned() };
        // No destructor runs in exec(3).
        mem::forget(file);
        given
    }

    fn inode(path: &Path) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("a file"))
    }

    #[test]
    fn a_handed_over_file_is_kept_and_removed_at_the_end() {
        let scratch = Scratch::new("kept");
        let path = scratch.0.join("pid");
        let given = hand_over(&path);
        let before = inode(&path);
        let AdoptedPidFile { file, error } = PidFile::adopt(Some(given), Some(&path));
        assert!(file.is_some() && error.is_none(), "{error:?}");
        assert_eq!(inode(&path), before, "it is the same file");
        drop(file);
        assert_eq!(scratch.files(), [""; 0]);
    }

    #[test]
    fn a_changed_path_leaves_no_old_file() {
        let scratch = Scratch::new("moved");
        let [old, new] = ["old", "new"].map(|name| scratch.0.join(name));
        let moved = PidFile::adopt(Some(hand_over(&old)), Some(&new));
        assert!(moved.error.is_none(), "{moved:?}");
        assert_eq!(scratch.files(), ["new"]);
        drop(moved);
        assert_eq!(scratch.files(), [""; 0]);
        let gone = PidFile::adopt(Some(hand_over(&old)), None);
        assert!(gone.file.is_none() && gone.error.is_none(), "{gone:?}");
        assert_eq!(scratch.files(), [""; 0]);
        let first = PidFile::adopt(None, Some(&new));
        assert!(first.file.is_some() && first.error.is_none(), "{first:?}");
    }

    #[test]
    fn the_old_file_stays_if_the_new_one_is_refused() {
        let scratch = Scratch::new("refused");
        let old = scratch.0.join("old");
        let AdoptedPidFile { file, error } = PidFile::adopt(Some(hand_over(&old)), Some(&scratch.0.join("none/new")));
        assert_eq!(error.expect("a refusal").setting(), Some("pid_file"));
        assert_eq!(scratch.files(), ["old"]);
        drop(file);
        assert_eq!(scratch.files(), [""; 0]);
    }

    #[test]
    fn a_link_to_another_directory_moves_the_file() {
        let scratch = Scratch::new("link");
        let current = scratch.0.join("current");
        let [one, two] = ["1", "2"].map(|name| scratch.0.join(name));
        for release in [&one, &two] {
            fs::create_dir(release).expect("a directory");
        }
        std::os::unix::fs::symlink(&one, &current).expect("a link");
        let given = hand_over(&current.join("pid"));
        fs::remove_file(&current).expect("a link");
        std::os::unix::fs::symlink(&two, &current).expect("a link");
        let adopted = PidFile::adopt(Some(given), Some(&current.join("pid")));
        assert!(adopted.error.is_none(), "{adopted:?}");
        assert!(!one.join("pid").exists() && two.join("pid").exists());
    }

    #[test]
    fn a_candidate_checks_the_path_without_writing() {
        let scratch = Scratch::new("check");
        let path = scratch.0.join("pid");
        PidFile::check(&path, process::id()).expect("a free path");
        assert_eq!(scratch.files(), [""; 0]);
        fs::write(&path, "no pid").expect("a file");
        let error = PidFile::check(&path, process::id()).expect_err("a refusal");
        assert!(error.to_string().contains("does not contain a pid"), "{error}");
        let error = PidFile::check(&scratch.0.join("none/pid"), process::id()).expect_err("a refusal");
        assert_eq!(error.io_error().map(io::Error::kind), Some(io::ErrorKind::NotFound));
    }
}
