//! What proc(5) tells of a daemon and its children.

use std::collections::BTreeSet;
use std::fs;

/// The children of this process that live.
pub fn children(parent: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").expect("the processes");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| is_living_child(pid, parent)).collect()
}

/// Whether this is a process, a child of that one, and has not ended.
pub fn is_living_child(pid: u32, parent: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name may contain anything, but ends with the last parenthesis.
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let mut fields = fields.split(' ');
    let state = fields.next();
    !matches!(state, Some("Z" | "X")) && fields.next() == Some(&parent.to_string())
}

/// How many descriptors it has open; none, if it is gone.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Until this process has no threads but one. Another that was joined is listed for a moment.
pub fn wait_until_alone() {
    while fs::read_dir("/proc/self/task").expect("the threads").count() > 1 {
        std::thread::yield_now();
    }
}
