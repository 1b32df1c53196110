//! The operating system: all the unsafe code of this crate, and nothing that decides anything.
//!
//! A platform exports:
//!
//! - `fork()`: a child that is the only thread of its process, with every signal blocked in it, or an error; refused with
//!   more than one thread, each time.
//! - `flush_output()`: writes what is buffered for standard output, by std and by the C library.
//! - `thread_count()`: whether there is one thread, and how many there are where that can be told.
//! - `Signals`: from `take()`, which is told whether there is one thread only, to the drop, the signals of [`Signal::SUPERVISED`] that were not ignored before wait in
//!   a descriptor instead of taking effect; SIGCHLD is among them in any case. `Signals::next()` never blocks, and leaves out
//!   job control by a terminal. `Signals::end()` hands stop requests that nobody took back to the program, if it is not
//!   stopped already, and drops the others. Dropping them leaves mask and dispositions as `take()` found them, in the parent as in a child of it.
//! - `send()`: a signal for a child that has not been reaped yet, so that its pid is still its own.
//! - `peek_exited()`, `reap()` and `reap_blocking()`: which child has ended, without reaping it; and the status of one that
//!   is named.
//! - `Shared`: zeroes that this process shares with its children, in lines that no two processes write to.
//! - `doorbell()`: a `Button` in any of the processes that wakes who waits for its `Bell`.
//! - `StopRequest`: in a worker, from `listen()` on, whether the parent or the terminal has asked it to stop.
//! - `Lifeline`: made in the parent, held in the child: from then on the end of the parent is a SIGTERM to the child,
//!   also if the parent is gone already.
//! - `OomCounter`: whether the kernel has killed for want of memory where this process is accounted.
//! - `process_limit()`: how many processes the system can have at all.
//! - `is_init()`: whether this process is pid 1, which has to reap strangers.
//! - `POLLER`: the calls behind mio's `Poll`, and what fork does to it.
//!
//! Every refusal of the system is a [`CallError`] with the name of the call. Every descriptor is close-on-exec and owned
//! from birth.

#![allow(unsafe_code)]

use std::io;

mod invitation;
#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
mod unix;
#[cfg(windows)]
mod windows;

pub(crate) use invitation::Line;
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
pub(crate) struct Claim {
    pub memory: Number,
    pub len: usize,
    pub line: usize,
    /// Passed along with the memory.
    pub passed: [Number; 2],
    /// What it listens on.
    pub sockets: Vec<Number>,
    pub secret: [u32; 4],
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
pub(crate) struct Poller {
    pub create: &'static str,
    pub add: &'static str,
    pub wait: &'static str,
    /// Whether a fork gets a copy of the descriptor, to be closed there: of epoll(7) it does, of kqueue(2) it does not.
    #[cfg(unix)]
    pub is_inherited: bool,
}

/// A signal that was taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub signal: Signal,
    /// Who sent it, where that is told; of several that came as one, some one of them. For SIGCHLD a child that may have ended.
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
