//! The name of this process on FreeBSD: the title that ps(1) and top(1) show instead of the arguments
//! (setproctitle(3)).
//!
//! # Safety
//!
//! setproctitle(3) gets a format with one string, and one string.

use std::ffi::CString;
use std::{io, mem, ptr};

use crate::sys::CallError;

/// The title of this process. Dropping this value restores the arguments of the process.
#[derive(Debug)]
pub(crate) struct ProcessName(());

impl ProcessName {
    /// Changes the title of this process.
    pub fn set(name: &str) -> Result<ProcessName, CallError> {
        let name = CString::new(name)
            .map_err(|_| CallError::new("setproctitle", io::Error::from(io::ErrorKind::InvalidInput)))?;
        // SAFETY: both strings have a null byte at their end. The format has one conversion, for the one argument. The
        // hyphen leaves out the name of the program.
        unsafe { libc::setproctitle(c"-%s".as_ptr(), name.as_ptr()) };
        Ok(ProcessName(()))
    }

    /// Keeps the title.
    pub fn keep(self) {
        mem::forget(self);
    }
}

impl Drop for ProcessName {
    fn drop(&mut self) {
        // SAFETY: setproctitle(3) with a null pointer restores the title of the start.
        unsafe { libc::setproctitle(ptr::null()) };
    }
}
