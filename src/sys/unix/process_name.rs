//! The name of this process on Linux, which ps(1) and top(1) show: the name of its main thread (`PR_SET_NAME`,
//! prctl(2)).
//!
//! # Safety
//!
//! The buffers for prctl(2) have the length of a name, and a null byte at their end.

use std::io::{Read, Write};
use std::{fs::File, mem};

use nix::unistd::{getpid, gettid};

use crate::sys::CallError;

/// The length of the kernel's buffer for a name, including a null byte (`TASK_COMM_LEN`).
const LEN: usize = 16;

/// The name of the main thread. Each thread of the process may change it (proc(5)).
const FILE: &str = "/proc/self/comm";

/// The name that this process had before [`ProcessName::set`]. Dropping this value restores that name.
#[derive(Debug)]
pub(crate) struct ProcessName {
    previous: [u8; LEN],
}

impl ProcessName {
    /// Changes the name of this process. The system keeps only the last 15 bytes of a longer name.
    pub fn set(name: &str) -> Result<ProcessName, CallError> {
        let end = end_of(name, LEN - 1);
        let mut new = [0; LEN];
        new[..end.len()].copy_from_slice(end.as_bytes());
        let previous = read()?;
        write(new)?;
        Ok(ProcessName { previous })
    }

    /// Keeps the name.
    pub fn keep(self) {
        mem::forget(self);
    }
}

impl Drop for ProcessName {
    fn drop(&mut self) {
        // The process also works under the other name.
        let _ = write(self.previous);
    }
}

/// Returns the end of `name`, at most `len` bytes of it. Cuts no character into pieces.
fn end_of(name: &str, len: usize) -> &str {
    let start = (name.len().saturating_sub(len)..name.len()).find(|&at| name.is_char_boundary(at));
    &name[start.unwrap_or(name.len())..]
}

fn read() -> Result<[u8; LEN], CallError> {
    let mut name = [0; LEN];
    if is_main_thread() {
        // SAFETY: prctl(2) with PR_GET_NAME writes at most 16 bytes, for which `name` has room.
        let result = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        return if result == 0 { Ok(name) } else { Err(CallError::last("prctl")) };
    }
    let refused = |error| CallError::new("read", error);
    // A line feed follows the name, and may take the place of the null byte.
    let read = File::open(FILE).map_err(refused)?.read(&mut name).map_err(refused)?;
    name[read.saturating_sub(1)..].fill(0);
    Ok(name)
}

fn write(name: [u8; LEN]) -> Result<(), CallError> {
    if is_main_thread() {
        // SAFETY: prctl(2) with PR_SET_NAME reads up to a null byte, and the last byte of `name` is one.
        let result = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
        return if result == 0 { Ok(()) } else { Err(CallError::last("prctl")) };
    }
    let refused = |error| CallError::new("write", error);
    let len = name.iter().position(|&byte| byte == 0).unwrap_or(LEN);
    File::options().write(true).open(FILE).map_err(refused)?.write_all(&name[..len]).map_err(refused)
}

/// Returns whether prctl(2) reaches the main thread, because it concerns only the calling thread.
fn is_main_thread() -> bool {
    gettid() == getpid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_beginning_at_a_character() {
        assert_eq!(end_of("web/3", 15), "web/3");
        assert_eq!(end_of("a-very-long-name/12", 15), "ry-long-name/12");
        assert_eq!(end_of("größe/12", 7), "ße/12", "ö has two bytes, and only one of them would fit");
        assert_eq!(end_of("", 15), "");
    }

    #[test]
    fn dropping_the_name_restores_the_previous_one() {
        let name = || std::fs::read_to_string(FILE).expect("a name");
        let before = name();
        let set = ProcessName::set("a-very-long-name/12").expect("a name");
        assert_eq!(name(), "ry-long-name/12\n");
        drop(set);
        assert_eq!(name(), before);
    }
}
