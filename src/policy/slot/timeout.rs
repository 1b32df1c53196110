//! The deadlines of a slot, other than those of heartbeats.

use std::mem;
use std::time::Instant;

use super::{BringUp, Slot, State};
use crate::event::Event;
use crate::exit::Process;
use crate::policy::child::{Child, Phase};
use crate::policy::stopping_child::{StoppingChild, StoppingPhase};
use crate::policy::{ActionQueue, Config};

/// The effect of a deadline that the policy must act on.
#[derive(Debug)]
pub(in crate::policy) enum Timeout {
    /// A replacement has passed its probation. This is the old process.
    Replaced(Child),
    NotReady(ReadyTimeout),
}

/// Which process was not ready in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum ReadyTimeout {
    /// One that is there from the beginning, and no process of its id was ever ready.
    Startup(Process),
    /// A replacement. It was killed, and the old process serves.
    Replacement,
    /// One of an added id of which no process was ready. It was killed, and the id is dropped.
    Addition,
}

impl Slot {
    /// Handles every deadline of this slot that is due.
    #[must_use]
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        interrupted_at: Option<Instant>,
        config: &Config,
        actions: &mut ActionQueue,
    ) -> Option<Timeout> {
        for child in &mut self.stopping {
            child.handle_timeout(now, config.graceful_timeout, actions);
        }
        self.running_mut().for_each(|child| child.kill_overdue(now, actions));
        self.start_if_due(now, actions);
        let newest = self.newest()?;
        match newest.phase {
            Phase::Probation { ready_at } if ready_at <= now => self.become_ready(now, actions).map(Timeout::Replaced),
            Phase::NotReady { late_at } if late_at <= now => {
                if config.ready_timeout.is_some_and(|timeout| newest.extend(now, timeout, interrupted_at)) {
                    return None;
                }
                actions.emit(Event::ReadyTimedOut { process: newest.process });
                self.handle_late(actions).map(Timeout::NotReady)
            }
            _ => None,
        }
    }

    fn handle_late(&mut self, actions: &mut ActionQueue) -> Option<ReadyTimeout> {
        let state = mem::replace(&mut self.state, State::Stopped);
        let (next, late) = match (state, self.bring_up) {
            (State::Running(child), BringUp::Added) => {
                self.kill_dropped(child, actions);
                (State::Stopped, Some(ReadyTimeout::Addition))
            }
            (State::Running(child), BringUp::Initial) => {
                let process = child.process;
                (State::Running(child), Some(ReadyTimeout::Startup(process)))
            }
            (State::Running(mut child), BringUp::Done) => {
                child.kill(actions);
                (State::Running(child), None)
            }
            (State::Replacing { old, new: Some(new) }, _) => {
                self.kill_dropped(*new, actions);
                (State::Running(old), Some(ReadyTimeout::Replacement))
            }
            (other, _) => (other, None),
        };
        self.state = next;
        late
    }

    fn kill_dropped(&mut self, mut child: Child, actions: &mut ActionQueue) {
        child.kill(actions);
        let Child { process, since, .. } = child;
        self.stopping.push(StoppingChild { process, since, phase: StoppingPhase::Killed });
    }
}
