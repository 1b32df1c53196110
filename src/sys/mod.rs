//! The layer above the operating system: wrappers around system calls. All unsafe code of this crate is in this module.
//! Decisions, such as when a worker is restarted, are made in other modules.
//!
//! Each platform exports the following items. An item that has a platform in parentheses works only on that platform.
//!
//! - `fork()` (Unix): forks this process. Fails if this process has more than one thread. The child has one thread, in
//!   which every signal is blocked.
//! - `ChildPanicGuard` (Unix): ends a forked child that panics before it has left the parent's stack frames.
//! - `watch_forks()`: lets `is_fork()` recognize the processes that this process forks from now on.
//! - `is_fork()`: returns whether a process that had called `watch_forks()` has forked this process. Reads only memory.
//! - `thread_count()` (Unix): returns whether this process has one thread or several threads. Also returns the number
//!   of threads, if it is known.
//! - `flush_output()` (Unix): writes out the output that is still in the buffers of std and of the C library.
//! - `Program`: the executable of this process. Starts it again as a worker, with an offer.
//! - `InheritedFds`: the descriptors that a spawned program inherits: the shared memory, the waker, the lifeline and
//!   the sockets. The offer contains their numbers.
//! - `origin()`: returns whether a parent has started this process as a worker, as recorded before `main`, or whether
//!   this process descends from such a process.
//! - `was_spawned()`: returns whether a parent has started this process as a worker that it has not become.
//! - `passed_text()`: returns the text that was passed to this process, as a worker, as a candidate, or by the program
//!   before an upgrade. `copy_passed()`: returns a copy of a descriptor that was passed with it.
//! - `is_in_environment()` (Linux): returns whether this process has the environment variable of an offer.
//! - `take_inherited()`: takes ownership of what a spawned worker inherits.
//! - `become_independent()`: removes the traces of the start, when this process has become a worker.
//! - `take_env_var()` (Unix): returns the value of an environment variable, and removes the variable.
//! - `parent_id()`: returns the pid of the parent process.
//! - `is_secure_exec()`: returns whether the executable file gives this program more rights than its user has, as with
//!   set-user-ID. Such a program must not trust its environment variables.
//! - `Signals`: receives the signals to the parent, or on Windows their counterparts. On Unix, dropping this value
//!   restores the program's signal mask and signal dispositions, in the parent and in a forked child. In the parent,
//!   the kernel then delivers the unread signals to the program.
//! - `Signals::take()`: takes over the signals of [`Signal::SUPERVISED`] from the program. From then on, these signals
//!   do not take effect, but wait until `Signals::next()` reads them. Does not take over the signals that the program
//!   ignores, except SIGCHLD. Takes over SIGUSR2 only if it has its default disposition. Does not take over SIGCHLD and
//!   SIGUSR1 if all workers are threads. On Windows, takes over console events and named events. Requires the
//!   [`SupervisorLock`].
//! - `Signals::next()`: returns the next unread signal, or `None`. Never blocks. Skips a SIGTTIN or SIGTTOU that the
//!   kernel has sent because a background job used its terminal.
//! - `Signals::while_waiting()`: runs a closure that waits for signals. On Unix, this thread may block SIGTTIN and
//!   SIGTTOU at other times.
//! - `Signals::interrupts()`: returns whether a signal can interrupt a blocking system call, which then fails with
//!   `EINTR`.
//! - `Signals::end()`: ends the takeover. If a stop request is unread and the service has not stopped yet, sends the
//!   request to the program, or on Windows ends the program. Drops all other unread signals.
//! - `Signals::exit_notifier()`: returns a handle that notifies the parent when a child exits. On Unix, the kernel
//!   notifies the parent with SIGCHLD, and the handle only contains the program's signal mask.
//! - `ExitNotifier::with_program_mask()`: runs a closure that starts a program, so that it inherits this mask.
//! - `ChildHandle`: a child process that has not been reaped yet. Until the child is reaped, the system cannot give its
//!   pid to another process. Also sends signals to the child, or on Windows their counterparts.
//! - `peek_exited()`: returns the pid of a child that has exited, without reaping the child.
//! - `adopts_orphans()`: returns whether the kernel makes orphaned processes children of this process.
//! - `exited_children()`: returns the children that have exited, if the system lists them.
//! - `reap_stranger()`: reaps a child that is not a worker.
//! - `is_echild()`: returns whether an error means that other code in this process has already reaped the child.
//! - `signal_of()`: returns the signal that killed a child.
//! - `with_requests_blocked()`: runs a closure that starts a thread. In that thread, the signals that are requests to
//!   the parent are blocked, so the kernel delivers them to other threads.
//! - `with_signals_blocked()`: runs a closure that starts a thread. In that thread, all signals are blocked.
//! - `THREAD_CALL`: the name of the system's function that starts a thread, for error messages.
//! - `Shared`: memory that this process shares with its children. It consists of status slots: in its own slot, each
//!   worker process writes its messages to the parent. New memory is zeroed. Only `Shared` calls `map_slots()` and
//!   `unmap_slots()`.
//! - `Shared::unmap()` (Unix): unmaps the memory in a forked worker that must not access it. Frees no heap memory.
//! - `doorbell()`: returns a `Waker` and a `WakeReceiver`. All workers use the `Waker` to wake the parent, and the
//!   parent waits on the `WakeReceiver`.
//! - `StandardFds`: placeholders that keep descriptors of this crate off the numbers 0, 1 and 2 (Unix).
//! - `StopRequest`: receives stop requests in a worker. They come from the parent or from the terminal (Ctrl-C).
//! - `WakePipe`: ends a wait of `wait_for_socket()`. On Unix, `wake()` is async-signal-safe. Only [`Gate`] uses both.
//! - `close_in_place()` (Unix): closes a socket, but leaves another file under its number.
//! - `close_inherited()` (Unix): closes a forked child's copy of a descriptor whose owner the child forgets.
//! - `is_of_connection()`: returns whether accept(2) has failed because of one connection, so that the next call may
//!   succeed.
//! - `Lifeline`: ends the child, or sends SIGTERM to it, when the parent ends. The parent creates the lifeline, and the
//!   child activates it with `hold()`. The clones of a lifeline share its descriptors. The lifeline also works if the
//!   parent has ended before that call. On Unix, a child that then hangs is killed after the graceful timeout, if it
//!   has created a `StopRequest`.
//! - `usable_cpus()`: returns the CPUs on which this thread may run.
//! - `pin_to()`: pins this thread to one CPU.
//! - `ProcessName` (Linux, FreeBSD): the name of this process. Setting it does nothing on other systems.
//! - `share_port()` (Linux): lets several sockets use the same port (`SO_REUSEPORT`).
//! - `steer()` (Linux): installs a BPF program in the kernel. For each packet, the program chooses one of the sockets
//!   that share the port.
//! - `has_waiting()` (Linux): returns whether a socket has a connection to accept or data to receive.
//! - `queue_length()` (Linux): returns the number of connections that wait at a listening socket.
//! - `is_shut_down()` (Linux): returns whether shutdown(2) was called on a socket, in whichever process.
//! - `take_passed()` (Unix): takes over a descriptor that a service manager has passed.
//! - `is_listening()` (Unix): returns whether a socket listens.
//! - `Directory` (Unix): a directory that is opened once, with its files and locks. `FileHandle`: one of these files,
//!   opened without reading it. `FileStatus`: what kind of file it is.
//! - `LockedPidFile`: a file with a pid, which belongs to this process until the process exits. Other processes can
//!   find out which process has locked it. Fails with a `PidFileRefusal`.
//! - `limit_future_mode()` (Unix): limits the mode of the file that bind(2) creates for a socket. Linux only.
//! - `has_ended()`, `is_accepted()` (Unix): return whether the process that listens at the other end of a connection
//!   has ended, and whether a process has accepted the connection. Linux only.
//! - `drop_privileges()`: changes the user and the groups of this process so that the process cannot undo the change.
//!   Returns an error if any part of the change fails. Returns a sentence if other threads keep a part of the old
//!   rights that is not dangerous enough for an error.
//! - `own_identity()` (Unix): returns the user and the group of this process.
//! - `may_change_identity()` (Unix): returns whether workers may have the right to change their user or groups.
//! - `check_identity()` (Unix): returns an `IdentityRefusal` if workers cannot change to this user and these groups.
//!   The parent calls it before it starts a worker.
//! - `groups_of()` (Unix): returns the groups of a user.
//! - `other_epolls()` (Unix): returns the epoll instances that this process has open, except one. Returns none on other
//!   systems than Linux.
//! - `exit_now()`: ends this process. On Unix, no more code of the program runs. A worker calls this, for example, when
//!   the change of its user has failed halfway.
//! - `OomCounter` (Linux): counts the processes in this cgroup that the kernel has killed because memory ran out.
//! - `private_memory()`: returns how much memory the end of a process would free. The caller must know that the process
//!   was not reaped. `private_memory_bound()`: returns an upper bound of this number, which is cheaper on Linux.
//! - `process_limit()`: returns how many processes the system allows. On Windows, returns how many children one process
//!   can have.
//! - `process_times()`: returns the [`ProcessTimes`] of a child process. `process_clock()`: returns the
//!   time now, on the clock of [`ProcessTimes::started`].
//! - `CAN_UPGRADE`: whether a parent can be upgraded: whether it can execute another program and stay the parent of its
//!   workers.
//! - `NewProgram`: the program to which this process is upgraded, as one open file. Starts it as a candidate, or
//!   executes it in this process.
//! - `take_state()`: returns what the program before an upgrade has passed to this one. `TakenState`: its text and its
//!   descriptors.
//! - `take_candidate_fds()`: takes ownership of the descriptors that were passed to a candidate.
//! - `foreign_listeners()` (Linux): returns the listening sockets of this process that are not among the given ones.
//! - `monotonic_nanos()` (Linux): returns the time on a clock that all programs of this system share.
//! - `Shared::from_file()`, `Shared::from_passed()`, `WakeReceiver::from_fd()`, `Waker::from_fd()` (Linux): create
//!   these values from descriptors that another program has passed.
//! - `Signals::handover()`, `Signals::take_handed_over()` (Linux): pass unread signals and the program's signal mask to
//!   the program after an upgrade.
//! - `Channel` (Linux): receives text and descriptors from a candidate. `Message`: what it has received.
//! - `Lent`: a function that is available only while another function runs, in the same thread.
//! - `POLL_CALLS`: the names of the system calls that mio's `Poll` makes, for error messages. On Unix, also contains
//!   whether a forked child inherits the descriptor of a `Poll`.
//!
//! A function that fails returns a [`CallError`], which contains the name of the failed call. (`StopRequest::fd()`
//! returns an `io::Error` instead, because that method is public API.)
//!
//! Every descriptor is close-on-exec, and no handle is inheritable, except while this process starts a program. Each
//! descriptor and each handle has an owner, such as an `OwnedFd`, from the moment it is opened.

