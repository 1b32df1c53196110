//! What follows from the exit of a process: a decision, and no action.

use super::slot::{BringUp, ExitedChild, ExitedRole, Slot};
use super::{Config, RestartPolicy};
use crate::exit::Exit;

/// What to do about an exit that the policy did not ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The service cannot start, or the exit status says that no restart would help: stop it.
    StopService,
    /// An added id cannot be brought up: drop the id.
    DropAddition,
    /// Its replacement has its place already, or will have it.
    ReplacementTakesOver,
    /// No process will follow.
    Finished { failed: bool },
    /// No restart is left to serve what is in the queue of an id that is not needed any more: leave it.
    AbandonDrain,
    /// No restart is left: stop the service.
    LimitReached,
    /// Start the next process of the id.
    Restart,
    /// The id is served, or will be, so nothing is missing.
    NothingMissing,
}

/// Judges the exit of a process that was not told to stop.
///
/// `slot` is the slot after the process was taken out of it. `restarts_left` is whether the limit allows one more restart.
pub(super) fn verdict(exited: &ExitedChild, exit: Exit, slot: &Slot, config: &Config, restarts_left: bool) -> Verdict {
    match exited.role {
        ExitedRole::Current | ExitedRole::Outgoing => judge_serving(exited, exit, slot, config, restarts_left),
        ExitedRole::Draining => judge_draining(exit, slot, config, restarts_left),
        ExitedRole::Stopping | ExitedRole::Replacement => Verdict::NothingMissing,
    }
}

fn judge_serving(exited: &ExitedChild, exit: Exit, slot: &Slot, config: &Config, restarts_left: bool) -> Verdict {
    // A process that the parent aborted or killed has failed, whatever its exit status.
    let failed = !exit.is_success() || exited.was_given_up;
    let wants_restart = match config.restart_policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => failed,
        RestartPolicy::Never => false,
    };
    // On Windows the parent itself sets the exit status of a process that it kills.
    let is_fatal = is_fatal(exit, config) && !exited.was_given_up;
    let never_ready = config.ready_timeout.is_some() && slot.bring_up() != BringUp::Done;
    let cannot_start = never_ready && (failed || wants_restart);
    if is_fatal {
        return Verdict::StopService;
    }
    if cannot_start {
        let is_added = slot.bring_up() == BringUp::Added;
        return if is_added { Verdict::DropAddition } else { Verdict::StopService };
    }
    match exited.role {
        ExitedRole::Outgoing if failed || wants_restart => Verdict::ReplacementTakesOver,
        _ if !wants_restart => Verdict::Finished { failed },
        _ if restarts_left => Verdict::Restart,
        _ if slot.is_queue_draining() => Verdict::AbandonDrain,
        _ => Verdict::LimitReached,
    }
}

/// Judges the exit of a process that was serving what was left in the queue of an id that is not needed any more.
fn judge_draining(exit: Exit, slot: &Slot, config: &Config, restarts_left: bool) -> Verdict {
    let is_served = !slot.is_stopped() || slot.has_draining();
    if exit.is_success() || is_served {
        return Verdict::NothingMissing;
    }
    let may_restart = config.restart_policy != RestartPolicy::Never && !is_fatal(exit, config);
    if may_restart && restarts_left { Verdict::Restart } else { Verdict::Finished { failed: true } }
}

fn is_fatal(exit: Exit, config: &Config) -> bool {
    matches!(exit, Exit::Code(code) if config.fatal_exit_codes.contains(&code))
}
