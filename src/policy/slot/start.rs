//! Starts the processes of a slot, and records the results.

use std::mem;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;

use super::recycle::end_of_lifetime;
use super::{Slot, StartReason, State};
use crate::event::RestartReason;
use crate::exit::Process;
use crate::policy::backoff::Delays;
use crate::policy::child::{Child, Phase};
use crate::policy::deadline::Deadline;
use crate::policy::{Action, ActionQueue, Config};

/// The time that a replacement must live before it counts as ready, if no ready timeout is set.
pub(super) const PROBATION: Duration = Duration::from_secs(1);

impl Slot {
    /// Schedules a restart. Returns the delay before the restart.
    pub fn schedule_restart(
        &mut self,
        now: Instant,
        uptime: Duration,
        reason: RestartReason,
        delays: Delays,
        rng: &mut SmallRng,
    ) -> Duration {
        let delay = match reason {
            RestartReason::Failure => self.backoff.after_failure(uptime, delays, rng),
            RestartReason::NormalExit
            | RestartReason::StopRequest
            | RestartReason::Retired
            | RestartReason::Requests => self.backoff.after_normal_exit(uptime, delays, rng),
        };
        let reason = if reason.is_counted() { StartReason::Restart } else { StartReason::UncountedRestart };
        self.state = State::Backoff { until: now + delay, reason };
        delay
    }

    /// Returns the action that starts the first process of the worker. Returns `None` if the worker was removed before
    /// its first start.
    pub fn start_initial(&mut self) -> Option<Action> {
        let State::Backoff { reason: StartReason::Initial, .. } = self.state else { return None };
        self.state = State::Starting { reason: StartReason::Initial };
        Some(self.next_start())
    }

    /// Requests the next process if its start is due. Waits as long as the worker has too many processes that are still
    /// stopping.
    pub fn start_if_due(&mut self, now: Instant, actions: &mut ActionQueue) {
        match self.state {
            State::Backoff { until, reason } if until <= now && self.can_start(reason) => {
                self.state = State::Starting { reason };
                actions.push(self.next_start());
            }
            _ => {}
        }
    }

    pub(super) fn next_start(&self) -> Action {
        Action::Start { id: self.id, generation: self.generation }
    }

    /// Records a process that was started. If a stop came after the start was requested, the slot is already stopped.
    /// Then the caller must stop the process with [`Slot::stop_now`].
    pub fn handle_started(&mut self, now: Instant, process: Process, epoch: u64, config: &Config, rng: &mut SmallRng) {
        let reason = self.start_reason();
        let is_restart = reason == Some(StartReason::Restart);
        self.note_start(process);
        self.report.restarts = self.report.restarts.saturating_add(u32::from(is_restart));
        if config.ready_timeout.is_none() {
            self.open_queue();
        }
        let recycling = end_of_lifetime(now, config, rng);
        let child = |without_readiness| {
            let not_ready =
                config.ready_timeout.map(|timeout| Phase::NotReady { late_at: Deadline::after(now, timeout) });
            let child = Child::new(process, now, epoch, not_ready.unwrap_or(without_readiness), recycling);
            Child { heartbeat_timeout: config.heartbeat_timeout, ..child }
        };
        let probation = Phase::Probation { ready_at: Deadline::after(now, PROBATION) };
        self.state = match mem::replace(&mut self.state, State::Stopped) {
            State::Replacing { old, new: None } => State::Replacing { old, new: Some(Box::new(child(probation))) },
            _ if reason == Some(StartReason::Replacement) => State::Running(child(probation)),
            _ => State::Running(child(Phase::Ready)),
        };
    }

    pub(super) fn note_start(&mut self, process: Process) {
        self.generation = process.generation.wrapping_add(1);
        self.report.processes = self.report.processes.saturating_add(1);
        self.report.failed = false;
    }

    /// Handles a start that the system has refused. Returns the delay before the next attempt. Returns `None` for a
    /// replacement, which is not tried again.
    pub fn handle_start_failed(&mut self, now: Instant, delays: Delays, rng: &mut SmallRng) -> Option<Duration> {
        let reason = match mem::replace(&mut self.state, State::Stopped) {
            State::Replacing { old, new: None } => {
                self.state = State::Running(old);
                return None;
            }
            State::Starting { reason } | State::Backoff { reason, .. } => reason,
            other => {
                self.state = other;
                return None;
            }
        };
        let delay = self.backoff.after_refusal(delays, rng);
        self.state = State::Backoff { until: now + delay, reason };
        Some(delay)
    }
}
