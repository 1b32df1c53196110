//! The end of everybody: ask, wait, kill, wait; a second request means now.

use std::time::{Duration, Instant};

use super::{Outcome, Policy, Slot, WorkerSignal};
use crate::event::Event;
use crate::exit::{Exit, Process};
use crate::report::Reason;

/// From SIGQUIT to SIGKILL.
const QUICK_STOP: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Stop {
    pub end: Outcome,
    /// An operator has asked, so that the next one to ask means: now.
    asked: bool,
    quick: bool,
}

impl Policy {
    pub(super) fn stop_as_asked(&mut self, now: Instant) {
        match &mut self.stop {
            None => self.begin_stop(Ok(Reason::Stopped), WorkerSignal::Stop, now + self.config.graceful_timeout, true),
            Some(stop) if !stop.asked => stop.asked = true,
            Some(_) => self.kill_all(),
        }
    }

    pub(super) fn stop_quickly(&mut self, now: Instant) {
        let kill_at = now + QUICK_STOP;
        match &mut self.stop {
            None => self.begin_stop(Ok(Reason::Stopped), WorkerSignal::QuickStop, kill_at, true),
            Some(stop) if !stop.quick => {
                (stop.asked, stop.quick) = (true, true);
                self.stop_all_now(WorkerSignal::QuickStop, kill_at);
            }
            Some(_) => self.kill_all(),
        }
    }

    pub(super) fn give_up(&mut self, now: Instant, process: Process, exit: Exit) {
        let restarts = self.budget.spent();
        self.actions.emit(Event::RestartLimitReached { restarts });
        let graceful = now + self.config.graceful_timeout;
        self.begin_stop(
            Ok(Reason::RestartLimitReached { process, exit, restarts }),
            WorkerSignal::Stop,
            graceful,
            false,
        );
    }

    pub(super) fn fail_startup(&mut self, now: Instant, process: Process, exit: Option<Exit>) {
        if self.stop.is_some() {
            return;
        }
        self.actions.emit(Event::StartupFailed { process, exit });
        let graceful = now + self.config.graceful_timeout;
        self.begin_stop(Ok(Reason::StartupFailed { process, exit }), WorkerSignal::Stop, graceful, false);
    }

    /// The first reason to stop is the one that counts.
    pub(super) fn begin_stop(&mut self, end: Outcome, message: WorkerSignal, kill_at: Instant, asked: bool) {
        if self.stop.is_some() {
            return;
        }
        let quick = message == WorkerSignal::QuickStop;
        self.complete_slots();
        self.actions.cancel_starts(None);
        self.roll.cancel();
        self.look_at = None;
        let workers = self.slots.iter().flat_map(Slot::children).count();
        let by = match &end {
            Ok(Reason::StoppedByWorker { process }) => Some(*process),
            _ => None,
        };
        self.actions.emit(Event::Stopping { workers, quick, by });
        self.stop = Some(Stop { end, asked, quick });
        self.stop_all_now(message, kill_at);
    }

    fn stop_all_now(&mut self, message: WorkerSignal, kill_at: Instant) {
        for slot in &mut self.slots {
            slot.stop_now(message, kill_at, &mut self.actions);
        }
        self.wanted.set(None);
        self.deadlines.update_all(&self.slots);
    }

    fn kill_all(&mut self) {
        let workers = self.slots.iter().flat_map(Slot::children).filter(|child| !child.was_killed()).count();
        if workers > 0 {
            self.actions.emit(Event::KillingAll { workers });
        }
        for slot in &mut self.slots {
            slot.kill(&mut self.actions);
        }
    }
}
