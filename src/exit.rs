//! How a process ended, and which process it was: the words that the policy, the backends and the events share.

use std::fmt;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It exited with this status; 0 is a normal end, everything else is abnormal. On Unix only the low eight bits
    /// of the status reach the parent (`_exit(2)`); on Windows all 32, and an access violation or an abort is a status too
    /// (a negative one, as this type has it).
    /// On Unix it is -1, which is abnormal too, if nobody knows: something else in the parent, such as a handler of the program's
    /// own or a thread that waits for any child, has waited for the worker.
    Code(i32),
    /// A signal with this number killed it (Unix only), real-time signals included. 9 also stands for the end of a worker
    /// thread that did not return when it had to, and was given up.
    Signal(i32),
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
            Exit::Code(-1) if cfg!(unix) => f.write_str("exited with unknown status"),
            Exit::Code(code @ 0..) => write!(f, "exited with status {code}"),
            Exit::Code(code) => {
                write!(f, "exited with status {code:#010X}")?;
                known_cause(*code as u32).map_or(Ok(()), |cause| write!(f, " ({cause})"))
            }
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
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

/// A process, and how it ended; of a thread, that it has not.
pub(crate) struct ProcessExit<'a>(pub &'a Process, pub &'a Exit);

impl ProcessExit<'_> {
    pub fn is_stale(&self) -> bool {
        self.0.is_thread() && matches!(self.1, Exit::Signal(_))
    }
}

impl fmt::Display for ProcessExit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessExit(process, _) if self.is_stale() => write!(f, "{process} is stale"),
            ProcessExit(process, exit) => write!(f, "{process} {exit}"),
        }
    }
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
    /// The process id; 0, which no process has, for a worker that is a [thread](crate::Backend::Thread).
    pub pid: u32,
}

impl Process {
    /// Whether it is a thread of the parent's.
    pub fn is_thread(&self) -> bool {
        self.pid == 0
    }

    /// By which the system's tools know it: `worker-2.0` is the first thread of worker 2.
    pub(crate) fn thread_name(&self) -> String {
        format!("worker-{}.{}", self.id, self.generation)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => write!(f, "child {} (thread {})", self.id, self.thread_name()),
            pid => write!(f, "child {} (pid {pid})", self.id),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_as_the_system_writes_it() {
        assert_eq!(Exit::Code(0).to_string(), "exited normally");
        assert_eq!(Exit::Code(3).to_string(), "exited with status 3");
        assert_eq!(Exit::Code(0x1234_5678).to_string(), "exited with status 305419896");
        assert_eq!(Exit::Code(0xC000_0005_u32 as i32).to_string(), "exited with status 0xC0000005 (access violation)");
        let none = if cfg!(unix) { "exited with unknown status" } else { "exited with status 0xFFFFFFFF" };
        assert_eq!(Exit::Code(-1).to_string(), none);
        assert_eq!(Exit::Signal(9).to_string(), "killed by signal 9");
    }
}
