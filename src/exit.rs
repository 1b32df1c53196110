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

/// One process of one id. The generation tells it from the others of its id, for ever; the pid only while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub id: usize,
    pub generation: u32,
    pub pid: u32,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "child {} (pid {})", self.id, self.pid)
    }
}

/// Whether the kernel's out-of-memory killer was behind a SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutOfMemory {
    Yes,
    /// The counter cannot be read.
    Perhaps,
    No,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutOfMemory::Yes => " (out of memory)",
            OutOfMemory::Perhaps => " (perhaps out of memory)",
            OutOfMemory::No => "",
        })
    }
}
