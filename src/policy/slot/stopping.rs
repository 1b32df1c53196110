//! How those go who are not wanted any more.

use std::time::{Duration, Instant};

use super::{Slot, State};
use crate::policy::child::{Child, Phase};
use crate::policy::{ActionQueue, Config, WorkerSignal};

impl Slot {
    /// Nobody is wanted any more: who lives is asked to go, and killed at `kill_at`. Who has been asked already is asked
    /// again only by `message` of another kind, and keeps the earlier deadline.
    pub fn stop_now(&mut self, message: WorkerSignal, kill_at: Instant, actions: &mut ActionQueue) {
        self.clear(actions);
        for child in &mut self.stopping {
            if message == WorkerSignal::QuickStop || !matches!(child.phase, Phase::Stopping { .. }) {
                child.ask(message, kill_at, actions);
            }
        }
    }

    /// The same, but who serves is asked later, when he has had the time to finish what came to him before.
    pub fn drain(&mut self, now: Instant, config: &Config, actions: &mut ActionQueue) {
        self.note_uptime(now);
        let kill_at = now + config.graceful_timeout;
        let Some(drain) = config.drain else { return self.stop_now(WorkerSignal::Stop, kill_at, actions) };
        if self.is_to_be_served(config) {
            (self.passing, self.owed) = (true, true);
            return;
        }
        self.clear(actions);
        for child in self.stopping.iter_mut().filter(|child| !matches!(child.phase, Phase::Stopping { .. })) {
            match child.phase {
                Phase::Ready => child.phase = Phase::Draining { stop_at: now + drain, last: kill_at },
                Phase::Draining { .. } => {}
                _ => child.ask(WorkerSignal::Stop, kill_at, actions),
            }
        }
    }

    /// What has come to this id waits for somebody who is still to come, or to become ready, or to be replaced.
    fn is_to_be_served(&self, config: &Config) -> bool {
        let is_coming = match &self.state {
            State::Backoff { .. } | State::Starting => true,
            State::Running(child) => child.phase != Phase::Ready,
            State::Stopped | State::Replacing { .. } => false,
        };
        // Who could never be brought up before, may not be now.
        let may_come = self.proven || config.ready_timeout.is_none() && !self.first;
        (self.joined || self.owed) && is_coming && may_come
    }

    pub fn is_passing(&self) -> bool {
        self.passing
    }

    /// Whether somebody who is to go serves what is left.
    pub fn has_draining(&self) -> bool {
        self.stopping.iter().any(Child::drains)
    }

    /// Who has come to finish another one's work, and serves now, is one too many.
    pub fn drain_passing(&mut self, now: Instant, config: &Config, actions: &mut ActionQueue) {
        if self.passing && matches!(&self.state, State::Running(child) if child.phase == Phase::Ready) {
            self.drain(now, config, actions);
        }
    }

    pub fn handle_work_left(&mut self, now: Instant, drain: Duration) {
        for child in &mut self.stopping {
            child.drain_longer(now, drain);
        }
    }

    /// From here on nobody serves.
    fn clear(&mut self, actions: &mut ActionQueue) {
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Running(child) => self.stopping.push(child),
            State::Replacing { old, new: Some(new) } => self.stopping.extend([old, *new]),
            State::Replacing { old, new: None } => {
                self.stopping.push(old);
                actions.cancel_starts(Some(self.id));
            }
            State::Starting => actions.cancel_starts(Some(self.id)),
            State::Stopped | State::Backoff { .. } => {}
        }
        (self.first, self.restarting) = (false, false);
        (self.passing, self.owed) = (false, false);
    }

    pub fn kill(&mut self, actions: &mut ActionQueue) {
        for child in &mut self.stopping {
            child.kill(actions);
        }
    }
}
