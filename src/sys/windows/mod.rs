//! The `sys` layer for Windows. Windows has no forks and no signals. So this layer starts programs instead of forking,
//! and uses events, a job object and console events instead of signals.

mod child;
mod console;
mod doorbell;
mod event;
mod handle;
mod inherited_handles;
mod lifeline;
mod pid_file;
mod private_bytes;
mod process_times;
mod program;
mod setup;
mod shm;
mod signal;
mod start_offer;
mod stop_request;
mod wake_pipe;
mod watch;

use super::{CallError, PollCalls};
pub(crate) use child::{
    ChildHandle, adopts_orphans, exited_children, is_echild, peek_exited, reap_stranger, signal_of,
};
pub(crate) use doorbell::{WakeReceiver, Waker, doorbell};
pub(crate) use inherited_handles::{BorrowedSocket, InheritedFds, Number, Owned, OwnedSocket, is_same_socket};
pub(crate) use lifeline::Lifeline;
pub(crate) use pid_file::LockedPidFile;
pub(crate) use private_bytes::{private_memory, private_memory_bound};
pub(crate) use process_times::{process_clock, process_times};
pub(crate) use program::{Program, is_secure_exec, parent_id};
pub(crate) use setup::{drop_privileges, exit_now, pin_to, usable_cpus};
pub(super) use shm::{map_slots, unmap_slots};
pub(crate) use signal::{ExitNotifier, Signals};
pub(crate) use start_offer::{become_independent, copy_passed, origin, passed_text, take_inherited, was_spawned};
pub(crate) use stop_request::StopRequest;
pub(super) use wake_pipe::{WakePipe, wait_for_socket};
pub(crate) use wake_pipe::{close_in_place, is_of_connection};

/// Does nothing, because on Windows no other handle takes the place of a standard handle.
#[derive(Debug)]
pub(crate) struct StandardFds;

impl StandardFds {
    pub fn reserve() -> Result<StandardFds, super::CallError> {
        Ok(StandardFds)
    }
}

pub(crate) const POLL_CALLS: PollCalls = PollCalls {
    create: "CreateIoCompletionPort",
    add: "PostQueuedCompletionStatus",
    wait: "GetQueuedCompletionStatusEx",
};

/// The name of the call that starts a thread, for error messages.
pub(crate) const THREAD_CALL: &str = "CreateThread";

/// Runs the closure. Does not block anything, because Windows has no signals.
pub(crate) fn with_requests_blocked<T>(run: impl FnOnce() -> T) -> Result<T, CallError> {
    Ok(run())
}

/// Runs the closure. Does not block anything, because Windows has no signals.
pub(crate) fn with_signals_blocked<T>(run: impl FnOnce() -> T) -> Result<T, CallError> {
    Ok(run())
}

/// Does nothing, because Windows has no forks.
pub(crate) fn watch_forks() {}

/// Returns `false`, because Windows has no forks.
#[inline]
pub(crate) fn is_fork() -> bool {
    false
}

/// Returns how many children one process can have. A process can have 2^24 handles, and the parent holds two handles
/// for each child.
pub(crate) fn process_limit() -> usize {
    1 << 23
}
