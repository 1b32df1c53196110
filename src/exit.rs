//! How a process ended, and which process it was: the words that the policy, the backends and the events share.

use std::fmt;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It exited with this status; 0 is a normal end, everything else is abnormal. On Unix only the low eight bits
    /// of the status reach the parent (`_exit(2)`).
    Code(i32),
    /// A signal with this number killed it (Unix only), real-time signals included.
    Signal(i32),
}

impl Exit {
    /// Whether this is a normal end: exit status 0.
    pub fn is_success(self) -> bool {
        self == Exit::Code(0)
    }
}

/// Reads on from a subject: `exited normally`, `exited with status 3`, `killed by signal 9`.
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(0) => f.write_str("exited normally"),
            Exit::Code(code) => write!(f, "exited with status {code}"),
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// One process of one worker. `Display` gives `child 2 (pid 71)`, as in Tornado's log.
///
/// The generation tells it from the others of its worker, for ever; the pid only while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Process {
    /// The task id.
    pub id: usize,
    /// 0 for the first process of this id, and one more for each after it.
    pub generation: u32,
    /// The process id.
    pub pid: u32,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "child {} (pid {})", self.id, self.pid)
    }
}

/// Whether the kernel's out-of-memory killer was behind a SIGKILL.
///
/// On Linux it counts its kills in each cgroup: `oom_kill` in `memory.events` (v2) and in `memory.oom_control` (v1). A worker
/// killed by SIGKILL, and not by the parent, was out of memory if the counter of the parent's cgroup has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
