//! How a process ended, and which process it was: the words that the policy, the backends and the events share.

use std::fmt;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exit {
    /// The process exited with this status: 0 is a normal exit, every other status is abnormal. On Unix only the low eight
    /// bits of the status reach the parent (`_exit(2)`). On Windows all 32 bits do, and an access violation or an abort is
    /// a status too (a negative one in this type).
    Code(i32),
    /// The process was killed by the signal with this number, real-time signals included. Unix only.
    Signal(i32),
    /// The process has ended, but its status is not known, because something else in the parent has waited for it: a handler
    /// or a thread of the program that calls `waitpid` for any child. Counts as abnormal. Unix only.
    Unknown,
    /// A worker thread did not return when it had to, and was abandoned. It may still run. Counts as abnormal.
    Stale,
}

impl Exit {
    /// Whether this is a normal end: exit status 0.
    pub fn is_success(self) -> bool {
        self == Exit::Code(0)
    }
}

/// Reads on from a subject: `exited normally`, `exited with status 3`, `killed by signal 9`. A status below 0, as Windows has
/// it for a process that was ended by a fault of its own, is told as Windows writes it, with its cause if that is well known:
/// `exited with status 0xC0000005 (access violation)`.
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

/// The statuses of Windows (`ntstatus.h`) that a worker is most likely to end with.
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
        // Whoever aborts in this way.
        0xC000_0409 => "abort",
        _ => return None,
    })
}

/// One process of one worker, or one thread. `Display` gives `child 2 (pid 71)`, as in Tornado's log, or
/// `child 2 (thread worker-2.0)`.
///
/// The generation tells it from the others of its worker, for ever; the pid only while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Process {
    /// The task id.
    pub id: usize,
    /// 0 for the first process of this id, and one more for each after it.
    pub generation: u32,
    /// The process id. `None` for a worker [thread](crate::Prefork::run_threads).
    pub pid: Option<u32>,
}

impl Process {
    /// Whether it is a thread of the parent's.
    pub fn is_thread(&self) -> bool {
        self.pid.is_none()
    }

    /// By which the system's tools know it: `worker-2.0` is the first thread of worker 2.
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

/// Whether the kernel's out-of-memory killer was behind a SIGKILL.
///
/// On Linux it counts its kills in each cgroup: `oom_kill` in `memory.events` (v2) and in `memory.oom_control` (v1). A worker
/// killed by SIGKILL, and not by the parent, was out of memory if the counter of the parent's cgroup has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutOfMemory {
    /// The counter says so.
    Yes,
    /// The counter cannot be read.
    Perhaps,
    /// The counter says that it was not, or it was no such SIGKILL.
    No,
}

/// For the log, after how it ended: ` (out of memory)`, ` (perhaps out of memory)`, or nothing.
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
    fn a_status_reads_as_the_system_writes_it() {
        assert_eq!(Exit::Code(0).to_string(), "exited normally");
        assert_eq!(Exit::Code(3).to_string(), "exited with status 3");
        assert_eq!(Exit::Code(0x1234_5678).to_string(), "exited with status 305419896");
        assert_eq!(Exit::Code(0xC000_0005_u32 as i32).to_string(), "exited with status 0xC0000005 (access violation)");
        assert_eq!(Exit::Code(-1).to_string(), "exited with status 0xFFFFFFFF");
        assert_eq!(Exit::Unknown.to_string(), "exited with unknown status");
        assert_eq!(Exit::Signal(9).to_string(), "killed by signal 9");
    }
}
