//! The upgrade of a service. [`Upgrade`](crate::policy::upgrade::Upgrade) shows its phases.

use std::mem;
use std::time::Instant;

use super::Service;
use super::pools::Pool;
use crate::event::Event;
use crate::policy::deadline::Deadline;
use crate::policy::scale::QUIET;
use crate::policy::trial::TrialProgress;
use crate::policy::upgrade::UpgradePhase;
use crate::policy::{Action, TrialPool};

/// The reason for the end of an upgrade during which the service stops or ends.
const ENDS: &str = "the service ends";

impl Service {
    /// Returns whether an upgrade is in progress: from [`Event::UpgradeStarted`] to its end, in both programs.
    pub fn is_upgrading(&self) -> bool {
        self.upgrade.is_active()
    }

    /// Handles the success of the checker. `pools` are the pools that need a trial worker.
    pub fn handle_check_passed(&mut self, _now: Instant, pools: Vec<TrialPool>) {
        let UpgradePhase::Checking { deadline } = self.upgrade.phase else { return };
        self.upgrade.phase = UpgradePhase::Trying { deadline };
        for TrialPool { index, ready_timeout, workers } in pools {
            if let Some(pool) = self.pools.get_mut(index).filter(|pool| !pool.is_closed()) {
                pool.policy.plan_trial(ready_timeout, workers);
            }
        }
    }

    /// Handles the failure of the checker, or of the execution of the new program.
    pub fn handle_upgrade_failed(&mut self, now: Instant, reason: String) {
        match self.upgrade.phase {
            // The caller has ended the checker.
            UpgradePhase::Checking { deadline } => {
                self.upgrade.phase = UpgradePhase::Trying { deadline };
                self.abort_upgrade(now, reason);
            }
            UpgradePhase::Trying { .. } | UpgradePhase::Executing => self.abort_upgrade(now, reason),
            UpgradePhase::Idle | UpgradePhase::Waiting { .. } | UpgradePhase::Rolling | UpgradePhase::Draining => {}
        }
    }

    /// Returns whether [`Service::advance_upgrade`] has something to do.
    pub(super) fn is_upgrade_due(&self) -> bool {
        let is_requested = self.upgrade.requested;
        match self.upgrade.phase {
            UpgradePhase::Idle => return is_requested,
            UpgradePhase::Executing => return false,
            _ if self.is_ending() => return true,
            _ => {}
        }
        match self.upgrade.phase {
            UpgradePhase::Waiting { .. } => is_requested || self.is_settled(),
            UpgradePhase::Trying { .. } => is_requested || self.trials().any(TrialProgress::is_due),
            UpgradePhase::Checking { .. } => is_requested,
            UpgradePhase::Draining => self.has_ended_removed(),
            UpgradePhase::Idle | UpgradePhase::Executing | UpgradePhase::Rolling => false,
        }
    }

    /// Returns whether each pool is stopping or has no process left.
    fn is_ending(&self) -> bool {
        self.pools.iter().all(|pool| pool.is_closed() || !pool.is_waiting() && pool.policy.is_over())
    }

    fn is_settled(&self) -> bool {
        self.open().all(|policy| policy.is_settled())
    }

    fn trials(&self) -> impl Iterator<Item = TrialProgress> {
        self.open().map(|policy| policy.trial_progress())
    }

    /// Lets the upgrade go on: begins a requested one, and takes the next step of the current one.
    pub(super) fn advance_upgrade(&mut self, now: Instant) {
        if !self.is_upgrade_due() {
            return;
        }
        if self.is_ending() {
            self.upgrade.requested = false;
            self.abort_upgrade(now, ENDS.to_owned());
            return;
        }
        let may_begin = !matches!(self.upgrade.phase, UpgradePhase::Rolling | UpgradePhase::Draining);
        if may_begin && mem::take(&mut self.upgrade.requested) {
            self.begin_upgrade(now);
        }
        match self.upgrade.phase {
            UpgradePhase::Waiting { deadline } if self.is_settled() => {
                self.upgrade.phase = UpgradePhase::Checking { deadline };
                self.push(Action::Check);
            }
            UpgradePhase::Trying { .. } => self.advance_trials(now),
            UpgradePhase::Draining if self.has_ended_removed() => {
                self.upgrade.phase = UpgradePhase::Idle;
                self.push(Action::Emit(Event::UpgradeFinished));
            }
            _ => {}
        }
    }

    /// Begins an upgrade. Ends the current one before, if there is one.
    fn begin_upgrade(&mut self, now: Instant) {
        if let Some(reason) = self.upgrade.config.refusal {
            // A process that sends signals in a loop must not fill the log.
            if self.upgrade.refused_at.is_none_or(|at| now >= at + QUIET) {
                self.upgrade.refused_at = Some(now);
                self.push(Action::Emit(Event::UpgradeAborted { reason: reason.to_owned() }));
            }
            return;
        }
        self.abort_upgrade(now, "requested again".to_owned());
        self.upgrade.phase = UpgradePhase::Waiting { deadline: Deadline::after(now, self.upgrade.config.timeout) };
        self.pools.iter_mut().for_each(|pool| pool.policy.hold_replacements());
        self.push(Action::Emit(Event::UpgradeStarted));
    }

