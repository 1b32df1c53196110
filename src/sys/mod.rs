//! The operating system: all the unsafe code of this crate, and nothing that decides anything.
//!
//! A platform exports:
//!
//! - `fork()`, on Unix: a child that is the only thread of its process, with every signal blocked in it, or an error; refused
//!   with more than one thread, each time. `thread_count()`, there: whether there is one thread, and how many there are where
//!   that can be told.
//! - `Program`: this program, which can be started once more, with what it is `InheritedFds`: memory, button, lifeline and sockets,
//!   under numbers that are told to it. `take_env_var()` and `parent_id()`: what it is told, and by whom;
//!   `is_secure_exec()`: whether that can be anybody.
//! - `flush_output()`, where there are forks: writes what is buffered for standard output, by std and by the C library.
//! - `Signals`: from `take()`, by who has the [`SupervisorLock`], which is told what the workers are, to the drop, what asks the
//!   parent for something waits here instead of taking effect: the signals of [`Signal::SUPERVISED`] that were not ignored
//!   before, or what stands for them. SIGCHLD is among them in any case, unless workers are threads; then neither it nor
//!   SIGUSR1 is. `Signals::next()` never blocks, and leaves out job control by a terminal.
//!   `Signals::interrupts()`: whether one that arrives makes a wait fail.
//!   `Signals::end()` hands stop requests that nobody took back to the program, if it is not stopped already, and drops the
//!   others. Dropping them leaves mask and dispositions as `take()` found them, in the parent as in a child of it, and in the
//!   parent what nobody took to these.
//!   `Signals::exit_notifier()`: whom a child's end is told by somebody else than the system, if it is.
//! - `ChildHandle`: one that has not been reaped yet, so that its pid is still its own; it is sent signals, or what stands for them.
//!   `peek_exited()`: which child has ended, without reaping it. `reap_as_init()`: pid 1 has to reap strangers.
//!   `is_echild()`: the error of who finds that another one has reaped it, where that can be.
//! - `with_requests_blocked()`: what starts a thread which those signals do not disturb; and `THREAD_CALL`, what starts it.
//! - Of `Shared`, zeroes that this process shares with its children, in lines that no two processes write to: what makes it
//!   and what passes it on; and `map_slots()` and `unmap_slots()`, for it alone.
//! - `doorbell()`: a `Waker` in any of the processes that wakes who waits for its `WakeReceiver`.
//! - `StopRequest`: in a worker, from `listen()` on, whether the parent or the terminal has asked it to stop.
//! - `Lifeline`: made in the parent, held in the child: from then on the end of the parent is that of the child, or at least a
//!   SIGTERM to it, also if the parent is gone already.
//! - `usable_cpus()`: those that this thread may use, if it can be pinned to one; and `pin_to()`, which does so.
//! - `share_port()`, `steer()`: several sockets have one port, and a program says which of them gets what, on Linux;
//!   `has_waiting()`: whether one has something.
//! - `drop_privileges()`: this process becomes another user's, for good, or it is an error. On Unix also who this process is,
//!   `own_identity()`, and the `groups_of()` a user. `exit_now()`: ends one that is half another's, of which nothing more runs.
//! - `OomCounter`: whether the kernel has killed for want of memory where this process is accounted.
//! - `process_limit()`: how many processes the system can have at all.
//! - `POLL_CALLS`: the calls behind mio's `Poll`, and what fork does to it.
//!
//! Every refusal of the system is a [`CallError`] with the name of the call. Every descriptor is close-on-exec, every
//! handle is not inheritable, and each is owned from birth.

#![allow(unsafe_code)]

use std::io;

#[cfg(not(target_os = "linux"))]
mod no_cgroup;
mod offer;
#[cfg_attr(target_os = "linux", path = "unix/reuseport.rs")]
#[cfg_attr(not(target_os = "linux"), path = "no_reuseport.rs")]
mod reuseport;
mod shared;
mod supervisor_lock;
#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(not(target_os = "linux"))]
pub(crate) use no_cgroup::OomCounter;
pub(crate) use reuseport::{has_waiting, share_port, steer};
pub(crate) use shared::{Shared, StatusSlot};
pub(crate) use supervisor_lock::SupervisorLock;
#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

#[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "freebsd", windows)))]
compile_error!("taskfork knows Linux, macOS, FreeBSD and Windows");

/// What the system answered, and to which call.
#[derive(Debug)]
pub(crate) struct CallError {
    pub call: &'static str,
    pub source: io::Error,
}

impl CallError {
    pub fn new(call: &'static str, source: impl Into<io::Error>) -> CallError {
        CallError { call, source: source.into() }
    }

    /// Names the call that just failed and set `errno`.
    pub fn last(call: &'static str) -> CallError {
        CallError::new(call, io::Error::last_os_error())
    }
}

/// What a program is told of the memory that it was given, by number, and what is written there in its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InheritedMemory {
    pub memory: Number,
    pub len: usize,
    pub slot: usize,
    /// Passed along with the memory.
    pub passed: [Number; 2],
    /// What it listens on.
    pub sockets: Vec<Number>,
    pub secret: [u32; 4],
}

/// One of a program for bpf(4)'s machine, in the words of `linux/filter.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Whose a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// None: whose it was.
    pub uid: Option<u32>,
    pub gid: u32,
    /// None: those that it had.
    pub groups: Option<Vec<u32>>,
}

/// Why there is no child.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) enum ForkError {
    /// There are other threads; how many in all, if that can be told.
    Threads(Option<usize>),
    Call(CallError),
}

#[cfg(unix)]
impl From<CallError> for ForkError {
    fn from(error: CallError) -> ForkError {
        ForkError::Call(error)
    }
}

/// What is behind mio's `Poll`.
#[derive(Debug)]
pub(crate) struct PollCalls {
    pub create: &'static str,
    pub add: &'static str,
    pub wait: &'static str,
    /// Whether a fork gets a copy of the descriptor, to be closed there: of epoll(7) it does, of kqueue(2) it does not.
    #[cfg(unix)]
    pub is_inherited: bool,
}

/// What the workers of this process are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerKind {
    /// Forks of the parent. The parent has only one thread.
    #[cfg(unix)]
    Fork,
    /// The program, started again.
    Spawn,
    /// Threads of the parent. They have no signals of their own, and the kernel reports no exit for them.
    Thread,
}

/// A signal that was taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SignalInfo {
    pub signal: Signal,
    /// Who sent it, where that is told; of several that came as one, some one of them. For SIGCHLD a child that may have
    /// ended.
    pub sender: Option<u32>,
}

/// The signals that matter here, the supervised ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Terminate,
    Interrupt,
    Quit,
    Hangup,
    TerminalInput,
    TerminalOutput,
    User1,
    Child,
    Abort,
    Kill,
}

#[cfg(unix)]
impl Signal {
    pub const SUPERVISED: [Signal; 8] = [
        Signal::Terminate,
        Signal::Interrupt,
        Signal::Quit,
        Signal::Hangup,
        Signal::TerminalInput,
        Signal::TerminalOutput,
        Signal::User1,
        Signal::Child,
    ];

    /// Whether a terminal sends it, to all processes in the background as soon as one of them reads or writes. Then it is
    /// not for the parent.
    pub fn is_job_control(self) -> bool {
        matches!(self, Signal::TerminalInput | Signal::TerminalOutput)
    }
}
