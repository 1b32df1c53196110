//! The `sys` layer for Linux, macOS and FreeBSD. `cfg` attributes select the code that differs between these systems.

#[cfg_attr(target_os = "linux", path = "affinity.rs")]
#[cfg_attr(not(target_os = "linux"), path = "no_affinity.rs")]
mod affinity;
#[cfg(target_os = "linux")]
mod cgroup;
mod descriptor;
mod directory;
mod doorbell;
#[cfg_attr(target_os = "linux", path = "epoll.rs")]
#[cfg_attr(not(target_os = "linux"), path = "no_epoll.rs")]
mod epoll;
mod fork;
mod fork_watch;
mod guarded_socket;
mod identity;
mod inherited_fds;
mod lifeline;
mod limit;
mod main_program;
mod mark;
mod orphan_timer;
mod passed_socket;
mod peer;
mod pid_file;
mod poll;
#[cfg_attr(target_os = "macos", path = "memory_footprint.rs")]
#[cfg_attr(target_os = "freebsd", path = "resident_memory.rs")]
mod private_memory;
#[cfg_attr(target_os = "macos", path = "rusage_times.rs")]
#[cfg_attr(target_os = "freebsd", path = "kinfo_times.rs")]
mod process_times;
mod program;
#[cfg(target_os = "linux")]
mod queue_length;
mod recorded;
mod shm;
mod signal;
#[cfg(target_os = "linux")]
mod socket_diag;
mod start_offer;
mod start_record;
mod stop_request;
mod threads;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
mod upgrade;
mod wait;
mod wake_pipe;

use super::PollCalls;
pub(crate) use affinity::{pin_to, usable_cpus};
#[cfg(target_os = "linux")]
pub(crate) use cgroup::OomCounter;
pub(crate) use descriptor::{StandardFds, close_inherited};
pub(crate) use directory::{Directory, FileHandle, FileStatus, limit_future_mode};
pub(crate) use doorbell::{WakeReceiver, Waker, doorbell};
pub(crate) use epoll::{OpenEpoll, other_epolls};
pub(crate) use fork::{ChildPanicGuard, Forked, exit_now, flush_output, fork};
pub(crate) use fork_watch::{is_fork, watch_forks};
pub(crate) use identity::{
    IdentityPart, IdentityRefusal, check_identity, drop_privileges, groups_of, may_change_identity, own_identity,
};
pub(crate) use inherited_fds::{BorrowedSocket, InheritedFds, Number, Owned, OwnedSocket, is_same_socket};
pub(crate) use lifeline::Lifeline;
pub(crate) use limit::process_limit;
pub(crate) use passed_socket::{is_listening, take_passed};
pub(crate) use peer::{has_ended, is_accepted};
pub(crate) use pid_file::LockedPidFile;
pub(crate) use private_memory::{private_memory, private_memory_bound};
pub(crate) use process_times::{process_clock, process_times};
pub(crate) use program::{Program, is_secure_exec, parent_id, take_env_var};
#[cfg(target_os = "linux")]
pub(crate) use queue_length::queue_length;
pub(super) use shm::{map_slots, unmap_slots};
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(crate) use signal::SignalHandover;
pub(crate) use signal::{ExitNotifier, Signals, with_requests_blocked, with_signals_blocked};
pub(crate) use start_offer::{become_independent, copy_passed, origin, passed_text, take_inherited, was_spawned};
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(crate) use start_offer::{is_in_environment, take_candidate_fds};
pub(crate) use stop_request::StopRequest;
pub(crate) use threads::{Threads, thread_count};
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(crate) use upgrade::{
    CAN_UPGRADE, Channel, Message, NewProgram, TakenState, foreign_listeners, monotonic_nanos, take_state,
};
pub(crate) use wait::{ChildHandle, adopts_orphans, exited_children, is_echild, peek_exited, reap_stranger, signal_of};
pub(super) use wake_pipe::{WakePipe, wait_for_socket};
pub(crate) use wake_pipe::{close_in_place, is_of_connection};

/// The name of the call that starts a thread, for error messages.
pub(crate) const THREAD_CALL: &str = "pthread_create";

pub(crate) const POLL_CALLS: PollCalls = if cfg!(target_os = "linux") {
    PollCalls { create: "epoll_create1", add: "epoll_ctl", wait: "epoll_wait", is_inherited: true }
} else {
    PollCalls { create: "kqueue", add: "kevent", wait: "kevent", is_inherited: false }
};
