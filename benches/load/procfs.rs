//! Reads facts about a process from /proc.

use std::{fs, io};

use nix::unistd::Pid;

/// Returns the children of a process that has one thread.
pub fn children(pid: Pid) -> io::Result<Vec<Pid>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    children.split_whitespace().map(|child| child.parse().map(Pid::from_raw).map_err(io::Error::other)).collect()
}

/// Returns the state of the process as in proc(5): R, S, T, Z and so on.
pub fn state(pid: Pid) -> io::Result<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The state follows the process name, which is in parentheses and may contain anything.
    let state = stat.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next());
    state.ok_or_else(|| io::Error::other("no state in /proc"))
}

/// Returns the descriptors of the process that are sockets.
pub fn sockets(pid: Pid) -> io::Result<Vec<i32>> {
    let mut sockets = Vec::new();
    for file in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = file?.path();
        if fs::read_link(&path)?.to_string_lossy().starts_with("socket:") {
            let name = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            sockets.push(name.ok_or_else(|| io::Error::other("no number in /proc"))?);
        }
    }
    Ok(sockets)
}
