//! Reads figures about a process from /proc.

use std::{fs, io};

/// Returns the number of context switches of the process, voluntary and involuntary. Each time that a process is woken
/// and sleeps again, it makes at least one.
pub fn switches(pid: u64) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    sum(&status, &["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"])
}

pub fn is_asleep(pid: u64) -> io::Result<bool> {
    Ok(fs::read_to_string(format!("/proc/{pid}/status"))?.contains("\nState:\tS"))
}

/// Returns the process's resident memory in KiB, anonymous and shared, without mapped files.
pub fn memory(pid: u64) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    sum(&status, &["RssAnon:", "RssShmem:"])
}

/// Returns the memory in KiB that would be freed if only this process ended.
pub fn private_memory(pid: u64) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    sum(&rollup, &["Private_Clean:", "Private_Dirty:"])
}

/// Returns the nanoseconds that the process has spent on a CPU.
pub fn cpu_time(pid: u64) -> io::Result<u64> {
    let times = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let time = times.split(' ').next().and_then(|time| time.parse().ok());
    time.ok_or_else(|| io::Error::other("no time in schedstat"))
}

pub fn descriptors(pid: u64) -> io::Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
}

fn sum(text: &str, keys: &[&str]) -> io::Result<u64> {
    let value = |key: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(key))?;
        value.split_whitespace().next()?.parse().ok()
    };
    let missing = |key: &str| io::Error::other(format!("no {key} in /proc"));
    keys.iter().map(|&key| value(key).ok_or_else(|| missing(key))).sum()
}
