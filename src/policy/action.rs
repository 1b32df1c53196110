//! The actions that the policy asks of the supervisor, and the queue in which they wait.

use std::collections::VecDeque;

use crate::event::Event;
use crate::exit::Process;

/// A message from the parent to a worker process. The supervisor translates the message into a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerSignal {
    Stop,
    QuickStop,
    Abort,
    Kill,
    Reopen,
}

/// The next step that the supervisor must execute.
#[derive(Debug)]
pub(crate) enum Action {
    /// Start a process. The supervisor then calls [`Policy::handle_started`](super::Policy::handle_started) or
    /// [`Policy::handle_start_failed`](super::Policy::handle_start_failed).
    Start {
        id: usize,
        generation: u32,
    },
    Send {
        process: Process,
        message: WorkerSignal,
    },
    /// Count a process as exited although it has not exited. If the process still exists, the supervisor then calls
    /// [`Policy::handle_exited`](super::Policy::handle_exited) with [`Exit::Stale`](crate::Exit::Stale).
    Abandon {
        process: Process,
    },
    Emit(Event),
    /// Open the program on disk, and start the checker: a process of this program that checks the settings and exits.
    /// The supervisor then calls [`Service::handle_check_passed`](super::Service::handle_check_passed) or
    /// [`Service::handle_upgrade_failed`](super::Service::handle_upgrade_failed). Belongs to the service, so its pool
    /// has no meaning.
    Check,
    /// Kill the checker, and do not report its result. Belongs to the service.
    EndCheck,
    /// Start a process of the new program, as the trial worker of this pool. The supervisor then calls the methods that
    /// it calls after [`Action::Start`].
    StartTrial {
        id: usize,
        generation: u32,
    },
    /// Execute the new program. No start is in flight then, and no action is queued. If the execution fails, the
    /// supervisor calls [`Service::handle_upgrade_failed`](super::Service::handle_upgrade_failed). Belongs to the
    /// service.
    Exec,
}

#[derive(Debug, Default)]
pub(super) struct ActionQueue(VecDeque<Action>);

impl ActionQueue {
    /// Removes the next action and returns it.
    pub fn pop(&mut self) -> Option<Action> {
        self.0.pop_front()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Frees unused memory, because every page that the parent writes between two forks is copied for each worker
    /// (copy-on-write).
    pub fn shrink(&mut self) {
        self.0.shrink_to(64);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn push(&mut self, action: Action) {
        self.0.push_back(action);
    }

    pub fn send(&mut self, process: Process, message: WorkerSignal) {
        self.push(Action::Send { process, message });
    }

    pub fn abandon(&mut self, process: Process) {
        self.emit(Event::KillTimedOut { process });
        self.push(Action::Abandon { process });
    }

    pub fn emit(&mut self, event: Event) {
        self.push(Action::Emit(event));
    }

    /// Removes the starts that are still in the queue: those of worker `of`, or all if `of` is `None`.
    pub fn cancel_starts(&mut self, of: Option<usize>) {
        let is_cancelled = |action: &Action| match action {
            Action::Start { id, .. } | Action::StartTrial { id, .. } => of.is_none_or(|of| of == *id),
            _ => false,
        };
        self.0.retain(|action| !is_cancelled(action));
    }

    /// Removes [`Action::Check`]. Returns whether it was in the queue.
    pub fn cancel_check(&mut self) -> bool {
        let before = self.0.len();
        self.0.retain(|action| !matches!(action, Action::Check));
        self.0.len() < before
    }

    /// Removes the actions that a stop makes unnecessary, so that the stop does not wait for them.
    pub fn cancel_for_stop(&mut self) {
        self.cancel_starts(None);
        self.0.retain(|action| !matches!(action, Action::Send { message: WorkerSignal::Reopen, .. }));
    }
}
