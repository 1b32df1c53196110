//! The private memory of a process on Linux, which /proc shows (proc_pid_status(5), proc_pid_smaps(5)).
//!
//! # Safety
//! Only the tests have unsafe code: waitid(2) writes a status into memory of the right size.

use std::fs;
use std::io::{Error, ErrorKind};

use crate::sys::CallError;

/// Returns at most how many bytes of private memory this process has: its anonymous memory, including pages that it
/// still shares with the process that forked it, and its swapped memory. Returns 0 for a process that has exited but
/// was not reaped.
///
/// Unlike [`private_memory`], the kernel only reads counters for this. On systems with many CPUs, these counters can be
/// off by some MiB.
pub(crate) fn private_memory_bound(pid: u32) -> Result<u64, CallError> {
    Ok(anonymous_part(&read(pid, "status")?))
}

fn anonymous_part(status: &str) -> u64 {
    // A process that has exited has no memory, and then its status has no lines about memory.
    bytes_after(status, "RssAnon:").unwrap_or(0) + bytes_after(status, "VmSwap:").unwrap_or(0)
}

/// Returns how many bytes of private memory this process has: the anonymous memory that it does not share, and its
/// swapped memory. Of swapped memory that it shares with other processes, counts its share. Returns 0 for a process
/// that has exited but was not reaped.
///
/// Memory of files that only this process maps is private too, but the kernel can drop it, so it does not count. Most
/// of it is in `Private_Clean`. Dirty pages of a shared mapping count at most as much as the process has anonymous
/// memory.
///
/// The kernel walks through all pages of the process, which takes about 5 ms for 512 MiB. It waits while the
/// process changes its mappings, so it blocks if a file system does not return from mmap(2). This call needs the right
/// to trace the process (ptrace(2)), because the list of mappings is secret.
pub(crate) fn private_memory(pid: u32) -> Result<u64, CallError> {
    let rollup = match read(pid, "smaps_rollup") {
        Err(error) if error.source.raw_os_error() == Some(libc::ESRCH) => return Ok(0),
        rollup => rollup?,
    };
    private_part(&rollup).ok_or_else(|| CallError::new("read", Error::from(ErrorKind::InvalidData)))
}

fn private_part(rollup: &str) -> Option<u64> {
    let dirty = bytes_after(rollup, "Private_Dirty:")?;
    let anonymous = bytes_after(rollup, "Anonymous:")?;
    // Without support for swap, the kernel has no such line.
    let swapped = bytes_after(rollup, "SwapPss:").unwrap_or(0);
    Some(dirty.min(anonymous) + swapped)
}

fn read(pid: u32, file: &str) -> Result<String, CallError> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|error| CallError::new("open", error))
}

/// Returns the number in the line with this key, whose unit is kB in all these files.
fn bytes_after(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn memory_that_a_process_fills_is_private() {
        let own = process::id();
        let before = private_memory(own).expect("/proc");
        let filled = vec![1_u8; 64 * MIB];
        let added = private_memory(own).expect("/proc").saturating_sub(before);
        // Other tests allocate and free memory at the same time.
        assert!((48 * MIB..96 * MIB).contains(&(added as usize)), "{added} bytes");
        assert!(private_memory_bound(own).expect("/proc") as usize >= 60 * MIB);
        drop(filled);
    }

    #[test]
    fn private_memory_is_anonymous_dirty_or_swapped() {
        let rollup = |dirty: u64, anonymous: u64, swap: u64| {
            format!(
                "Rss: 9 kB\nPrivate_Clean: 7 kB\nPrivate_Dirty: {dirty} kB\nAnonymous: {anonymous} kB\nSwapPss: {swap} kB\n"
            )
        };
        assert_eq!(private_part(&rollup(100, 500, 0)), Some(100 << 10), "400 kB are shared with the parent");
        assert_eq!(private_part(&rollup(500, 100, 0)), Some(100 << 10), "400 kB are pages of a file");
        assert_eq!(private_part(&rollup(100, 100, 30)), Some(130 << 10));
        assert_eq!(private_part("Private_Dirty: 1 kB\nAnonymous: 1 kB\n"), Some(1 << 10));
        assert_eq!(private_part("nothing"), None);
    }

    #[test]
    fn the_bound_contains_resident_and_swapped_memory() {
        let status = "Name:\tVmSwap: 9 kB\nVmRSS:\t     900 kB\nRssAnon:\t     100 kB\nVmSwap:\t      30 kB\n";
        assert_eq!(anonymous_part(status), 130 << 10);
        assert_eq!(anonymous_part("Name:\tcat\nState:\tZ (zombie)\n"), 0);
    }

    #[test]
    fn a_process_that_was_not_reaped_has_no_private_memory() {
        let mut child = process::Command::new("true").spawn().expect("a program of POSIX");
        // SAFETY: all-zero bytes are a valid siginfo_t, because it consists of integers and pointers.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: waitid(2) writes one siginfo_t. With WNOWAIT it reaps nothing.
        unsafe { libc::waitid(libc::P_PID, child.id(), &raw mut info, libc::WEXITED | libc::WNOWAIT) };
        assert_eq!(private_memory(child.id()).expect("no error"), 0);
        assert_eq!(private_memory_bound(child.id()).expect("no error"), 0);
        child.wait().expect("its status");
        assert!(private_memory(child.id()).is_err());
    }
}
