//! What a process has inherited and changed: its environment, descriptors, signal mask and dispositions.

use std::collections::BTreeMap;
use std::fs;

/// Returns these facts about this process as one line.
pub fn own() -> String {
    let mut environment: Vec<_> = std::env::vars_os().collect();
    environment.sort();
    format!("{environment:?} {:?} {}", descriptors(), signals())
}

/// Returns how this program was started: its arguments, its environment and its directory.
pub fn start() -> String {
    let is_own = |name: &str| name.starts_with("TASKFORK_") && !name.starts_with("TASKFORK_TEST_");
    let mut environment: Vec<_> = std::env::vars().filter(|(name, _)| !is_own(name)).collect();
    environment.sort();
    let arguments: Vec<String> = std::env::args().collect();
    format!("{arguments:?} {environment:?} {:?}", std::env::current_dir().expect("a directory"))
}

/// Returns how many descriptors this process has of each kind, such as pipes, sockets or files.
fn descriptors() -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd").expect("the descriptors").filter_map(Result::ok) {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.display().to_string();
        // The descriptor that reads the list is none of the program's.
        if target.starts_with("/proc/") {
            continue;
        }
        let kind = target.split_once(":[").map_or(target.as_str(), |(kind, _)| kind);
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

/// Returns the blocked, ignored and caught signals of this process. Leaves out the signals 32 and 33, because the C
/// library uses them itself. Its posix_spawn(3) starts programs with both ignored.
fn signals() -> String {
    let status = fs::read_to_string("/proc/self/status").expect("this process");
    let lines = status.lines().filter_map(|line| {
        let (name, mask) = line.split_once(":\t")?;
        let mask = u64::from_str_radix(mask, 16).ok()? & !(0b11 << 31);
        ["SigBlk", "SigIgn", "SigCgt"].contains(&name).then(|| format!("{name} {mask:x}"))
    });
    lines.collect::<Vec<_>>().join(" ")
}
