//! One worker more, one fewer; and how one goes who has a queue of his own: nothing new comes to it, he lingers until it is
//! empty, and only then is asked to.

use std::time::Instant;

use super::child::Child;
use super::slot::Slot;
use super::{Policy, RestartPolicy};
use crate::event::Event;
use crate::exit::{Exit, OutOfMemory};

impl Policy {
    /// The ids that are to get work: those that are wanted to run, but of those that were added not before there was somebody
    /// for it.
    pub fn serving(&self) -> impl Iterator<Item = usize> + Clone {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.is_serving()).map(|(id, _)| id)
    }

    /// Those of whom one is to be asked to go, unless he still has work: [`Policy::handle_work_left`].
    pub fn draining(&self, now: Instant) -> Vec<usize> {
        let is_due = |slot: &Slot| slot.children().any(|child| child.drains_until(now));
        self.slots.iter().enumerate().filter(|(_, slot)| is_due(slot)).map(|(id, _)| id).collect()
    }

    /// One who lingers is to go on doing so.
    pub fn handle_work_left(&mut self, now: Instant, id: usize) {
        if let (Some(slot), Some(drain)) = (self.slots.get_mut(id), self.config.drain) {
            slot.handle_work_left(now, drain);
        }
    }

    pub(super) fn more(&mut self, now: Instant) {
        if self.wanted() >= self.config.max_workers {
            return;
        }
        let id = match self.slots.iter().position(|slot| !slot.is_wanted()) {
            Some(id) => {
                self.slots[id].want(now);
                id
            }
            None => {
                self.slots.push(Slot::new(self.slots.len(), now));
                self.slots.len() - 1
            }
        };
        self.wanted.set(None);
        self.actions.emit(Event::Scaled { workers: self.wanted() });
        self.slots[id].start_if_due(now, &mut self.actions);
    }

    pub(super) fn fewer(&mut self, now: Instant) {
        if self.wanted() <= 1 {
            return;
        }
        if let Some(id) = self.slots.iter().rposition(Slot::is_wanted) {
            self.slots[id].drain(now, &self.config, &mut self.actions);
            self.deadlines.update(id, &self.slots[id]);
            self.wanted.set(None);
            self.actions.emit(Event::Scaled { workers: self.wanted() });
        }
    }

    /// One that was asked for later could not be brought up. The others, who serve, are not to suffer for it.
    pub(super) fn addition_failed(&mut self, id: usize) {
        self.wanted.set(None);
        self.actions.emit(Event::ScalingAborted { id });
        self.actions.emit(Event::Scaled { workers: self.wanted() });
    }

    /// One who was to go once its work was done has ended before. If it has failed, somebody is to do what is left, unless it is
    /// done already by who serves the id again.
    pub(super) fn handle_draining_exit(&mut self, now: Instant, child: Child, exit: Exit, out_of_memory: OutOfMemory) {
        let process = child.process;
        let is_fatal = self.is_fatal(exit);
        let slot = &mut self.slots[process.id];
        let is_left = !exit.is_success() && slot.is_stopped() && !slot.has_draining();
        let wanted = is_left && self.config.restart_policy != RestartPolicy::Never && !is_fatal;
        let restarting = wanted && self.budget.take(now);
        if is_left && !restarting {
            slot.end_for_good(true);
        }
        self.actions.emit(Event::Exited { process, exit, out_of_memory, asked: false, restarting });
        if restarting {
            let uptime = now.saturating_duration_since(child.since);
            let delay = slot.finish_work(now, uptime, self.config.delays, &mut self.rng);
            self.actions.emit(Event::Restarting { process, exit, out_of_memory, delay, left: self.budget.left() });
        }
    }
}
