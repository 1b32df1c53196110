//! The number of processes that the system allows.
//!
//! # Safety
//! sysctlbyname(3) writes an integer into memory of the right size.

/// Returns the number of processes that the system allows for all users together. Ignores the limit of the current user
/// (`RLIMIT_NPROC`), because that limit depends on privileges and on the user's other processes. fork(2) enforces
/// `RLIMIT_NPROC`.
#[cfg(target_os = "linux")]
pub(crate) fn process_limit() -> usize {
    /// The kernel's `PID_MAX_LIMIT`.
    const MOST: usize = 1 << 22;
    ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok())
        .fold(MOST, usize::min)
}

#[cfg(any(target_os = "macos", target_os = "freebsd"))]
pub(crate) fn process_limit() -> usize {
    use std::{mem, ptr};

    /// `PID_MAX`, which is the same on macOS and FreeBSD.
    const MOST: usize = 99_999;
    let mut limit: libc::c_int = 0;
    let mut size = mem::size_of_val(&limit);
    let name = c"kern.maxproc".as_ptr();
    // SAFETY: sysctlbyname(3) reads a C string and writes at most `size` bytes, which is the size of `limit`.
    let refused = unsafe { libc::sysctlbyname(name, (&raw mut limit).cast(), &raw mut size, ptr::null_mut(), 0) };
    if refused == 0 && limit > 0 { (limit as usize).min(MOST) } else { MOST }
}