#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

mod gate;
mod lent;
#[cfg(not(target_os = "linux"))]
mod no_cgroup;
#[cfg(not(target_os = "linux"))]
mod no_queue_length;
#[cfg(any(not(target_os = "linux"), taskfork_portable))]
mod no_upgrade;
mod offer;
mod pid_file;
#[cfg_attr(target_os = "linux", path = "unix/process_name.rs")]
#[cfg_attr(target_os = "freebsd", path = "unix/process_title.rs")]
#[cfg_attr(not(any(target_os = "linux", target_os = "freebsd")), path = "no_process_name.rs")]
mod process_name;
#[cfg_attr(target_os = "linux", path = "unix/reuseport.rs")]
#[cfg_attr(not(target_os = "linux"), path = "no_reuseport.rs")]
mod reuseport;
mod shared;
#[cfg_attr(target_os = "linux", path = "unix/shutdown.rs")]
#[cfg_attr(not(target_os = "linux"), path = "no_shutdown.rs")]
mod shutdown;
mod supervisor_lock;
#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
mod unix;
#[cfg(windows)]
mod windows;

pub(crate) use gate::Gate;
pub(crate) use lent::Lent;
#[cfg(not(target_os = "linux"))]
pub(crate) use no_cgroup::OomCounter;
#[cfg(not(target_os = "linux"))]
pub(crate) use no_queue_length::queue_length;
#[cfg(any(not(target_os = "linux"), taskfork_portable))]
pub(crate) use no_upgrade::CAN_UPGRADE;
pub(crate) use offer::Secret;
pub(crate) use pid_file::PidFileRefusal;
pub(crate) use process_name::ProcessName;
pub(crate) use reuseport::{has_waiting, share_port, steer};
pub(crate) use shared::{Shared, StatusSlot, UnitCounts, WorkCounts};
pub(crate) use shutdown::is_shut_down;
pub(crate) use supervisor_lock::SupervisorLock;
#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

