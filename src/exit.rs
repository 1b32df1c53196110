//! [`Exit`], [`Process`] and [`OutOfMemory`]: types that the policy, the backends and the events share.

use std::fmt;

/// The way in which a worker exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exit {
    /// The process exited with this status. Status 0 is a normal exit, and every other status is an abnormal exit. On
    /// Unix only the low eight bits of the status reach the parent (`_exit(2)`). On Windows all 32 bits reach the
    /// parent. If a process crashes or aborts on Windows, the system sets a status that is negative as an `i32`.
    Code(i32),
    /// The process was killed by the signal with this number. This includes real-time signals. Unix only.
    Signal(i32),
    /// The process has exited, but its status is unknown, because other code in the parent has already reaped the
    /// process. For example, a signal handler or a thread of the program called waitpid(2) for any child. This exit
    /// counts as abnormal. Unix only.
    Unknown,
    /// The parent abandoned a worker thread that did not return in time, was not ready in time, or sent no heartbeat in
    /// time. The thread may still run. Or the parent abandoned a process that did not exit within 10 s after SIGKILL.
    /// This exit counts as abnormal.
    Stale,
}

impl Exit {
    /// Returns whether this is a normal exit: exit status 0.
    pub fn is_success(self) -> bool {
        self == Exit::Code(0)
    }
}

/// Writes the exit as a phrase, for example `exited normally`, `exited with status 3` or `killed by signal 9`. The
/// negative statuses of Windows are written in hexadecimal, with the cause if it is well known: `exited with status
/// 0xC0000005 (access violation)`.
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(0) => f.write_str("exited normally"),
            Exit::Code(code @ 0..) => write!(f, "exited with status {code}"),
            Exit::Code(code) => {
                write!(f, "exited with status {code:#010X}")?;
                known_cause(*code as u32).map_or(Ok(()), |cause| write!(f, " ({cause})"))
            }
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
            Exit::Unknown => f.write_str("exited with unknown status"),
            Exit::Stale => f.write_str("is stale"),
        }
    }
}

/// Returns the cause that a Windows exit status stands for (`ntstatus.h`), or `None` if the status is uncommon.
fn known_cause(status: u32) -> Option<&'static str> {
    Some(match status {
        0xC000_0005 => "access violation",
        0xC000_001D => "illegal instruction",
        0xC000_0094 => "division by zero",
        0xC000_00FD => "stack overflow",
        0xC000_0135 => "DLL not found",
        0xC000_013A => "control-C",
        0xC000_0142 => "DLL initialization failed",
        0xC000_0374 => "heap corruption",
        // STATUS_STACK_BUFFER_OVERRUN. Windows also sets this status if a process aborts by `__fastfail`.
        0xC000_0409 => "abort",
        _ => return None,
    })
}

/// One process of a worker, or one worker thread. `Display` writes `child 2 (pid 71)`, as in Tornado's log, or
/// `child 2 (thread worker-2.0)`. If the pool has a name, `Display` begins with it: `jobs child 2 (pid 71)`.
///
/// The pool, the id and the generation together identify exactly one process of a service. The pid identifies a process
/// only while it lives, because the system reuses pids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Process {
    /// The task id of the worker.
    pub id: usize,
    /// The number of earlier processes of this worker: 0 for its first process. After `u32::MAX` comes 0 again.
    pub generation: u32,
    /// The process id. `None` for a worker [thread](crate::Prefork::run_threads).
    pub pid: Option<u32>,
    /// The name of the pool. Empty for a [`Prefork`](crate::Prefork) that is used alone.
    pub pool: &'static str,
}

impl Process {
    /// Returns whether this is a worker [thread](crate::Prefork::run_threads).
    pub fn is_thread(&self) -> bool {
        self.pid.is_none()
    }

    /// Returns the name under which the system's tools show the thread. `worker-2.0` is the first thread of worker 2,
    /// and `jobs-2.0` is the first thread of worker 2 in the pool `jobs`.
    pub(crate) fn thread_name(&self) -> String {
        let pool = if self.pool.is_empty() { "worker" } else { self.pool };
        format!("{pool}-{}.{}", self.id, self.generation)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.pool.is_empty() {
            write!(f, "{} ", self.pool)?;
        }
        match self.pid {
            Some(pid) => write!(f, "child {} (pid {pid})", self.id),
            None => write!(f, "child {} (thread {})", self.id, self.thread_name()),
        }
    }
}

/// Whether the kernel's out-of-memory killer killed a process.
///
/// Linux counts these kills in each cgroup: `oom_kill` in `memory.events` (v2) and in `memory.oom_control` (v1). If
/// SIGKILL ends a worker, the parent did not send it, and the counter of the parent's cgroup has grown, the parent
/// concludes that the out-of-memory killer sent the SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutOfMemory {
    /// The process was killed by SIGKILL, and the counter of the cgroup has grown.
    Yes,
    /// The process was killed by SIGKILL, and the counter of the cgroup cannot be read.
    Perhaps,
    /// The out-of-memory killer did not kill the process: the counter of the cgroup has not grown, or the process was
    /// not killed by SIGKILL, or the parent sent the SIGKILL.
    No,
}

/// Writes a suffix for the log line of the exit: ` (out of memory)`, ` (perhaps out of memory)`, or nothing.
impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutOfMemory::Yes => " (out of memory)",
            OutOfMemory::Perhaps => " (perhaps out of memory)",
            OutOfMemory::No => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_writes_status_cause_and_signal() {
        assert_eq!(Exit::Code(0).to_string(), "exited normally");
        assert_eq!(Exit::Code(3).to_string(), "exited with status 3");
        assert_eq!(Exit::Code(0x1234_5678).to_string(), "exited with status 305419896");
        assert_eq!(Exit::Code(0xC000_0005_u32 as i32).to_string(), "exited with status 0xC0000005 (access violation)");
        assert_eq!(Exit::Code(-1).to_string(), "exited with status 0xFFFFFFFF");
        assert_eq!(Exit::Unknown.to_string(), "exited with unknown status");
        assert_eq!(Exit::Signal(9).to_string(), "killed by signal 9");
    }
}
