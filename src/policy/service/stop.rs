//! The stop and the end of a service and of its pools.

use std::time::Instant;

use super::Service;
use super::pools::Pool;
use crate::error::Error;
use crate::event::Event;
use crate::exit::Process;
use crate::policy::{Outcome, Request};
use crate::report::{PoolReport, Reason};

/// A stop of all pools that has begun.
#[derive(Debug)]
pub(super) struct ServiceStop {
    /// The first reason to stop the service. Later reasons do not change it.
    reason: Reason,
    /// The pool that has failed, if this failure is the reason.
    failed_pool: Option<usize>,
}

impl Service {
    /// Returns whether every pool is stopping or has ended.
    pub fn is_stopping(&self) -> bool {
        self.pools.iter().all(Pool::is_closed)
    }

    /// Returns whether this pool is stopping or has ended. Then nothing of it is started any more, so the parent closes
    /// its listeners.
    pub fn is_closed(&self, pool: usize) -> bool {
        self.pools[pool].is_closed()
    }

    /// Handles the request of the program in the parent to stop the service, or only the pool `to`. Has no effect if
    /// the service or the pool is already stopping. Never kills processes at once.
    pub fn handle_program_stop(&mut self, now: Instant, to: Option<usize>) {
        match to {
            Some(index) if !self.pools.is_single() => {
                if let Some(pool) = self.pools.get_mut(index).filter(|pool| !pool.is_closed()) {
                    pool.policy.handle_program_stop(now);
                }
            }
            _ => self.stop_because(now, Reason::Stopped, None),
        }
    }

    /// Handles the request of a worker to stop the service. Has no effect if the service is already stopping.
    pub fn handle_stop_all(&mut self, now: Instant, process: Process) {
        self.stop_because(now, Reason::StoppedByWorker { process }, None);
    }

    /// Handles the request of a worker to stop its own pool. Has no effect if the pool is already stopping.
    pub fn handle_stop_pool(&mut self, now: Instant, process: Process) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_stop_all(now, process);
        }
    }

    /// Handles a start that the system has refused, as [`Policy::handle_start_failed`] does. If the pool cannot start
    /// for this reason and is optional, the service goes on without it.
    ///
    /// [`Policy::handle_start_failed`]: crate::policy::Policy::handle_start_failed
    pub fn handle_start_failed(&mut self, now: Instant, pool: usize, id: usize, error: Error) {
        let index = pool;
        let Some(pool) = self.pools.get_mut(index) else { return };
        let policy = &mut pool.policy;
        if !policy.needs_start(id) {
            return policy.handle_start_failed(now, id, error);
        }
        let reason = Reason::StartRefused { pool: policy.config.pool, id };
        if pool.is_optional {
            // The call does not return this error, so the log has to contain it.
            policy.actions.emit(Event::StartFailed { pool: policy.config.pool, error, retry: None });
            policy.stop_because(now, Ok(reason));
        } else {
            policy.handle_start_failed(now, id, error);
            self.stop_because(now, reason, Some(index));
        }
    }

    /// Handles a stop request of an operator: stops all pools. The second request kills all processes.
    pub(super) fn stop_by_operator(&mut self, now: Instant, request: Request) {
        self.begin_stop(Reason::Stopped, None);
        self.pools.live_mut().for_each(|pool| pool.policy.handle_request(now, request));
    }

    /// Stops the service if this pool has begun to stop because of a failure, and is not optional.
    pub(super) fn stop_after_failure(&mut self, now: Instant, index: usize) {
        let pool = &self.pools[index];
        let Some(stop) = pool.policy.stop.as_ref().filter(|_| self.stop.is_none() && !pool.is_optional) else { return };
        if let Some(reason) = stop.outcome.as_ref().ok().filter(|reason| reason.is_failure()).cloned() {
            self.stop_because(now, reason, Some(index));
        }
    }

    fn stop_because(&mut self, now: Instant, reason: Reason, failed_pool: Option<usize>) {
        if self.stop.is_some() {
            return;
        }
        self.begin_stop(reason.clone(), failed_pool);
        self.pools.live_mut().for_each(|pool| pool.policy.stop_because(now, Ok(reason.clone())));
    }

    /// Records the reason of the stop, if it is the first one. The caller then stops the pools.
    fn begin_stop(&mut self, reason: Reason, failed_pool: Option<usize>) {
        if self.stop.is_some() {
            return;
        }
        // The pools that have no process left end for their own reason.
        for index in (0..self.pools.len()).filter(|&index| failed_pool != Some(index)) {
            self.end_if_over(index);
        }
        if self.pools.iter().all(Pool::has_ended) {
            return;
        }
        self.end_upgrade_for_stop();
        self.stop = Some(ServiceStop { reason, failed_pool });
        self.roll = Default::default();
        self.ignored.clear();
        // The log reports the failure before the stops that follow from it.
        self.first_in_turn = failed_pool.unwrap_or(self.first_in_turn);
    }

    /// Records the ends of pools, and reports them. Returns whether any pool has ended.
    pub(super) fn note_ends(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.pools.len() {
            // A request may still add a worker.
            any |= self.pools[index].policy.requests.is_empty() && self.end_if_over(index);
        }
        any
    }

    /// Ends the pool if no process of it is alive and none will be started. The only pool of a service ends with the
    /// service.
    fn end_if_over(&mut self, index: usize) -> bool {
        let pool = &self.pools[index];
        if self.pools.is_single() || pool.has_ended() || pool.is_waiting() || !pool.policy.is_over() {
            return false;
        }
        let report = self.report(index);
        let event =
            Event::PoolEnded { pool: pool.name(), reason: report.reason().clone(), success: report.is_success() };
        let pool = &mut self.pools[index];
        pool.end = Some(report.reason().clone());
        pool.policy.requests.clear();
        pool.policy.actions.emit(event);
        true
    }

    /// Returns the outcome if the service has ended: every pool has ended, and every action has been taken.
    #[must_use]
    pub fn poll_end(&mut self) -> Option<Outcome> {
        // The upgrade ends at the next call of `execute_requests`.
        if self.is_upgrading() {
            return None;
        }
        if self.pools.is_single() {
            let reason = self.reason(0);
            let pool = &mut self.pools[0];
            let outcome = pool.policy.poll_end()?;
            pool.end = Some(reason);
            return Some(outcome);
        }
        if !self.pools.iter().all(|pool| pool.has_ended() && pool.policy.actions.is_empty()) {
            return None;
        }
        let Some(ServiceStop { reason, failed_pool }) = &self.stop else { return Some(Ok(Reason::Finished)) };
        let stop = failed_pool.and_then(|index| self.pools[index].policy.stop.take());
        Some(stop.map_or_else(|| Ok(reason.clone()), |stop| stop.outcome))
    }

    /// Returns the reports of all pools.
    pub fn reports(&self) -> Vec<PoolReport> {
        (0..self.pools.len()).map(|index| self.report(index)).collect()
    }

    fn report(&self, index: usize) -> PoolReport {
        let pool = &self.pools[index];
        PoolReport::new(pool.name(), self.reason(index), pool.policy.reports(), pool.is_optional)
    }

    /// Returns the reason why the pool ended, or why it is about to end.
    fn reason(&self, index: usize) -> Reason {
        let pool = &self.pools[index];
        let own = pool.policy.stop.as_ref().and_then(|stop| stop.outcome.as_ref().ok());
        let service = self.stop.as_ref().map(|stop| &stop.reason);
        pool.end.as_ref().or(own).or(service).cloned().unwrap_or(Reason::Finished)
    }
}
