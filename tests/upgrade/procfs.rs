//! Facts about processes from /proc (proc(5)).

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// Returns the fields of `/proc/PID/stat` after the name.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain any character. It ends at the last parenthesis of the line.
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split(' ').map(str::to_owned).collect())
}

fn children_in_state(parent: u32, is_wanted: impl Fn(&str) -> bool) -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").expect("the processes");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child =
        |&pid: &u32| stat(pid).is_some_and(|fields| is_wanted(&fields[0]) && fields[1] == parent.to_string());
    pids.filter(is_child).collect()
}

/// Returns the living children of a process.
pub fn children(parent: u32) -> BTreeSet<u32> {
    children_in_state(parent, |state| !matches!(state, "Z" | "X"))
}

/// Returns the children that have exited and are not reaped.
pub fn zombies(parent: u32) -> BTreeSet<u32> {
    children_in_state(parent, |state| state == "Z")
}

/// Returns the living processes of a process group.
pub fn group(leader: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").expect("the processes");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_member = |&pid: &u32| {
        stat(pid).is_some_and(|fields| !matches!(fields[0].as_str(), "Z" | "X") && fields[2] == leader.to_string())
    };
    pids.filter(is_member).collect()
}

/// Returns whether the process exists and has not exited.
pub fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| !matches!(fields[0].as_str(), "Z" | "X"))
}

/// Returns the path of the program that the process executes.
pub fn program(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).expect("a process")
}

pub fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).expect("a process").trim_end().to_owned()
}

/// Returns the inodes of the sockets that the process has open.
pub fn sockets(pid: u32) -> BTreeSet<String> {
    links(pid).into_iter().filter(|link| link.starts_with("socket:[")).collect()
}

/// Returns the targets of the descriptors of a process.
pub fn links(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    entries.filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.display().to_string())).collect()
}

/// Returns the private memory of a process that no file backs, in KiB.
pub fn anonymous_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a figure");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Returns the name of the build that a process executes.
pub fn build_of(pid: u32) -> String {
    let build = crate::build::Build::of_program(&PathBuf::from(format!("/proc/{pid}/exe")));
    build.expect("a build").name
}
