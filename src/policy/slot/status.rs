//! Returns the facts about the processes of a slot, for the status of the service.

use super::{Slot, State};
use crate::policy::child::{Child, Phase};
use crate::policy::status::WorkerFacts;
use crate::policy::stopping_child::{StoppingChild, StoppingPhase};
use crate::status::WorkerState;

impl Slot {
    /// Returns the facts about each process of this worker, and about its next process if no process serves the id or
    /// is about to do so.
    pub fn facts(&self) -> impl Iterator<Item = WorkerFacts> {
        let stopping = self.stopping.iter().map(|child| self.of_stopping(child));
        let running = self.running().map(|child| self.of_running(child));
        let waits = matches!(self.state, State::Backoff { .. } | State::Starting { .. });
        let waiting = waits.then(|| self.with_history(WorkerFacts::waiting(self.id, self.generation)));
        stopping.chain(running).chain(waiting)
    }

    fn of_running(&self, child: &Child) -> WorkerFacts {
        let state = match child.phase {
            Phase::NotReady { .. } | Phase::Probation { .. } => WorkerState::Starting,
            Phase::Ready => WorkerState::Ready,
            Phase::Aborting { .. } | Phase::Killed { .. } => WorkerState::Stopping,
        };
        let facts = WorkerFacts::waiting(self.id, child.process.generation);
        self.with_history(WorkerFacts {
            process: Some(child.process),
            state,
            since: Some(child.since),
            ready_at: child.ready_at,
            last_beat: Some(child.last_beat),
            ..facts
        })
    }

    fn of_stopping(&self, child: &StoppingChild) -> WorkerFacts {
        let state = match child.phase {
            StoppingPhase::Draining { .. } => WorkerState::Draining,
            StoppingPhase::Stopping { .. } | StoppingPhase::Killed { .. } => WorkerState::Stopping,
        };
        let facts = WorkerFacts::waiting(self.id, child.process.generation);
        self.with_history(WorkerFacts {
            process: Some(child.process),
            state,
            since: Some(child.since),
            ready_at: child.ready_at,
            last_beat: Some(child.last_beat),
            ..facts
        })
    }

    fn with_history(&self, facts: WorkerFacts) -> WorkerFacts {
        WorkerFacts { restarts: self.report.restarts, last_exit: self.report.exit, ..facts }
    }
}