#[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "freebsd", windows)))]
compile_error!("taskfork supports Linux, macOS, FreeBSD and Windows");

/// Every system allows this many processes. So the caller need not read `process_limit()` for fewer.
pub(crate) const FEW_PROCESSES: usize = 256;

/// An error of the operating system, and the name of the call that failed.
#[derive(Debug)]
pub(crate) struct CallError {
    pub call: &'static str,
    pub source: io::Error,
}

impl CallError {
    pub fn new(call: &'static str, source: impl Into<io::Error>) -> CallError {
        CallError { call, source: source.into() }
    }

    /// Returns the error of the call that has just failed: `errno`, or on Windows the value of GetLastError. `call` is
    /// the name of that call.
    pub fn last(call: &'static str) -> CallError {
        CallError::new(call, io::Error::last_os_error())
    }
}

/// The times of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(any(target_os = "linux", windows)), allow(dead_code, reason = "the times are not read"))]
pub(crate) struct ProcessTimes {
    /// When the process was started, on the clock that `process_clock()` reads.
    pub started: Duration,
    /// The CPU time of all threads of the process, in user mode and in the kernel.
    pub cpu: Duration,
}

/// Where this process comes from, as recorded before `main`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// No parent of this program has started it, or this process has become a worker already.
    Independent,
    /// A parent has started it as a worker, with this text.
    Worker(&'static str),
    #[cfg_attr(not(unix), allow(dead_code, reason = "only a parent on Linux can be upgraded"))]
    /// The parent of a running service has started it as a candidate, with this text, because the parent is about to be
    /// upgraded to this program.
    Candidate(&'static str),
    /// It is a fork of a process that was started as a worker with this text and has not reached its call.
    #[cfg(unix)]
    Fork(&'static str),
    /// A process that was started as a worker and has not reached its call has executed the same program.
    Descendant,
    /// The origin is unknown, because this crate is in a library.
    Library,
}

/// The text that another process has passed to this one, as recorded before `main`. It describes the descriptors that
/// were passed with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassedText {
    pub text: &'static str,
    /// Whether this process is the parent that has opened the descriptors, with another program. `false`: the parent is
    /// another process.
    pub to_parent: bool,
}

/// The part of the memory, the descriptors and the sockets that a spawned worker owns.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub memory: Shared,
    pub waker: Owned,
    /// The lifeline, if it needs a descriptor. On Windows, the event that requests a stop.
    pub lifeline: Option<Owned>,
    pub sockets: Vec<OwnedSocket>,
}

