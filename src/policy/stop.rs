//! Stops the pool: asks every process to stop, waits, and kills the processes that still run. If an operator
//! requests a stop twice, the second request kills all remaining processes at once. An exception is a quick stop
//! request after a graceful one: it only shortens the wait.

use std::time::{Duration, Instant};

use super::deadline::Deadline;
use super::{Outcome, Policy, Slot, WorkerSignal};
use crate::event::Event;
use crate::exit::{Exit, Process};
use crate::report::Reason;

/// The time from SIGQUIT to SIGKILL in a quick stop.
const QUICK_STOP: Duration = Duration::from_secs(2);

/// A stop of the pool that has begun.
#[derive(Debug)]
pub(super) struct Stop {
    /// The outcome of the pool. The first reason to stop determines the outcome, and later reasons do not change it.
    pub outcome: Outcome,
    /// Whether an operator has requested the stop. Then the next stop request of the operator kills all remaining
    /// processes.
    requested: bool,
    quick: bool,
}

impl Stop {
    /// Returns the stop of a pool that an earlier program has begun.
    pub fn adopted() -> Stop {
        Stop { outcome: Ok(Reason::Stopped), requested: false, quick: false }
    }
}

/// The facts about a process whose failure shows that a restart would not help.
#[derive(Clone, Copy, Debug)]
pub(super) struct StartupFailure {
    pub process: Process,
    /// `None` if the process is still alive but was not ready in time.
    pub exit: Option<Exit>,
    /// The number of failures in a row if one failure would not have stopped the pool.
    pub failures: Option<u32>,
    /// Whether the process had called a function that starts workers.
    pub nested_call: bool,
}

impl Policy {
    /// Returns whether a stop of the pool has begun. From then on, no process is started.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    pub(super) fn stop_gracefully(&mut self, now: Instant) {
        match &mut self.stop {
            None => {
                let kill_at = Deadline::after(now, self.config.graceful_timeout);
                self.begin_stop(Ok(Reason::Stopped), WorkerSignal::Stop, kill_at, true);
            }
            Some(stop) if !stop.requested => stop.requested = true,
            Some(_) => self.kill_all(now),
        }
    }

    pub(super) fn stop_quickly(&mut self, now: Instant) {
        let kill_at = Deadline::after(now, QUICK_STOP);
        match &mut self.stop {
            None => self.begin_stop(Ok(Reason::Stopped), WorkerSignal::QuickStop, kill_at, true),
            Some(stop) if !stop.quick => {
                stop.requested = true;
                stop.quick = true;
                self.stop_all_now(WorkerSignal::QuickStop, kill_at);
            }
            Some(_) => self.kill_all(now),
        }
    }

    /// Stops the pool because the restart limit is reached.
    pub(super) fn give_up(&mut self, now: Instant, process: Process, exit: Exit) {
        let restarts = self.budget.spent();
        self.actions.emit(Event::RestartLimitReached { pool: self.config.pool, restarts });
        self.stop_because(now, Ok(Reason::RestartLimitReached { process, exit, restarts }));
    }

    /// Stops the pool because a worker cannot start or has exited with a fatal exit code.
    pub(super) fn fail_startup(&mut self, now: Instant, failure: StartupFailure) {
        if self.stop.is_some() {
            return;
        }
        let StartupFailure { process, exit, failures, nested_call } = failure;
        self.actions.emit(Event::StartupFailed { process, exit, failures, nested_call });
        self.stop_because(now, Ok(Reason::StartupFailed { process, exit, failures, nested_call }));
    }

    /// Begins a graceful stop for a reason other than a request of the operator.
    pub(super) fn stop_because(&mut self, now: Instant, outcome: Outcome) {
        let kill_at = Deadline::after(now, self.config.graceful_timeout);
        self.begin_stop(outcome, WorkerSignal::Stop, kill_at, false);
    }

    fn begin_stop(&mut self, outcome: Outcome, signal: WorkerSignal, kill_at: Deadline, requested: bool) {
        if self.stop.is_some() {
            return;
        }
        let quick = signal == WorkerSignal::QuickStop;
        self.complete_slots();
        self.requests.clear();
        self.actions.cancel_for_stop();
        self.roll.cancel();
        self.replacements.clear();
        self.check_beats_at = None;
        let workers = self.slots.iter().flat_map(Slot::processes).count();
        let by = match &outcome {
            Ok(Reason::StoppedByWorker { process }) => Some(*process),
            _ => None,
        };
        self.actions.emit(Event::Stopping { pool: self.config.pool, workers, quick, by });
        self.stop = Some(Stop { outcome, requested, quick });
        self.stop_all_now(signal, kill_at);
    }

    fn stop_all_now(&mut self, signal: WorkerSignal, kill_at: Deadline) {
        for slot in &mut self.slots {
            slot.stop_now(signal, kill_at, &mut self.actions);
        }
        self.wanted.set(None);
        self.deadlines.update_all(&self.slots);
    }

    fn kill_all(&mut self, now: Instant) {
        let workers = self.slots.iter().flat_map(Slot::unkilled_processes).count();
        if workers > 0 {
            self.actions.emit(Event::KillingAll { pool: self.config.pool, workers });
        }
        for slot in &mut self.slots {
            slot.kill_all(now, &mut self.actions);
        }
        self.deadlines.update_all(&self.slots);
    }
}
