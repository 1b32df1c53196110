//! Allocates memory in the parent, and reads figures about a process's memory from /proc.

use std::{fs, io, ptr};

/// Bytes in a page that is not huge.
const PAGE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Pages of 4 KiB.
    Plain,
    /// Pages of 2 MiB.
    Huge,
}

/// Maps `mebibytes` MiB of memory and writes to every page. The memory stays mapped until the process ends.
pub fn touch(mebibytes: usize, pages: Pages) -> io::Result<()> {
    let len = mebibytes << 20;
    if len == 0 {
        return Ok(());
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: mmap(2) without an address replaces no other mapping.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let advice = match pages {
        Pages::Plain => libc::MADV_NOHUGEPAGE,
        Pages::Huge => libc::MADV_HUGEPAGE,
    };
    // SAFETY: madvise(2) gets the range that was just mapped, and these two kinds of advice do not change its contents.
    if unsafe { libc::madvise(start, len, advice) } == -1 {
        return Err(io::Error::last_os_error());
    }
    for at in (0..len).step_by(PAGE) {
        // SAFETY: the address is inside the mapping, to which nothing else refers. (The write is volatile, because the
        // compiler may remove a plain write that nothing reads.)
        unsafe { start.cast::<u8>().add(at).write_volatile(1) };
    }
    Ok(())
}

/// Returns the reason why huge pages are not available, or `None` if they are.
pub fn why_no_huge_pages() -> Option<String> {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    match fs::read_to_string(path) {
        Ok(enabled) if enabled.contains("[always]") || enabled.contains("[madvise]") => None,
        Ok(enabled) => Some(format!("{path} contains {}", enabled.trim())),
        Err(error) => Some(format!("{path}: {error}")),
    }
}

/// Returns the memory in KiB that would be freed if only this process ended.
pub fn private(pid: u64) -> io::Result<u64> {
    Ok(field(pid, "smaps_rollup", "Private_Clean:")? + field(pid, "smaps_rollup", "Private_Dirty:")?)
}

/// Returns the size of the process's page tables in KiB. Every process has its own.
pub fn page_tables(pid: u64) -> io::Result<u64> {
    field(pid, "status", "VmPTE:")
}

/// Returns how many KiB of the process's memory are in huge pages.
pub fn huge(pid: u64) -> io::Result<u64> {
    field(pid, "smaps_rollup", "AnonHugePages:")
}

/// Returns the system's available memory in MiB.
pub fn available() -> io::Result<usize> {
    let path = "/proc/meminfo";
    Ok(find(&fs::read_to_string(path)?, "MemAvailable:").ok_or_else(|| missing(path, "MemAvailable:"))? as usize / 1024)
}

fn field(pid: u64, file: &str, key: &str) -> io::Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    find(&fs::read_to_string(&path)?, key).ok_or_else(|| missing(&path, key))
}

fn find(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_whitespace().next()?.parse().ok()
}

fn missing(path: &str, key: &str) -> io::Error {
    io::Error::other(format!("no {key} in {path}"))
}
