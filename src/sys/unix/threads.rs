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

/// Repeats the count for up to 10 ms, until only one thread is left. Some systems still count a thread for a moment
/// after it was joined.
fn count_with_retries(count: impl Fn() -> Result<Threads, CallError>) -> Result<Threads, CallError> {
    const PATIENCE: Duration = Duration::from_millis(10);
    let until = Instant::now() + PATIENCE;
    loop {
        match count()? {
            Threads::Several(_) if Instant::now() < until => thread::yield_now(),
            threads => return Ok(threads),
        }
    }
}

#[cfg(target_os = "linux")]
pub(crate) fn thread_count() -> Result<Threads, CallError> {
    linux::thread_count()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{fs, io};

    use super::{CallError, Threads, count_with_retries};

    const TASKS: &str = "/proc/self/task";
    /// The kernel's flag `PF_EXITING`. Field 9 of a thread's `stat` file (proc_pid_stat(5)) contains the flags of the
    /// thread.
    const EXITING: u64 = 4;

    /// Counts the threads of this process. Tries unshare(2) first, because this function runs before every fork and
    /// unshare(2) is fast.
    ///
    /// If unshare(2) finds other threads, lists the threads in `/proc/self/task` to count them. The list is needed
    /// because unshare(2) does not return the number of threads, and also detects threads that are exiting. If
    /// unshare(2) fails, for example because seccomp forbids it, this function lists the threads too.
    pub fn thread_count() -> Result<Threads, CallError> {
        match probe_unshare() {
            Ok(Threads::One) => Ok(Threads::One),
            several => {
                count_tasks().map(Threads::from).or_else(|_| several.and_then(|_| count_with_retries(probe_unshare)))
            }
        }
    }

    /// Counts the threads that are not exiting. The kernel still lists a thread for a moment after it was joined. Such
    /// a thread runs no more code of the program, and holds no lock.
    fn count_tasks() -> io::Result<usize> {
        let mut count = 0;
        for task in fs::read_dir(TASKS)? {
            let stat = task?.path().join("stat");
            match fs::read_to_string(stat) {
                Ok(stat) if is_exiting(&stat) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                _ => count += 1,
            }
        }
        Ok(count)
    }

    /// Returns whether the thread is exiting. `stat` is the content of the thread's `stat` file (proc_pid_stat(5)). In
    /// that file, the thread's name is in parentheses, and may itself contain parentheses. So the fields after the name
    /// begin at the last closing parenthesis.
    fn is_exiting(stat: &str) -> bool {
        let flags = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(6));
        flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & EXITING != 0)
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

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn is_exiting_accepts_parentheses_in_thread_names() {
            let stat = |flags| format!("71 (a) b (c) R 1 71 71 0 -1 {flags} 55 0 0 0");
            assert!(is_exiting(&stat(0x40_0044)));
            assert!(!is_exiting(&stat(0x40_0040)));
            assert!(!is_exiting("nonsense"));
        }

        #[test]
        fn probe_unshare_detects_other_threads() {
            assert_eq!(probe_unshare().expect("unshare"), Threads::Several(None));
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn thread_count() -> Result<Threads, CallError> {
    count_with_retries(count)
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
    Ok(Threads::from(info.ki_numthreads as usize))
}
