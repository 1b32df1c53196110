//! Decides what follows from the exit of a process. The caller then acts on this decision.

use super::slot::{BringUp, ExitedChild, ExitedRole, Slot};
use super::{Config, RestartPolicy};
use crate::event::{RecycleReason, RestartReason};
use crate::exit::Exit;

/// The decision about an exit that the policy has not requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Stop the pool, because a worker cannot start, has called a function that starts workers, or has an exit
    /// status that shows that a restart would not help.
    StopPool,
    /// Stop the pool, because the worker has failed too often in a row and no process of the pool has lived long
    /// enough.
    CrashLoop,
    /// Drop the worker, because it was added while the service ran and cannot start, or has called a function that
    /// starts workers.
    DropAddition,
    /// Start no process, because the replacement serves already or will serve once it is ready.
    ReplacementTakesOver,
    /// Start no further process of this worker.
    Finished { failed: bool },
    /// Give up the connections that are left in the queue of a removed worker, because no further process may be
    /// started that could serve them.
    AbandonDrain,
    /// Stop the pool, because the restart limit allows no further restart.
    LimitReached,
    /// Start the next process of the worker.
    Restart(RestartReason),
    /// Start no process, because the worker does not need one.
    NothingMissing,
}

/// The effect of one more failure of a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// Whether the limit allows one more restart.
    pub restarts_left: bool,
    /// Whether the worker has failed so often in a row that one more failure is a startup failure.
    pub crash_loops: bool,
}

impl Outlook {
    fn allows_restart(self) -> bool {
        self.restarts_left && !self.crash_loops
    }
}

/// Decides what to do about the exit of a process. `slot` is the slot from which the process has already been removed.
pub(super) fn verdict(exited: &ExitedChild, exit: Exit, slot: &Slot, config: &Config, outlook: Outlook) -> Verdict {
    match exited.role {
        ExitedRole::Current | ExitedRole::Outgoing => judge_serving(exited, exit, slot, config, outlook),
        ExitedRole::Draining => judge_draining(exited, exit, slot, config, outlook),
        ExitedRole::Stopping | ExitedRole::Replacement | ExitedRole::Trial => Verdict::NothingMissing,
    }
}

fn judge_serving(exited: &ExitedChild, exit: Exit, slot: &Slot, config: &Config, outlook: Outlook) -> Verdict {
    // A process that the parent aborted or killed has failed, whatever its exit status. So has a process that has not
    // reached the call: for example, the program may have become a daemon, and then its process exits with status 0.
    let failed = !exit.is_success() || exited.was_given_up || !exited.reached_call;
    let reason = restart_reason(failed, exited, config.restart_policy);
    // Ignores the status of a process that the parent aborted or killed: on Windows the parent itself sets that status.
    let is_fatal = is_fatal(exit, config) && !exited.was_given_up;
    let never_ready = config.ready_timeout.is_some() && slot.bring_up() != BringUp::Done;
    let never_reached_call = !exited.reached_call && !slot.reached_call();
    let is_normal =
        matches!(reason, Some(RestartReason::NormalExit | RestartReason::Retired | RestartReason::Requests));
    let cannot_start = never_reached_call || never_ready && (failed || is_normal);
    if is_fatal {
        return Verdict::StopPool;
    }
    let is_added = slot.bring_up() == BringUp::Added;
    let startup_failure = if is_added { Verdict::DropAddition } else { Verdict::StopPool };
    if cannot_start {
        return startup_failure;
    }
    // The next process would make the same call.
    let would_nest_again =
        exited.nested_call && matches!(reason, Some(RestartReason::Failure | RestartReason::NormalExit));
    match reason {
        _ if exited.role == ExitedRole::Outgoing && (failed || reason.is_some()) => Verdict::ReplacementTakesOver,
        None => Verdict::Finished { failed },
        _ if would_nest_again && slot.is_queue_draining() => Verdict::AbandonDrain,
        _ if would_nest_again => startup_failure,
        Some(reason) if !reason.is_counted() => Verdict::Restart(reason),
        Some(reason) if outlook.allows_restart() => Verdict::Restart(reason),
        _ if slot.is_queue_draining() => Verdict::AbandonDrain,
        _ if !outlook.restarts_left => Verdict::LimitReached,
        _ if is_added => Verdict::DropAddition,
        _ => Verdict::CrashLoop,
    }
}

/// Returns the reason for a restart after an exit that the parent has not requested, or `None` if none follows.
fn restart_reason(failed: bool, exited: &ExitedChild, policy: RestartPolicy) -> Option<RestartReason> {
    match policy {
        RestartPolicy::Never => None,
        _ if failed => Some(RestartReason::Failure),
        _ if exited.stop_noted => Some(RestartReason::StopRequest),
        _ => match exited.worn_out {
            Some(RecycleReason::Retired) => Some(RestartReason::Retired),
            Some(RecycleReason::Requests { .. }) => Some(RestartReason::Requests),
            _ => (policy == RestartPolicy::Always).then_some(RestartReason::NormalExit),
        },
    }
}

/// Decides about the exit of a process that only served the connections left in the queue of a removed worker.
fn judge_draining(exited: &ExitedChild, exit: Exit, slot: &Slot, config: &Config, outlook: Outlook) -> Verdict {
    let is_served = !slot.is_stopped() || slot.has_draining();
    if exit.is_success() && exited.reached_call || is_served {
        return Verdict::NothingMissing;
    }
    let may_start = (exited.reached_call || slot.reached_call()) && !exited.nested_call;
    let may_restart = may_start && config.restart_policy != RestartPolicy::Never && !is_fatal(exit, config);
    if may_restart && outlook.allows_restart() {
        Verdict::Restart(RestartReason::Failure)
    } else {
        Verdict::Finished { failed: true }
    }
}

fn is_fatal(exit: Exit, config: &Config) -> bool {
    matches!(exit, Exit::Code(code) if config.fatal_exit_codes.contains(&code))
}
