//! The operating system: all unsafe code of this crate, and no decisions.
//!
//! A platform exports these:
//!
//! - `fork()` (Unix): forks. The child has one thread, and every signal is blocked in it. Fails if there is more than
//!   one thread.
//! - `thread_count()` (Unix): returns whether there is one thread, or several, with their number if it is known.
//! - `flush_output()` (Unix): writes the output that std and the C library have buffered.
//! - `Program`: this program, to be started again. `InheritedFds` are the descriptors that it inherits: memory, waker,
//!   lifeline and sockets, each known to the new program by its number.
//! - `take_env_var()`, `parent_id()`, `is_secure_exec()`: the environment of a spawned worker, its parent, and whether
//!   the environment may come from another user with fewer rights.
//! - `Signals`: the requests to the parent. From `take()` on, the signals of [`Signal::SUPERVISED`] wait here instead
//!   of taking effect, except for those that were ignored before. On Windows console events and named events take their
//!   place. SIGCHLD is among them even if it was ignored. If the workers are threads, SIGCHLD and SIGUSR1 are left to
//!   the program. `take()` needs the [`SupervisorLock`]. Dropping it restores the signal mask and the dispositions, in
//!   the parent as in a fork, and hands signals that were not read back to the program.
//! - `Signals::next()`: returns the next signal, and never blocks. Skips SIGTTIN and SIGTTOU that the
//!   kernel has sent because a background job uses its terminal.
//! - `Signals::interrupts()`: returns whether a signal that arrives makes a waiting call fail.
//! - `Signals::end()`: ends the takeover. Hands stop requests that were not read back to the program, unless the
//!   service has stopped already. Drops other requests.
//! - `Signals::exit_notifier()`: returns the notifier of exits, on systems where the kernel does not announce them by
//!   a signal.
//! - `ChildHandle`: a child that has not been reaped yet, so that its pid is still its own. Receives signals, or their
//!   counterparts.
//! - `peek_exited()`: returns a child that has exited, without reaping it. `reap_as_init()`: as pid 1, reaps a child
//!   that is no worker. `is_echild()`: returns whether an error means that other code has reaped the child.
//! - `with_requests_blocked()`: runs a closure that starts a thread in which the requests are blocked. `THREAD_CALL`:
//!   the name of the system's call that starts a thread, for errors.
//! - `Shared`: zeroed memory that this process shares with its children, in status slots that no two processes write
//!   to. `map_slots()` and `unmap_slots()` are for `Shared` only.
//! - `doorbell()`: returns a `Waker` for all workers, and the `WakeReceiver` that it wakes.
//! - `StopRequest`: in a worker, returns whether the parent or the terminal has requested a stop since `listen()`.
//! - `Lifeline`: made in the parent, held in the child. From then on the child ends when the parent ends, or at least
//!   gets SIGTERM, also if the parent has ended before.
//! - `usable_cpus()`, `pin_to()`: return the CPUs that this thread may use, and pin it to one of them.
//! - `share_port()`, `steer()`, `has_waiting()` (Linux): let several sockets have one port, choose the socket for each
//!   packet by a BPF program, and return whether a socket has something to accept or receive.
//! - `drop_privileges()`: changes the user of this process for good, or fails. On Unix also `own_identity()` and
//!   `groups_of()` a user.
//! - `exit_now()`: ends this process without running anything of the program, for example after half a change of user.
//! - `OomCounter`: returns whether the kernel has killed a process of this cgroup because memory ran out.
//! - `process_limit()`: the number of processes that the system can have.
//! - `POLL_CALLS`: the names of the calls behind mio's `Poll`, and what a fork inherits of it.
//!
//! Every error of the system is a [`CallError`] with the name of the call. Every descriptor is close-on-exec, no
//! handle is inheritable, and each is owned from the moment it is opened.

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

    /// Returns the error in `errno`, with the name of the call that has just failed.
    pub fn last(call: &'static str) -> CallError {
        CallError::new(call, io::Error::last_os_error())
    }
}

/// What a spawned worker inherits, by number, and the secret that its status slot must contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InheritedMemory {
    pub memory: Number,
    pub len: usize,
    pub slot: usize,
    /// The waker and the lifeline.
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

/// Why fork failed.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) enum ForkError {
    /// There are other threads: this many in all, if the number is known.
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
    /// Whether a forked child inherits the descriptor of the `Poll`, and so must close it. True for epoll(7), false for
    /// kqueue(2).
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

/// A signal that has arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SignalInfo {
    pub signal: Signal,
    /// The sender, if it is known. If several signals were merged into one, one of their senders. For SIGCHLD, a child
    /// that may have exited.
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
