//! The state of the policy that an upgrade hands over from the old program to the new one.
//!
//! All times are relative to the moment of the snapshot, because an `Instant` has no meaning in another program.

use std::time::Duration;

use super::Request;
use crate::exit::{Exit, Process};

/// The state of the policy of a service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServiceSnapshot {
    pub pools: Vec<PoolSnapshot>,
    /// Whether a rolling restart of all pools was requested and has not begun.
    pub roll_requested: bool,
    /// Whether one more upgrade was requested.
    pub upgrade_requested: bool,
}

/// The state of the policy of one pool.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PoolSnapshot {
    pub name: String,
    /// The number of workers in the settings, which scaling does not change.
    pub configured: usize,
    pub graceful_timeout: Duration,
    pub condition: PoolCondition,
    /// The slots of the workers, in the order of their ids.
    pub slots: Vec<SlotSnapshot>,
    /// The requests that were not executed, in the order in which they must be.
    pub requests: Vec<Request>,
}

/// Whether a pool goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolCondition {
    /// The pool runs.
    Open,
    /// The pool was asked to stop. Some of its processes have not exited yet.
    Stopping,
    /// The pool has ended without a failure, and stays so in the new program.
    Ended,
    /// The pool has failed and is optional. The new program starts it again.
    Failed,
}

/// The state of one worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SlotSnapshot {
    pub id: usize,
    /// The generation that the next process of this worker gets.
    pub generation: u32,
    /// Whether this worker counts as one of the workers that should run.
    pub is_wanted: bool,
    /// Whether a process of this worker has been ready.
    pub has_been_ready: bool,
    /// The number of processes that were started.
    pub processes: u32,
    /// The number of restarts after failures.
    pub restarts: u32,
    /// The last exit of a process.
    pub exit: Option<Exit>,
    /// Whether that exit was a failure after which the worker got no further process.
    pub failed: bool,
    /// The number of processes that SIGKILL has not ended, and that the parent has abandoned. They are not in
    /// `children`.
    pub abandoned: usize,
    pub children: Vec<ChildSnapshot>,
}

/// The state of one process that has not exited.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChildSnapshot {
    pub process: Process,
    pub age: Duration,
    /// The time since the process became ready. `None` if it is not ready yet, or was not ready before its stop.
    pub ready_for: Option<Duration>,
    /// The time since the last heartbeat.
    pub silent_for: Duration,
    /// The heartbeat timeout with which the process was started. The new program may have another one, but a process of
    /// the old program does not know it.
    pub heartbeat_timeout: Option<Duration>,
    pub role: ChildRole,
}

/// What the parent expects of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildRole {
    /// The process serves its worker id.
    Serving,
    /// The process runs the new program, and is ready. It takes over from the serving process of its id.
    Trial,
    /// The process must report that it is ready.
    NotReady { late_in: Duration },
    /// The process counts as ready if it still lives then.
    Probation { ready_in: Duration },
    /// The process has got SIGABRT.
    Aborting { kill_in: Duration },
    /// The process serves the connections that are left in its own queue.
    Draining { stop_in: Duration, last_in: Duration },
    /// The process was asked to stop.
    Stopping { kill_in: Duration },
    /// The process has got SIGKILL. `None` if the parent does not wait for its exit any more.
    Killed { give_up_in: Option<Duration> },
}
