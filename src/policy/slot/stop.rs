//! Stops the processes of a worker that is not needed any more.

use std::mem;
use std::time::{Duration, Instant};

use super::{BringUp, Queue, Slot, State};
use crate::policy::child::{Child, Phase};
use crate::policy::deadline::Deadline;
use crate::policy::stopping_child::{StoppingChild, StoppingPhase};
use crate::policy::{ActionQueue, Config, WorkerSignal};

impl Slot {
    /// Stops the worker: sends `signal` to each of its processes, and SIGKILL at `kill_at` to those that still run. A
    /// process that was asked to stop before keeps its SIGKILL deadline if that is earlier. Such a process gets
    /// `signal` only if `signal` requests a quick stop.
    pub fn stop_now(&mut self, signal: WorkerSignal, kill_at: Deadline, actions: &mut ActionQueue) {
        for child in &mut self.stopping {
            match &mut child.phase {
                StoppingPhase::Stopping { kill } if signal != WorkerSignal::QuickStop => {
                    *kill = kill.or_earlier(kill_at);
                }
                _ => child.stop(signal, kill_at, actions),
            }
        }
        for child in self.clear(actions) {
            self.stopping.push(child.stop(signal, kill_at, actions));
        }
    }

    /// Removes the worker because the service is scaled down. Without per-worker sockets, asks its processes to stop.
    /// With per-worker sockets, a ready process first serves the connections that are left in the queue. If no process
    /// is ready, the next process that becomes ready serves them.
    pub fn drain(&mut self, now: Instant, config: &Config, actions: &mut ActionQueue) {
        self.note_uptime(now);
        let kill_at = Deadline::after(now, config.graceful_timeout);
        let Some(drain) = config.drain else { return self.stop_now(WorkerSignal::Stop, kill_at, actions) };
        if self.has_queue_to_serve(config) {
            self.queue = Queue::Draining;
            return;
        }
        for child in self.clear(actions) {
            let child = match child.phase {
                Phase::Ready => {
                    let phase = StoppingPhase::Draining { stop_at: now + drain, last: kill_at };
                    child.into_stopping(phase)
                }
                _ => child.stop(WorkerSignal::Stop, kill_at, actions),
            };
            self.stopping.push(child);
        }
    }

    /// Returns whether connections may wait in the worker's own queue, and a process that is not ready yet may still
    /// become ready to serve them.
    fn has_queue_to_serve(&self, config: &Config) -> bool {
        let is_coming = match &self.state {
            State::Backoff { .. } | State::Starting { .. } => true,
            State::Running(child) => child.phase != Phase::Ready,
            State::Stopped | State::Replacing { .. } => false,
        };
        // If no process of this worker has ever been ready, perhaps none will ever be.
        let may_come = self.bring_up == BringUp::Done || config.ready_timeout.is_none() && !self.is_initial_start();
        self.queue != Queue::Unopened && is_coming && may_come
    }

    pub fn is_queue_draining(&self) -> bool {
        self.queue == Queue::Draining
    }

    /// Keeps a removed worker until a new process has served the connections that are left in its queue.
    pub fn reserve_for_queue(&mut self) {
        self.queue = Queue::Draining;
    }

    pub fn has_draining(&self) -> bool {
        self.stopping.iter().any(StoppingChild::is_draining)
    }

    pub fn is_drain_due(&self, now: Instant) -> bool {
        self.stopping.iter().any(|child| child.is_drain_due(now))
    }

    /// Begins the drain of a process that runs only to serve the connections left in the queue. Does nothing before
    /// that process is ready.
    pub fn drain_relief(&mut self, now: Instant, config: &Config, actions: &mut ActionQueue) {
        let is_ready = matches!(&self.state, State::Running(child) if child.phase == Phase::Ready);
        if self.queue == Queue::Draining && is_ready {
            self.drain(now, config, actions);
        }
    }

    /// Lets a draining process continue, because connections are left in its queue.
    pub fn handle_work_left(&mut self, now: Instant, drain: Duration) {
        self.stopping.iter_mut().for_each(|child| child.drain_longer(now, drain));
    }

    pub fn kill_all(&mut self, now: Instant, actions: &mut ActionQueue) {
        self.stopping.iter_mut().for_each(|child| child.kill(now, actions));
    }

    #[cfg(test)]
    pub fn draining(&self) -> impl Iterator<Item = crate::exit::Process> {
        self.stopping.iter().filter(|child| child.is_draining()).map(|child| child.process)
    }

    /// Sets the state to stopped, and cancels a start that was not executed yet. Returns the processes that were in the
    /// state.
    fn clear(&mut self, actions: &mut ActionQueue) -> impl Iterator<Item = Child> + use<> {
        self.queue = Queue::Unopened;
        self.is_trial = false;
        let (first, second) = match mem::replace(&mut self.state, State::Stopped) {
            State::Running(child) => (Some(child), None),
            State::Replacing { old, new: Some(new) } => (Some(old), Some(*new)),
            State::Replacing { old, new: None } => {
                actions.cancel_starts(Some(self.id));
                (Some(old), None)
            }
            State::Starting { .. } => {
                actions.cancel_starts(Some(self.id));
                (None, None)
            }
            State::Stopped | State::Backoff { .. } => (None, None),
        };
        first.into_iter().chain(second)
    }
}
