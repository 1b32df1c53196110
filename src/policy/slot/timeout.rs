//! Handles the deadlines of a slot, except those of heartbeats.

use std::mem;
use std::time::Instant;

use super::trial::after_trial;
use super::{BringUp, Slot, State};
use crate::event::Event;
use crate::exit::Process;
use crate::policy::child::{Child, Phase};
use crate::policy::deadline::Deadline;
use crate::policy::stopping_child::{KILL_TIMEOUT, StoppingPhase};
use crate::policy::{ActionQueue, Config};

/// The result of a passed deadline that the slot leaves to the policy.
#[derive(Debug)]
pub(in crate::policy) enum Timeout {
    /// A replacement has passed its probation, so the old process must be stopped. The value is the old process.
    Replaced(Child),
    NotReady(ReadyTimeout),
}

/// The kind of process that was not ready in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum ReadyTimeout {
    /// A process of a worker that the service began with. No process of this worker was ever ready.
    Startup(Process),
    /// A replacement, which the slot has killed. The old process still serves.
    Replacement,
    /// The process of the trial of an upgrade, which the slot has killed.
    Trial(Process),
    /// A process of an added worker. No process of this worker was ever ready. The slot has killed the process, and the
    /// worker is dropped.
    Addition,
}

impl Slot {
    /// Extends the deadlines that have passed, if the parent was paused or starved. Returns whether one was extended.
    pub fn extend_deadlines(&mut self, now: Instant, interrupted_at: Option<Instant>) -> bool {
        let mut is_extended = false;
        for child in &mut self.stopping {
            is_extended |= child.extend(now, interrupted_at);
        }
        for child in self.running_mut() {
            is_extended |= child.extend(now, interrupted_at);
        }
        is_extended
    }

    /// Handles every deadline of this slot that has passed.
    #[must_use]
    pub fn handle_timeout(&mut self, now: Instant, config: &Config, actions: &mut ActionQueue) -> Option<Timeout> {
        for child in &mut self.stopping {
            child.handle_timeout(now, config.graceful_timeout, actions);
        }
        for child in self.running_mut() {
            child.kill_overdue(now, actions);
            child.abandon_overdue(now, actions);
        }
        self.start_if_due(now, actions);
        let newest = self.newest()?;
        match newest.phase {
            Phase::Probation { ready_at } if ready_at.has_passed(now) => {
                self.become_ready(now, actions).map(Timeout::Replaced)
            }
            Phase::NotReady { late_at } if late_at.has_passed(now) => {
                actions.emit(Event::ReadyTimedOut { process: newest.process });
                self.handle_late(now, actions).map(Timeout::NotReady)
            }
            _ => None,
        }
    }

    /// Returns the processes that get SIGKILL at the next timeout, unless a core dump delays it.
    pub fn kills_due(&self, now: Instant) -> impl Iterator<Item = Process> {
        let stopping = self.stopping.iter().filter(move |child| child.is_kill_due(now)).map(|child| child.process);
        stopping.chain(self.running().filter(move |child| child.is_kill_due(now)).map(|child| child.process))
    }

    /// Delays the SIGKILL of the process with this generation.
    pub fn handle_core_dump(&mut self, now: Instant, generation: u32) {
        for child in self.stopping.iter_mut().filter(|child| child.is(generation)) {
            child.handle_core_dump(now);
        }
        for child in self.running_mut().filter(|child| child.is(generation)) {
            child.handle_core_dump(now);
        }
    }

    fn handle_late(&mut self, now: Instant, actions: &mut ActionQueue) -> Option<ReadyTimeout> {
        let state = mem::replace(&mut self.state, State::Stopped);
        let is_trial = mem::take(&mut self.is_trial);
        let (next, late) = match (state, self.bring_up) {
            (State::Running(child), _) if is_trial => {
                let process = child.process;
                self.kill_dropped(now, child, actions);
                (after_trial(now), Some(ReadyTimeout::Trial(process)))
            }
            (State::Replacing { old, new: Some(new) }, _) if is_trial => {
                let process = new.process;
                self.kill_dropped(now, *new, actions);
                (State::Running(old), Some(ReadyTimeout::Trial(process)))
            }
            (State::Running(child), BringUp::Added) => {
                self.kill_dropped(now, child, actions);
                (State::Stopped, Some(ReadyTimeout::Addition))
            }
            (State::Running(child), BringUp::Initial) => {
                let process = child.process;
                (State::Running(child), Some(ReadyTimeout::Startup(process)))
            }
            (State::Running(mut child), BringUp::Done) => {
                child.kill(now, actions);
                (State::Running(child), None)
            }
            (State::Replacing { old, new: Some(new) }, _) => {
                self.kill_dropped(now, *new, actions);
                (State::Running(old), Some(ReadyTimeout::Replacement))
            }
            (other, _) => (other, None),
        };
        self.state = next;
        late
    }

    fn kill_dropped(&mut self, now: Instant, mut child: Child, actions: &mut ActionQueue) {
        child.kill(now, actions);
        let phase = StoppingPhase::Killed { give_up_at: Some(Deadline::after(now, KILL_TIMEOUT)) };
        self.stopping.push(child.into_stopping(phase));
    }
}
