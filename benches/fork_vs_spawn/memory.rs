//! Memory that a parent has, and what the kernel says about that of a process.

use std::{fs, io, ptr};

/// In bytes: of a page that is not huge.
const PAGE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Of 4 KiB.
    Plain,
    /// Of 2 MiB.
    Huge,
}

/// Maps so much, writes to every page of it, and never gives it back.
pub fn touch(mebibytes: usize, pages: Pages) -> io::Result<()> {
    let len = mebibytes << 20;
    if len == 0 {
        return Ok(());
    }
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: without an address, it takes the place of nothing.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let advice = match pages {
        Pages::Plain => libc::MADV_NOHUGEPAGE,
        Pages::Huge => libc::MADV_HUGEPAGE,
    };
    // SAFETY: the range is the one that was just mapped, and the advice changes nothing that is in it.
    if unsafe { libc::madvise(start, len, advice) } == -1 {
        return Err(io::Error::last_os_error());
    }
    for at in (0..len).step_by(PAGE) {
        // SAFETY: it is inside of what was mapped, and nobody else knows of it. Volatile, because nobody reads it.
        unsafe { start.cast::<u8>().add(at).write_volatile(1) };
    }
    Ok(())
}

/// What the system allows, if that is anything but huge pages.
pub fn why_no_huge_pages() -> Option<String> {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    match fs::read_to_string(path) {
        Ok(enabled) if enabled.contains("[always]") || enabled.contains("[madvise]") => None,
        Ok(enabled) => Some(format!("{path} says {}", enabled.trim())),
        Err(error) => Some(format!("{path}: {error}")),
    }
}

/// In KiB: what would be free again if it alone ended.
pub fn private(pid: u64) -> io::Result<u64> {
    Ok(field(pid, "smaps_rollup", "Private_Clean:")? + field(pid, "smaps_rollup", "Private_Dirty:")?)
}

/// In KiB: what the kernel needs to know where its pages are. Every process has its own.
pub fn page_tables(pid: u64) -> io::Result<u64> {
    field(pid, "status", "VmPTE:")
}

/// In KiB: how much of it is in huge pages.
pub fn huge(pid: u64) -> io::Result<u64> {
    field(pid, "smaps_rollup", "AnonHugePages:")
}

/// In MiB.
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
