//! Checks that no thread of this process has kept rights of the old user. Linux only.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use nix::unistd::{Gid, Uid};

use crate::sys::CallError;
use crate::sys::unix::threads::{Threads, thread_count};

/// Returns an error if a thread of this process has another user or group, or a capability. The caller has already
/// checked the calling thread.
///
/// The C library changes the ids in all threads. But capabilities belong to a thread, and a thread that has set
/// `PR_SET_KEEPCAPS` (prctl(2)) keeps them. The C library also does not know threads that were started by other means,
/// such as a kernel thread of io_uring(7).
pub(super) fn check_threads(uid: Uid, gid: Gid) -> Result<(), CallError> {
    /// A thread that is exiting keeps its old rights until it is gone.
    const PATIENCE: Duration = Duration::from_secs(1);
    if thread_count()? == Threads::One {
        return Ok(());
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let found = check_once(uid, gid).map_err(|error| CallError::new("setresuid", error))?;
        let Some(problem) = found else { return Ok(()) };
        if Instant::now() >= until {
            return Err(CallError::new("setresuid", io::Error::other(problem)));
        }
        thread::yield_now();
    }
}

/// Checks all threads. Returns the problem if a thread has kept rights, or if a thread may have been overlooked.
///
/// A list of the threads can miss a thread, if a thread starts another one and exits meanwhile. So this function counts
/// the threads afterwards, and then looks for the checked ones again. A checked thread that is still there existed when
/// the threads were counted. If the number of these threads is the count, there was no other thread at that moment.
/// Later threads get their rights from these.
fn check_once(uid: Uid, gid: Gid) -> io::Result<Option<String>> {
    let mut checked = BTreeSet::new();
    for thread in threads()? {
        match fs::read_to_string(format!("/proc/self/task/{thread}/status")) {
            Ok(status) if !has_ids(&status, uid, gid) => {
                return Ok(Some(format!("thread {thread} still has another user or group")));
            }
            Ok(status) if has_capabilities(&status) => {
                return Ok(Some(format!("thread {thread} still has capabilities")));
            }
            Ok(_) => drop(checked.insert(thread)),
            Err(_) => {}
        }
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let count = value(&status, "Threads:").and_then(|count| count.parse::<usize>().ok());
    let present = threads()?.intersection(&checked).count();
    Ok((count != Some(present)).then(|| "the threads could not be checked, because they changed too often".into()))
}

fn threads() -> io::Result<BTreeSet<String>> {
    fs::read_dir("/proc/self/task")?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Returns the text after this name in a `status` file (proc_pid_status(5)).
fn value<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Returns whether the real, the effective and the saved ids have these values.
fn has_ids(status: &str, uid: Uid, gid: Gid) -> bool {
    let are = |name: &str, id: u32| {
        let id = id.to_string();
        value(status, name).is_some_and(|ids| ids.split_whitespace().take(3).eq([&*id; 3]))
    };
    are("Uid:", uid.as_raw()) && are("Gid:", gid.as_raw())
}

/// Returns whether a set of capabilities that a thread can use or pass on is not empty.
fn has_capabilities(status: &str) -> bool {
    let has_any = |name| value(status, name).is_some_and(|set| set.bytes().any(|digit| digit != b'0'));
    ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"].into_iter().any(has_any)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nUid:\t33\t33\t33\t33\nGid:\t34\t34\t34\t34\nThreads:\t2\n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n";

    #[test]
    fn a_saved_root_id_is_another_user() {
        let is_clean = |status: &str| has_ids(status, Uid::from_raw(33), Gid::from_raw(34));
        assert!(is_clean(STATUS));
        for (ids, wrong) in [("33\t33\t33", "33\t33\t0"), ("33\t33\t33", "0\t33\t33"), ("34\t34\t34", "34\t0\t34")] {
            assert!(!is_clean(&STATUS.replacen(ids, wrong, 1)), "{wrong}");
        }
        assert!(!is_clean("Name:\tx\n"));
    }

    #[test]
    fn any_usable_capability_counts_except_the_bounding_set() {
        assert!(!has_capabilities(STATUS));
        for set in ["CapInh", "CapPrm", "CapEff"] {
            assert!(has_capabilities(&STATUS.replace(&format!("{set}:\t00"), &format!("{set}:\t80"))), "{set}");
        }
        assert!(has_capabilities(&format!("{STATUS}CapAmb:\t0000000000000400\n")));
    }
}
