//! The pid file of a service, for scripts that send signals to the parent.

use std::path::{Path, PathBuf};
use std::{env, io, mem, process};

use crate::error::{Error, Result};
use crate::sys::{LockedPidFile, PidFileRefusal};

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
