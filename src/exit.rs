//! Exits and processes: the types that the policy, the backends and the events share.

use std::fmt;

/// The way in which a worker exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exit {
    /// The process exited with this status. 0 is a normal exit, and every other status is abnormal. On Unix only the
    /// low eight bits of the status reach the parent (`_exit(2)`). On Windows all 32 bits do, and an access violation
    /// or an abort is a status too, negative in this type.
    Code(i32),
    /// The process was killed by the signal with this number, real-time signals included. Unix only.
    Signal(i32),
    /// The process has exited, but its status is unknown, because other code in the parent has waited for it: a handler
    /// or a thread of the program that calls `waitpid` for any child. Counts as abnormal. Unix only.
    Unknown,
    /// A worker thread did not return when it had to, or gave no heartbeat, and was abandoned. It may still run. Counts
    /// as abnormal.
    Stale,
}

impl Exit {
    /// Returns whether this is a normal exit: exit status 0.
    pub fn is_success(self) -> bool {
        self == Exit::Code(0)
    }
}

/// Completes a sentence: `exited normally`, `exited with status 3`, `killed by signal 9`. Windows ends a process after
/// a fault of its own with a status below 0. Such a status is written as Windows writes it, with its cause if that is
/// well known: `exited with status 0xC0000005 (access violation)`.
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

/// Returns the cause for the statuses of Windows (`ntstatus.h`) with which a worker is most likely to end.
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
        // STATUS_STACK_BUFFER_OVERRUN, with which an abort by fail-fast ends too.
        0xC000_0409 => "abort",
        _ => return None,
    })
}

/// One process of a worker, or one worker thread. `Display` writes `child 2 (pid 71)`, as in Tornado's log, or
/// `child 2 (thread worker-2.0)`.
///
/// Id and generation together identify a process for ever. The pid does so only while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Process {
    /// The task id of the worker.
    pub id: usize,
    /// The number of earlier processes of this id: 0 for the first one.
    pub generation: u32,
    /// The process id. `None` for a worker [thread](crate::Prefork::run_threads).
    pub pid: Option<u32>,
}

impl Process {
    /// Returns whether this is a worker [thread](crate::Prefork::run_threads).
    pub fn is_thread(&self) -> bool {
        self.pid.is_none()
    }

    /// Returns the name under which the system's tools show the thread: `worker-2.0` is the first thread of worker 2.
    pub(crate) fn thread_name(&self) -> String {
        format!("worker-{}.{}", self.id, self.generation)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "child {} (pid {pid})", self.id),
            None => write!(f, "child {} (thread {})", self.id, self.thread_name()),
        }
    }
}

/// Whether the kernel's out-of-memory killer sent a SIGKILL.
///
/// Linux counts these kills in each cgroup: `oom_kill` in `memory.events` (v2) and in `memory.oom_control` (v1). If a
/// worker was killed by a SIGKILL that the parent did not send, and the counter of the parent's cgroup has grown, it
/// was the out-of-memory killer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutOfMemory {
    /// The counter has grown.
    Yes,
    /// The counter cannot be read.
    Perhaps,
    /// The counter has not grown, or there was no such SIGKILL.
    No,
}

/// Writes the suffix for the log line: ` (out of memory)`, ` (perhaps out of memory)`, or nothing.
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
    fn exits_are_displayed_as_the_system_writes_them() {
        assert_eq!(Exit::Code(0).to_string(), "exited normally");
        assert_eq!(Exit::Code(3).to_string(), "exited with status 3");
        assert_eq!(Exit::Code(0x1234_5678).to_string(), "exited with status 305419896");
        assert_eq!(Exit::Code(0xC000_0005_u32 as i32).to_string(), "exited with status 0xC0000005 (access violation)");
        assert_eq!(Exit::Code(-1).to_string(), "exited with status 0xFFFFFFFF");
        assert_eq!(Exit::Unknown.to_string(), "exited with unknown status");
        assert_eq!(Exit::Signal(9).to_string(), "killed by signal 9");
    }
}
