//! Removes an exited process from its slot.

use std::mem;
use std::time::{Duration, Instant};

use super::trial::after_trial;
use super::{Slot, StartReason, State};
use crate::event::RecycleReason;
use crate::exit::{Exit, Process};
use crate::policy::ExitedProcess;

/// The facts about an exited process from which the policy decides what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct ExitedChild {
    pub process: Process,
    pub role: ExitedRole,
    pub uptime: Duration,
    pub epoch: u64,
    /// Whether the process had reached the call that starts the service.
    pub reached_call: bool,
    /// Whether the process had got a stop request that neither the parent nor the terminal made.
    pub stop_noted: bool,
    /// Whether the process had called a function that starts workers.
    pub nested_call: bool,
    /// The reason that the process itself had for its replacement, if any.
    pub worn_out: Option<RecycleReason>,
    /// Whether the process served its id but was not ready yet.
    pub was_starting: bool,
    /// Whether the parent had aborted or killed the process.
    pub was_given_up: bool,
}

/// The role that a process had when it exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum ExitedRole {
    /// The process no longer served its worker id. The parent had asked it to stop or had killed it.
    Stopping,
    /// The process got no new connections, and the parent had not asked it to stop yet.
    Draining,
    /// The process served the worker id or was still starting. No replacement had been requested.
    Current,
    /// The process was being replaced. Its replacement will serve once it is ready.
    Outgoing,
    /// The process was a replacement and was not ready yet. The old process still serves.
    Replacement,
    /// The process was the trial of an upgrade. If no other process serves, the worker starts its next one at once.
    Trial,
}

impl Slot {
    /// Removes the exited process from the slot. Returns `None` if the slot has no such process.
    pub fn handle_exited(&mut self, now: Instant, exited: &ExitedProcess) -> Option<ExitedChild> {
        let &ExitedProcess { process: Process { generation, .. }, exit, reached_call, .. } = exited;
        let &ExitedProcess { stop_noted, nested_call, .. } = exited;
        self.note_uptime(now);
        let exited = ExitedChild { reached_call, stop_noted, nested_call, ..self.take_out(now, generation)? };
        // The trial runs another program.
        self.reached_call |= reached_call && exited.role != ExitedRole::Trial;
        self.abandoned += usize::from(exit == Exit::Stale && !exited.process.is_thread());
        // A process that exits in the role of a replacement has never served, so its exit is not reported.
        let has_served = !matches!(exited.role, ExitedRole::Replacement | ExitedRole::Trial);
        if has_served && (self.report.exit.is_none() || is_newer(generation, self.reported_generation)) {
            self.report.exit = Some(exit);
            self.reported_generation = generation;
        }
        Some(exited)
    }

    /// Handles the exit of a process that was abandoned before.
    pub fn handle_abandoned_exited(&mut self) {
        self.abandoned = self.abandoned.saturating_sub(1);
    }

    fn take_out(&mut self, now: Instant, generation: u32) -> Option<ExitedChild> {
        if let Some(at) = self.stopping.iter().position(|child| child.is(generation)) {
            let child = self.stopping.swap_remove(at);
            let role = if child.is_draining() { ExitedRole::Draining } else { ExitedRole::Stopping };
            let uptime = now.saturating_duration_since(child.since);
            return Some(ExitedChild {
                process: child.process,
                role,
                uptime,
                epoch: 0,
                reached_call: true,
                stop_noted: false,
                nested_call: false,
                worn_out: None,
                was_starting: false,
                was_given_up: false,
            });
        }
        let (next, role, child) = match mem::replace(&mut self.state, State::Stopped) {
            State::Running(child) if child.is(generation) && mem::take(&mut self.is_trial) => {
                (after_trial(now), ExitedRole::Trial, child)
            }
            State::Running(child) if child.is(generation) => (State::Stopped, ExitedRole::Current, child),
            State::Replacing { old, new: Some(new) } if new.is(generation) => {
                let is_trial = mem::take(&mut self.is_trial);
                let role = if is_trial { ExitedRole::Trial } else { ExitedRole::Replacement };
                (State::Running(old), role, *new)
            }
            State::Replacing { old, new } if old.is(generation) => {
                let reason = if self.is_trial { StartReason::UncountedRestart } else { StartReason::Replacement };
                let starting = State::Starting { reason };
                (new.map_or(starting, |new| State::Running(*new)), ExitedRole::Outgoing, old)
            }
            other => {
                self.state = other;
                return None;
            }
        };
        self.state = next;
        let uptime = now.saturating_duration_since(child.since);
        let was_given_up = child.was_given_up();
        Some(ExitedChild {
            process: child.process,
            role,
            uptime,
            epoch: child.epoch,
            reached_call: true,
            stop_noted: false,
            nested_call: false,
            worn_out: child.worn_out,
            was_starting: child.is_starting(),
            was_given_up,
        })
    }
}

/// Returns whether a process of `generation` was started after one of `than`. Generations wrap around, so the smaller
/// distance counts.
fn is_newer(generation: u32, than: u32) -> bool {
    (generation.wrapping_sub(than) as i32) > 0
}
