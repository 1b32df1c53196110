//! The file with the pid of the parent. The share mode of the open file shows whether the parent is alive: the system
//! closes the file when the process exits, however it exits.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::windows::fs::OpenOptionsExt;
use std::path::Path;

use windows_sys::Win32::Foundation::ERROR_SHARING_VIOLATION;
use windows_sys::Win32::Storage::FileSystem::{FILE_FLAG_OPEN_REPARSE_POINT, FILE_SHARE_READ};

use crate::sys::CallError;
use crate::sys::pid_file::PidFileRefusal;

/// A pid file that this process has written and keeps open. Others can read the file, but cannot write or delete it.
#[derive(Debug)]
pub(crate) struct LockedPidFile {
    /// `None` only while the file is removed.
    file: Option<File>,
}

impl LockedPidFile {
    /// Writes the file and keeps it open. Replaces the content of a pid file whose process has exited.
    pub fn write(path: &Path, text: &str) -> Result<LockedPidFile, PidFileRefusal> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).share_mode(FILE_SHARE_READ);
        let mut file = match options.custom_flags(FILE_FLAG_OPEN_REPARSE_POINT).open(path) {
            Err(error) if error.raw_os_error() == Some(ERROR_SHARING_VIOLATION as i32) => {
                let content = fs::read_to_string(path).unwrap_or_default();
                return Err(PidFileRefusal::Live(content.trim_ascii().parse().ok()));
            }
            opened => opened.map_err(|error| CallError::new("CreateFileW", error))?,
        };
        let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if !is_regular || !is_pid(&mut file)? {
            return Err(PidFileRefusal::NotAPidFile);
        }
        file.set_len(0).map_err(|error| CallError::new("SetFileInformationByHandle", error))?;
        file.rewind().map_err(|error| CallError::new("SetFilePointerEx", error))?;
        file.write_all(text.as_bytes()).map_err(|error| CallError::new("WriteFile", error))?;
        Ok(LockedPidFile { file: Some(file) })
    }

    /// Removes the file. It stays if another process has it open.
    pub fn remove(&mut self, path: &Path) {
        // An open file cannot be deleted, because it is not shared for that.
        if self.file.take().is_some() {
            let _ = fs::remove_file(path);
        }
    }

    /// Does nothing, because Windows has no forks.
    #[inline]
    pub fn close_inherited(&self) {}
}

/// Returns whether the file contains a pid, or nothing.
fn is_pid(file: &mut File) -> Result<bool, CallError> {
    /// Longer than any pid with its line break.
    const LONGEST: u64 = 32;
    let mut content = Vec::new();
    file.take(LONGEST).read_to_end(&mut content).map_err(|error| CallError::new("ReadFile", error))?;
    let content = content.trim_ascii();
    Ok(content.iter().all(u8::is_ascii_digit) && content.len() < LONGEST as usize)
}
