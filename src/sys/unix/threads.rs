//! Counts the threads of this process.
//!
//! # Safety
//! The system calls here write information about this process into memory of the right size, or change nothing.

use std::thread;
use std::time::{Duration, Instant};

use crate::sys::CallError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    One,
    /// The process has more than one thread. Contains the number of threads, if it is known.
    Several(Option<usize>),
}

impl From<usize> for Threads {
    fn from(count: usize) -> Threads {
        if count > 1 { Threads::Several(Some(count)) } else { Threads::One }
    }
}

/// Repeats the count until only one thread is left, because the systems still count a thread for a moment after it was
/// joined. Gives up after 10 ms if another thread is running. Waits longer if all other threads `are_exiting`: on a
/// busy machine, such a thread may not get a CPU soon.
fn count_with_retries(
    count: impl Fn() -> Result<Threads, CallError>,
    are_exiting: impl Fn() -> bool,
) -> Result<Threads, CallError> {
    const PATIENCE: Duration = Duration::from_millis(10);
    const PATIENCE_FOR_EXITING: Duration = Duration::from_millis(500);
    const PAUSE: Duration = Duration::from_micros(50);
    let mut begin = None;
    loop {
        let threads = count()?;
        if threads == Threads::One {
            return Ok(threads);
        }
        let waited = begin.get_or_insert_with(Instant::now).elapsed();
        if waited >= PATIENCE && (waited >= PATIENCE_FOR_EXITING || !are_exiting()) {
            return Ok(threads);
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(target_os = "linux")]
pub(crate) fn thread_count() -> Result<Threads, CallError> {
    linux::thread_count()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::{self, File};
    use std::io::{self, Read};

    use super::{CallError, Threads, count_with_retries};

    const TASKS: &str = "/proc/self/task";
    const STAT: &str = "/proc/self/stat";
    /// The kernel's flag `PF_EXITING`.
    const EXITING: u64 = 4;
    /// The index of the flags among the fields after the name. They are field 9 of a `stat` file (proc_pid_stat(5)).
    const FLAGS: usize = 6;
    /// The index of `num_threads` among the fields after the name. It is field 20 of a `stat` file.
    const NUM_THREADS: usize = 17;

    /// Counts the threads of this process. Returns [`Threads::One`] only if the kernel has stated in one call that
    /// there is no other thread: no list of threads can prove that, because a thread may start its successor and exit
    /// while the list is read.
    pub fn thread_count() -> Result<Threads, CallError> {
        match count_with_retries(count, only_exiting_are_left)? {
            // unshare(2) does not return the number of threads.
            Threads::Several(None) => Ok(Threads::Several(num_threads().ok().filter(|&count| count > 1))),
            threads => Ok(threads),
        }
    }

    /// Asks unshare(2), because it is fast and this function runs before every fork. If unshare(2) is forbidden, for
    /// example by seccomp, reads the kernel's own count of threads.
    fn count() -> Result<Threads, CallError> {
        probe_unshare().or_else(|refused| num_threads().map(Threads::from).map_err(|_| refused))
    }

    /// Detects other threads with unshare(2). With the flag `CLONE_SIGHAND`, unshare(2) fails with `EINVAL` if there is
    /// another thread.
    fn probe_unshare() -> Result<Threads, CallError> {
        // SAFETY: unshare(2) with CLONE_SIGHAND has no effect if the process has one thread, and fails if it has more.
        if unsafe { libc::unshare(libc::CLONE_SIGHAND) } == 0 {
            return Ok(Threads::One);
        }
        match CallError::last("unshare") {
            refused if refused.source.raw_os_error() == Some(libc::EINVAL) => Ok(Threads::Several(None)),
            refused => Err(refused),
        }
    }

    /// Returns the kernel's count of this process's threads. A thread is counted from before it runs until after it has
    /// exited, so the count is 1 only if the calling thread is alone. Reads into the stack, because the parent calls
    /// this between two forks: each page of the heap that it writes is copied for each worker (copy-on-write).
    fn num_threads() -> io::Result<usize> {
        let mut content = [0; 1024];
        let len = File::open(STAT)?.read(&mut content)?;
        let count = field(&content[..len], NUM_THREADS).ok_or(io::ErrorKind::InvalidData)?;
        Ok(count as usize)
    }

    /// Returns whether all threads but one are exiting. Such a thread runs no more code of the program, and will be
    /// gone soon. Threads that start their successors may be missed, so the result only justifies a longer wait.
    fn only_exiting_are_left() -> bool {
        let Ok(tasks) = fs::read_dir(TASKS) else { return false };
        let stats = tasks.flatten().map(|task| fs::read(task.path().join("stat")));
        stats.flatten().filter(|stat| field(stat, FLAGS).is_none_or(|flags| flags & EXITING == 0)).count() <= 1
    }

    /// Returns a number from the content of a `stat` file (proc_pid_stat(5)). The name of the thread is in parentheses,
    /// and may itself contain parentheses or bytes that are not UTF-8. So the fields after the name begin at the last
    /// closing parenthesis.
    fn field(stat: &[u8], index: usize) -> Option<u64> {
        let name_end = stat.iter().rposition(|&byte| byte == b')')?;
        let fields = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
        fields.split_whitespace().nth(index)?.parse().ok()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn stat_fields_follow_a_name_with_parentheses() {
            let stat = b"71 (a) \xff (c) R 1 71 71 0 -1 4194372 55 0 0 0 1 2 3 4 20 0 7 0 99";
            assert_eq!(field(stat, FLAGS), Some(4_194_372));
            assert_eq!(field(stat, NUM_THREADS), Some(7));
            assert_eq!(field(b"nonsense", FLAGS), None);
        }

        #[test]
        fn both_ways_detect_other_threads() {
            assert_eq!(probe_unshare().expect("unshare"), Threads::Several(None));
            assert!(num_threads().expect("/proc") > 1);
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn thread_count() -> Result<Threads, CallError> {
    count_with_retries(count, || false)
}

#[cfg(target_os = "macos")]
fn count() -> Result<Threads, CallError> {
    use std::mem;

    // SAFETY: all-zero bytes are a valid proc_taskinfo, because it consists of integers.
    let mut info: libc::proc_taskinfo = unsafe { mem::zeroed() };
    let size = mem::size_of_val(&info) as libc::c_int;
    let pid = std::process::id() as libc::c_int;
    let info_ptr = (&raw mut info).cast();
    // SAFETY: proc_pidinfo writes at most `size` bytes, which is the size of `info`.
    let written = unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTASKINFO, 0, info_ptr, size) };
    if written < size {
        return Err(CallError::last("proc_pidinfo"));
    }
    // XNU copies its counter of threads, under the lock of the task.
    Ok(Threads::from(info.pti_threadnum as usize))
}

#[cfg(target_os = "freebsd")]
fn count() -> Result<Threads, CallError> {
    use std::{mem, ptr};

    // SAFETY: all-zero bytes are a valid kinfo_proc, because it consists of integers, pointers and arrays of them.
    let mut info: libc::kinfo_proc = unsafe { mem::zeroed() };
    let mut size = mem::size_of_val(&info);
    let name = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, std::process::id() as libc::c_int];
    // SAFETY: sysctl(3) reads the four integers of `name` and writes at most `size` bytes, which is the size of `info`.
    let refused = unsafe {
        libc::sysctl(name.as_ptr(), name.len() as libc::c_uint, (&raw mut info).cast(), &raw mut size, ptr::null(), 0)
    };
    if refused != 0 {
        return Err(CallError::last("sysctl"));
    }
    // FreeBSD copies its counter of threads, under the lock of the process.
    Ok(Threads::from(info.ki_numthreads as usize))
}