/// The result of draining the doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    Empty,
    /// There may be more bytes to read.
    #[cfg_attr(not(unix), allow(dead_code, reason = "an event is reset as a whole"))]
    Partly,
    /// A worker has shut down the workers' end (shutdown(2)), so no worker can wake the parent any more.
    Broken,
}

/// An instruction of a classic BPF program. The fields have the same names as in `linux/filter.h`.
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
    /// `None` means that the process keeps its user.
    pub uid: Option<u32>,
    pub gid: u32,
    /// `None` means that the process keeps its supplementary groups.
    pub groups: Option<Vec<u32>>,
}

/// The reason why `fork` failed.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) enum ForkError {
    /// This process has more than one thread. Contains the number of its threads, if it is known.
    Threads(Option<usize>),
    Call(CallError),
}

#[cfg(unix)]
impl From<CallError> for ForkError {
    fn from(error: CallError) -> ForkError {
        ForkError::Call(error)
    }
}

/// The names of the system calls that mio's `Poll` makes, for error messages.
#[derive(Debug)]
pub(crate) struct PollCalls {
    pub create: &'static str,
    pub add: &'static str,
    pub wait: &'static str,
    /// Whether a forked child inherits the descriptor of the `Poll`, so that the child must close it. True for
    /// epoll(7), false for kqueue(2).
    #[cfg(unix)]
    pub is_inherited: bool,
}

/// The kind of workers that this process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerKind {
    /// Forked children. The parent must have only one thread.
    #[cfg(unix)]
    Fork,
    /// Child processes that run the parent's program again, from its beginning.
    Spawn,
    /// Threads of the parent process. All threads share the signals of the process, and the kernel does not report the
    /// exit of a thread with SIGCHLD.
    Thread,
}

/// A signal that this process has received, and its sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SignalInfo {
    pub signal: Signal,
    /// The pid of the process that sent the signal, if it is known. If the kernel has merged several signals into one,
    /// this is the pid of one of the senders. For SIGCHLD, this is the pid of a child that may have exited.
    pub sender: Option<u32>,
}

/// The signals that this crate uses. A supervisor takes over the first nine from the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Terminate,
    Interrupt,
    Quit,
    Hangup,
    TerminalInput,
    TerminalOutput,
    User1,
    #[cfg_attr(windows, allow(dead_code, reason = "Windows has no counterpart of this signal"))]
    User2,
    Child,
    Abort,
    Kill,
}

#[cfg(unix)]
impl Signal {
    pub const SUPERVISED: [Signal; 9] = [
        Signal::Terminate,
        Signal::Interrupt,
        Signal::Quit,
        Signal::Hangup,
        Signal::TerminalInput,
        Signal::TerminalOutput,
        Signal::User1,
        Signal::User2,
        Signal::Child,
    ];

    /// Returns whether this is SIGTTIN or SIGTTOU. The kernel sends these signals to all processes of a background job
    /// when the job reads from or writes to its terminal. A signal that the kernel has sent for this reason is not a
    /// request to the parent.
    pub fn is_job_control(self) -> bool {
        matches!(self, Signal::TerminalInput | Signal::TerminalOutput)
    }
}
