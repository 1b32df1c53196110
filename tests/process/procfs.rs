//! Reads facts about processes from /proc (proc(5)).

use std::collections::BTreeSet;
use std::fs;

/// Returns the living children of this process.
pub fn children(parent: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").expect("the processes");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| is_living_child(pid, parent)).collect()
}

/// Returns whether `pid` is a living child of `parent`.
pub fn is_living_child(pid: u32, parent: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The process name may contain any character. It ends at the last parenthesis of the line.
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let mut fields = fields.split(' ');
    let state = fields.next();
    !matches!(state, Some("Z" | "X")) && fields.next() == Some(&parent.to_string())
}

/// Returns whether the process exists and has not exited.
pub fn runs(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

/// Returns whether a signal has stopped the process.
pub fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
}

/// Returns whether this signal is pending for the process.
pub fn has_pending(pid: u32, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).expect("its pending signals");
    u64::from_str_radix(pending.trim(), 16).expect("a mask") >> (signal - 1) & 1 != 0
}

/// Returns the largest amount of memory that the process has had resident so far, in bytes. A later result can be
/// slightly smaller, because the kernel adds up the counters of the CPUs only now and then.
pub fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).expect("memory");
    peak.parse::<u64>().expect("a number") << 10
}

/// Returns the number of open descriptors of a process, or 0 if it is gone.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Waits until /proc lists only one thread of this process. It may list a thread for a moment after the join.
pub fn wait_until_alone() {
    while fs::read_dir("/proc/self/task").expect("the threads").count() > 1 {
        std::thread::yield_now();
    }
}
