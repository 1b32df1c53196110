//! The layer above the operating system. It contains all unsafe code of this crate, and makes no decisions.
//!
//! A platform exports these:
//!
//! - `fork()` (Unix): forks this process. Fails if it has more than one thread. The child has one thread, in which
//!   every signal is blocked.
//! - `thread_count()` (Unix): returns whether this process has one thread or several, with their number if it is known.
//! - `flush_output()` (Unix): writes the output that std and the C library have buffered.
//! - `Program`: the program that this process runs, to start it again.
//! - `InheritedFds`: the descriptors that a started program inherits: memory, waker, lifeline and sockets. The program
//!   knows each by its number.
//! - `take_env_var()`: returns an environment variable of a spawned worker, and removes it.
//! - `parent_id()`: returns the pid of the parent process.
//! - `is_secure_exec()`: returns whether the environment may come from a user with fewer rights.
//! - `Signals`: the requests to the parent. Dropping it restores the signal mask and the dispositions, in the parent
//!   and in a fork. In the parent, unread signals then reach the program.
//! - `Signals::take()`: takes over the signals of [`Signal::SUPERVISED`]: from now on they wait in this value instead
//!   of taking effect. Leaves out the signals that the program ignores, except SIGCHLD. Leaves out SIGCHLD and SIGUSR1
//!   if the workers are threads. On Windows, takes over console events and named events. Requires the
//!   [`SupervisorLock`].
//! - `Signals::next()`: returns the next signal, and never blocks. Skips the SIGTTIN and SIGTTOU that the kernel sends
//!   to a background job which uses its terminal.
//! - `Signals::interrupts()`: returns whether a signal that arrives makes a waiting call fail.
//! - `Signals::end()`: ends the takeover. Sends the program the stop requests that were not read, unless the service
//!   has stopped already. Drops other requests.
//! - `Signals::exit_notifier()`: returns the notifier of exits. It does nothing on Unix, where SIGCHLD announces an
//!   exit.
//! - `ChildHandle`: a child that has not been reaped yet, so that its pid still belongs to it. Sends it signals, or
//!   their counterparts on Windows.
//! - `peek_exited()`: returns a child that has exited, without reaping it.
//! - `reap_as_init()`: reaps a child that is no worker, if this process is pid 1.
//! - `is_echild()`: returns whether an error means that other code has reaped the child.
//! - `signal_of()`: returns the signal that killed a child.
//! - `with_requests_blocked()`: runs a closure that starts a thread, so that the requests are blocked in that thread.
//! - `THREAD_CALL`: the name of the call that starts a thread, for errors.
//! - `Shared`: memory that this process shares with its children, in status slots that no two processes write to. A new
//!   one is zeroed. `map_slots()` and `unmap_slots()` are for `Shared` only.
//! - `doorbell()`: returns a `Waker` for all workers, and the `WakeReceiver` that it wakes.
//! - `StopRequest`: the listener for stop requests in a worker, from the parent or the terminal.
//! - `Lifeline`: created in the parent, held in the child. From then on the child ends, or at least gets SIGTERM, when
//!   the parent ends, also if the parent has ended before.
//! - `usable_cpus()`: returns the CPUs that this thread may use.
//! - `pin_to()`: pins this thread to one CPU.
//! - `share_port()` (Linux): lets several sockets have one port.
//! - `steer()` (Linux): chooses the socket for each packet by a BPF program.
//! - `has_waiting()` (Linux): returns whether a socket has something to accept or to receive.
//! - `drop_privileges()`: changes the user and the groups of this process irrevocably, or fails.
//! - `own_identity()`, `groups_of()` (Unix): return the user and group of this process, and the groups of a user.
//! - `exit_now()`: ends this process, on Unix without running any code of the program, for example after half a change
//!   of user.
//! - `OomCounter`: the count of processes in this cgroup that the kernel has killed because memory ran out.
//! - `process_limit()`: returns how many processes the system can have, or on Windows, how many children a process can
//!   have.
//! - `POLL_CALLS`: the names of the calls behind mio's `Poll`, and whether a fork inherits it.
//!
//! An error is a [`CallError`] with the name of the call. (`StopRequest::fd()` is public API and returns an
//! `io::Error`.) Every descriptor is close-on-exec, and no handle is inheritable, except while a program is started.
//! Each is owned from the moment it is opened.

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
compile_error!("taskfork supports Linux, macOS, FreeBSD and Windows");

/// An error of the system, and the call that returned it.
#[derive(Debug)]
pub(crate) struct CallError {
    pub call: &'static str,
    pub source: io::Error,
}

impl CallError {
    pub fn new(call: &'static str, source: impl Into<io::Error>) -> CallError {
        CallError { call, source: source.into() }
    }

    /// Returns the last error of the system (`errno`, on Windows GetLastError), with the name of the call that has just
    /// failed.
    pub fn last(call: &'static str) -> CallError {
        CallError::new(call, io::Error::last_os_error())
    }
}

/// The numbers of the descriptors that a spawned worker inherits, and the secret that its status slot must contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InheritedMemory {
    pub memory: Number,
    /// The length of the memory, in slots.
    pub len: usize,
    /// The index of the worker's slot.
    pub slot: usize,
    /// The waker and the lifeline (on Windows, the event that requests a stop).
    pub passed: [Number; 2],
    /// The listening sockets.
    pub sockets: Vec<Number>,
    pub secret: [u32; 4],
}

/// An instruction of classic BPF, with the field names of `linux/filter.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// The user and the groups of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `None`: keep the user.
    pub uid: Option<u32>,
    pub gid: u32,
    /// `None`: keep the supplementary groups.
    pub groups: Option<Vec<u32>>,
}

/// The reason why `fork` failed.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) enum ForkError {
    /// This process has other threads. The number counts all its threads, if it is known.
    Threads(Option<usize>),
    Call(CallError),
}

#[cfg(unix)]
impl From<CallError> for ForkError {
    fn from(error: CallError) -> ForkError {
        ForkError::Call(error)
    }
}

/// The calls behind mio's `Poll`.
#[derive(Debug)]
pub(crate) struct PollCalls {
    pub create: &'static str,
    pub add: &'static str,
    pub wait: &'static str,
    /// Set if a forked child inherits the descriptor of the `Poll`, and so must close it. True for epoll(7), false for
    /// kqueue(2).
    #[cfg(unix)]
    pub is_inherited: bool,
}

/// The kind of the workers of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerKind {
    /// Forks of the parent, which has only one thread.
    #[cfg(unix)]
    Fork,
    /// Processes that run the parent's program from its beginning.
    Spawn,
    /// Threads of the parent. They have no signals of their own, and the kernel reports no exit for them.
    Thread,
}

/// A signal that has arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SignalInfo {
    pub signal: Signal,
    /// The sender's pid, if it is known. If the kernel has merged several signals into one, this is one of their
    /// senders. The sender of SIGCHLD is a child that may have exited.
    pub sender: Option<u32>,
}

/// The signals that this crate uses. The supervised ones come first.
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

    /// Returns whether a terminal sends this signal to all processes of a background job that reads or writes. Such a
    /// signal is no request to the parent.
    pub fn is_job_control(self) -> bool {
        matches!(self, Signal::TerminalInput | Signal::TerminalOutput)
    }
}
