//! Processes as proc(5) shows them.

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
    // The name may contain any character, and ends at the last parenthesis.
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let mut fields = fields.split(' ');
    let state = fields.next();
    !matches!(state, Some("Z" | "X")) && fields.next() == Some(&parent.to_string())
}

/// Returns the number of open descriptors, 0 if the process is gone.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Waits until this process has one thread. A thread is listed for a moment after it was joined.
pub fn wait_until_alone() {
    while fs::read_dir("/proc/self/task").expect("the threads").count() > 1 {
        std::thread::yield_now();
    }
}