    /// Begins the trials that can begin. Aborts the upgrade if one has failed.
    fn advance_trials(&mut self, now: Instant) {
        let failure = self.open().find_map(|policy| policy.trial_failure()).map(str::to_owned);
        if let Some(reason) = failure {
            return self.abort_upgrade(now, reason);
        }
        for pool in self.pools.iter_mut().filter(|pool| !pool.is_closed()) {
            if let TrialProgress::Due(id) = pool.policy.trial_progress() {
                pool.policy.begin_trial(id);
            }
        }
    }

    /// Returns the action that executes the new program, if all trials have succeeded. Call this when no action is
    /// queued, because actions would be lost by the execution.
    pub(super) fn poll_exec(&mut self) -> Option<(usize, Action)> {
        let is_trying = matches!(self.upgrade.phase, UpgradePhase::Trying { .. });
        if !is_trying || self.is_upgrade_due() || !self.is_settled() || self.trials().any(|it| !it.has_passed()) {
            return None;
        }
        self.upgrade.phase = UpgradePhase::Executing;
        Some((0, Action::Exec))
    }

    /// Returns whether the decision to execute the new program still holds, and no action would be lost.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only Linux has upgrades")
    )]
    pub fn may_execute(&self) -> bool {
        let has_actions = |pool: &Pool| !pool.policy.actions.is_empty();
        self.upgrade.phase == UpgradePhase::Executing && !self.pools.iter().any(has_actions)
    }

    /// Ends the upgrade, if there is one. The trial workers are asked to stop, and everything goes on as before. After
    /// the execution of the new program, only the rolling restarts end.
    pub(super) fn abort_upgrade(&mut self, now: Instant, reason: String) {
        let holds = self.upgrade.holds();
        if !self.end_upgrade(reason) {
            return;
        }
        if holds {
            self.pools.iter_mut().for_each(|pool| pool.policy.end_trial(now));
        } else {
            self.start_waiting_pools(now);
        }
    }

    /// Ends the upgrade because all pools are about to stop, the trial workers as well.
    pub(super) fn end_upgrade_for_stop(&mut self) {
        self.upgrade.requested = false;
        self.end_upgrade(ENDS.to_owned());
    }

    fn end_upgrade(&mut self, reason: String) -> bool {
        match mem::replace(&mut self.upgrade.phase, UpgradePhase::Idle) {
            UpgradePhase::Idle => return false,
            UpgradePhase::Checking { .. } if !self.pools[0].policy.actions.cancel_check() => {
                self.push(Action::EndCheck);
            }
            UpgradePhase::Rolling => self.roll.end(),
            _ => {}
        }
        self.push(Action::Emit(Event::UpgradeAborted { reason }));
        true
    }

    /// Aborts the upgrade if its time is over.
    pub(super) fn handle_upgrade_timeout(&mut self, now: Instant) {
        if let Some(reason) = self.upgrade.late(now) {
            self.abort_upgrade(now, reason);
        }
    }

    /// Lets the next pool from `index` on replace the processes of the old program. If there is none, starts the pools
    /// that the old program did not have.
    pub(super) fn roll_adopted(&mut self, now: Instant, index: usize) {
        let is_next = |index: &usize| {
            let pool = &self.pools[*index];
            !pool.is_closed() && !pool.is_waiting()
        };
        match (index..self.pools.len()).find(is_next) {
            Some(index) => {
                let pool = &mut self.pools[index];
                pool.aborted_roll = None;
                self.roll.begin_turn(index, pool.policy.roll_adopted(now));
            }
            None => {
                self.roll.end();
                self.upgrade.phase = UpgradePhase::Draining;
                self.start_waiting_pools(now);
            }
        }
    }

    /// Ends the turn of a pool in the rolling restarts of an upgrade.
    pub(super) fn end_adopted_turn(&mut self, now: Instant, index: usize) {
        match self.pools[index].aborted_roll {
            Some(id) => {
                let name = self.pools[index].name();
                let pool = if name.is_empty() { String::new() } else { format!("{name}: ") };
                let reason = format!("{pool}the replacement of worker {id} by the new program has failed");
                self.abort_upgrade(now, reason);
            }
            None => self.roll_adopted(now, index + 1),
        }
    }

    fn start_waiting_pools(&mut self, now: Instant) {
        self.pools.iter_mut().for_each(|pool| pool.start_if_waiting(now));
    }

    /// Returns whether all processes of the pools that the new program does not have are gone.
    fn has_ended_removed(&self) -> bool {
        self.pools.iter().all(|pool| !pool.is_removed || Pool::has_ended(pool))
    }

    fn push(&mut self, action: Action) {
        self.pools[0].policy.actions.push(action);
    }
}
