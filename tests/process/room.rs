//! Checks whether this machine has room for thousands of processes.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;

/// Returns what this machine lacks to run `tasks` processes and threads that use `memory` bytes in total, or `None` if
/// it lacks nothing.
pub fn lacks_room(tasks: u64, memory: u64) -> Option<&'static str> {
    let groups = own_cgroups();
    if ["pid_max", "threads-max"].iter().any(|name| system_limit(name) < 2 * tasks) {
        Some("a system that can have more processes")
    } else if user_limit() < 2 * tasks {
        Some("a user that may have more processes")
    } else if groups.iter().any(|group| tasks_left(group) < tasks) {
        Some("a cgroup that may have more processes")
    } else if available_memory() < memory || groups.iter().any(|group| memory_limit(group) < memory) {
        Some("more memory")
    } else {
        None
    }
}

fn system_limit(name: &str) -> u64 {
    number(&Path::new("/proc/sys/kernel").join(name)).unwrap_or(u64::MAX)
}

/// Returns the limit `RLIMIT_NPROC` of this user. For root there is no limit.
fn user_limit() -> u64 {
    if geteuid().is_root() { u64::MAX } else { getrlimit(Resource::RLIMIT_NPROC).expect("a limit").0 }
}

fn tasks_left(group: &Path) -> u64 {
    let most = number(&group.join("pids.max")).unwrap_or(u64::MAX);
    most.saturating_sub(number(&group.join("pids.current")).unwrap_or(0))
}

/// Returns the memory limit of a cgroup (v2 or v1).
fn memory_limit(group: &Path) -> u64 {
    ["memory.max", "memory.limit_in_bytes"].iter().filter_map(|name| number(&group.join(name))).fold(u64::MAX, u64::min)
}

fn available_memory() -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").expect("the memory");
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("the available memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Returns the cgroup directories of this process (v1 or v2), and all their parent directories.
fn own_cgroups() -> Vec<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let groups = groups.map(|(controllers, path)| PathBuf::from(format!("/sys/fs/cgroup/{controllers}{path}")));
    groups.flat_map(|group| group.ancestors().map(Path::to_owned).collect::<Vec<_>>()).collect()
}

/// Returns the number in this file. Returns `None` if the file does not exist or contains a word, which both mean that
/// there is no limit.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
