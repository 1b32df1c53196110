//! Taking an exited process out of its slot.

use std::mem;
use std::time::{Duration, Instant};

use super::{Slot, StartReason, State};
use crate::exit::{Exit, Process};

/// A process that has exited, as far as the verdict depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct ExitedChild {
    pub process: Process,
    pub role: ExitedRole,
    pub uptime: Duration,
    pub epoch: u64,
    /// The parent had aborted or killed it.
    pub was_given_up: bool,
}

/// The role that a process had when it exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum ExitedRole {
    /// It had been told to stop.
    Stopping,
    /// It got no new connections, and had not been told to stop yet.
    Draining,
    /// It served the id, and no replacement had been started.
    Current,
    /// It served the id, and its replacement has its place now.
    Outgoing,
    /// It was a replacement. The old process still serves.
    Replacement,
}

impl Slot {
    /// Takes out the process of this generation. Returns `None` if there is none.
    pub fn handle_exited(&mut self, now: Instant, generation: u32, exit: Exit) -> Option<ExitedChild> {
        self.note_uptime(now);
        let exited = self.take_out(now, generation)?;
        // A replacement that failed has never served.
        let has_served = exited.role != ExitedRole::Replacement;
        if has_served && (self.report.exit.is_none() || generation > self.reported_generation) {
            self.report.exit = Some(exit);
            self.reported_generation = generation;
        }
        Some(exited)
    }

    fn take_out(&mut self, now: Instant, generation: u32) -> Option<ExitedChild> {
        if let Some(at) = self.stopping.iter().position(|child| child.is(generation)) {
            let child = self.stopping.swap_remove(at);
            let role = if child.is_draining() { ExitedRole::Draining } else { ExitedRole::Stopping };
            let uptime = now.saturating_duration_since(child.since);
            return Some(ExitedChild { process: child.process, role, uptime, epoch: 0, was_given_up: false });
        }
        let (next, role, child) = match mem::replace(&mut self.state, State::Stopped) {
            State::Running(child) if child.is(generation) => (State::Stopped, ExitedRole::Current, child),
            State::Replacing { old, new: Some(new) } if new.is(generation) => {
                (State::Running(old), ExitedRole::Replacement, *new)
            }
            State::Replacing { old, new } if old.is(generation) => {
                let starting = State::Starting { reason: StartReason::Replacement };
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
        Some(ExitedChild { process: child.process, role, uptime, epoch: child.epoch, was_given_up })
    }
}
