//! Returns what the policy knows about the workers, for the status of the service.

use std::time::Instant;

use super::slot::{BringUp, Slot};
use super::{Policy, Service};
use crate::exit::{Exit, Process};
use crate::status::{ServiceState, WorkerState};

/// What the policy knows about one process of a worker, or about a worker that waits for its next process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkerFacts {
    pub id: usize,
    pub generation: u32,
    /// `None` if the worker waits for the process.
    pub process: Option<Process>,
    pub state: WorkerState,
    pub since: Option<Instant>,
    pub ready_at: Option<Instant>,
    /// The time of the last heartbeat that the parent has seen. The start and the readiness of a process count as
    /// heartbeats.
    pub last_beat: Option<Instant>,
    /// The number of restarts of the worker after failures.
    pub restarts: u32,
    /// The last exit of an earlier process of the worker.
    pub last_exit: Option<Exit>,
}

impl WorkerFacts {
    /// Returns the facts about a worker that has had no process and waits for this one.
    pub fn waiting(id: usize, generation: u32) -> WorkerFacts {
        WorkerFacts {
            id,
            generation,
            process: None,
            state: WorkerState::Waiting,
            since: None,
            ready_at: None,
            last_beat: None,
            restarts: 0,
            last_exit: None,
        }
    }
}

impl Policy {
    /// Returns the facts about every process that has not exited and every worker that waits for a process, ordered by
    /// worker id. Abandoned processes are not included.
    pub fn facts(&self) -> impl Iterator<Item = WorkerFacts> {
        // The slots of workers that have not been started yet may be missing.
        let missing = (self.slots.len()..self.first_starts.end).map(|id| WorkerFacts::waiting(id, 0));
        self.slots.iter().flat_map(Slot::facts).chain(missing)
    }

    /// Returns the number of workers that should run and have a ready process.
    pub fn ready(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_wanted() && !slot.is_unavailable()).count()
    }

    /// Returns the number of restarts of all workers after failures.
    pub fn restarts(&self) -> u32 {
        self.slots.iter().fold(0, |sum, slot| sum.saturating_add(slot.report().restarts))
    }

    /// Returns whether heartbeats are expected from the workers.
    pub fn expects_beats(&self) -> bool {
        self.config.heartbeat_timeout.is_some()
    }

    /// Returns whether a worker that the service began with has not come up for the first time: its first process has
    /// not been started, or, with a ready timeout, none of its processes has been ready.
    fn is_starting(&self) -> bool {
        let needs_ready = self.config.ready_timeout.is_some();
        let is_coming = |slot: &Slot| slot.is_initial_start() || needs_ready && slot.bring_up() == BringUp::Initial;
        !self.first_starts.is_empty() || self.slots.iter().any(|slot| slot.is_wanted() && is_coming(slot))
    }
}

impl Service {
    /// Returns the state of the service. Pools that are stopping or have ended count only if all pools are.
    pub fn state(&self) -> ServiceState {
        if self.is_stopping() {
            ServiceState::Stopping
        } else if self.is_upgrading() {
            ServiceState::Upgrading
        } else if self.is_rolling() {
            ServiceState::RollingRestart
        } else if self.open().any(Policy::is_starting) {
            ServiceState::Starting
        } else {
            ServiceState::Running
        }
    }
}
