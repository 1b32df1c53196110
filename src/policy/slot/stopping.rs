//! How those go who are not wanted any more.

use std::time::{Duration, Instant};

use super::{Slot, State};
use crate::policy::child::{Child, Phase};
use crate::policy::{ActionQueue, Config, Message};

impl Slot {
    /// Nobody is wanted any more: who lives is asked to go, and killed at `kill_at`. Who has been asked already is asked
    /// again only by `message` of another kind, and keeps the earlier deadline.
    pub fn retire(&mut self, message: Message, kill_at: Instant, actions: &mut ActionQueue) {
        self.dismiss(actions);
        for child in &mut self.stopping {
            if message == Message::QuickStop || !matches!(child.phase, Phase::Stopping { .. }) {
                child.ask(message, kill_at, actions);
            }
        }
    }

    /// The same, but who serves is asked later, when he has had the time to finish what came to him before.
    pub fn release(&mut self, now: Instant, config: &Config, actions: &mut ActionQueue) {
        self.note_uptime(now);
        let kill_at = now + config.graceful_timeout;
        let Some(linger) = config.linger else { return self.retire(Message::Stop, kill_at, actions) };
        if self.is_to_be_served(config) {
            (self.passing, self.owed) = (true, true);
            return;
        }
        self.dismiss(actions);
        for child in self.stopping.iter_mut().filter(|child| !matches!(child.phase, Phase::Stopping { .. })) {
            match child.phase {
                Phase::Ready => child.phase = Phase::Draining { ask_at: now + linger, last: kill_at },
                Phase::Draining { .. } => {}
                _ => child.ask(Message::Stop, kill_at, actions),
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
    pub fn has_lingering(&self) -> bool {
        self.stopping.iter().any(Child::drains)
    }

    /// Who has come to finish another one's work, and serves now, is one too many.
    pub fn release_passing(&mut self, now: Instant, config: &Config, actions: &mut ActionQueue) {
        if self.passing && matches!(&self.state, State::Running(child) if child.phase == Phase::Ready) {
            self.release(now, config, actions);
        }
    }

    pub fn handle_work_left(&mut self, now: Instant, linger: Duration) {
        for child in &mut self.stopping {
            child.linger_on(now, linger);
        }
    }

    /// From here on nobody serves.
    fn dismiss(&mut self, actions: &mut ActionQueue) {
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
