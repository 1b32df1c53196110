//! The policy of a service with one or several pools.
//!
//! A [`Service`] owns the [`Policy`] of each pool. It passes each event to the pool that the event concerns, so no pool
//! depends on the events of another. The service itself decides only about what concerns several pools: the stop and
//! the end of the service, rolling restarts of all pools, and the pool that a request is for.
//!
//! Each method has the same meaning as the method of [`Policy`] with the same name. With one pool, the actions are
//! exactly those of the pool's own policy.

mod adopt;
mod ignored;
mod pools;
mod roll;
mod stop;
mod upgrade;

use std::iter;
use std::time::Instant;

use super::upgrade::Upgrade;
use super::{Action, Config, ExitedProcess, MemoryReading, Policy, Request, UpgradeConfig};
use crate::exit::Process;
use ignored::IgnoredRequests;
use pools::{Pool, Pools};
use roll::ServiceRoll;
use stop::ServiceStop;

/// The settings of one pool.
#[derive(Clone, Debug)]
pub(crate) struct PoolConfig {
    pub config: Config,
    /// Whether the service goes on if this pool fails. No effect on the only pool of a service.
    pub optional: bool,
    /// Whether the program has no such pool any more, and only stops the processes that an earlier program has left.
    pub removed: bool,
}

#[derive(Debug)]
pub(crate) struct Service {
    pools: Pools,
    /// The stop of all pools. `None` while only single pools are stopping.
    stop: Option<ServiceStop>,
    roll: ServiceRoll,
    ignored: IgnoredRequests,
    /// The pool that is the first to be asked for queued actions.
    first_in_turn: usize,
    upgrade: Upgrade,
}

impl Service {
    /// # Panics
    ///
    /// If there is no pool.
    pub fn new(pools: Vec<PoolConfig>, upgrade: UpgradeConfig, seed: u64, now: Instant) -> Service {
        let mut pools = Pools::new(pools, seed, now);
        if pools.is_single() {
            pools[0].is_optional = false;
        }
        Service {
            pools,
            stop: None,
            roll: ServiceRoll::default(),
            ignored: IgnoredRequests::default(),
            first_in_turn: 0,
            upgrade: Upgrade::new(upgrade),
        }
    }

    /// Returns the next action and the position of its pool, or `None` if there is nothing to do. The queued actions of
    /// all pools come before the first starts of any pool, so a stop does not wait for these starts.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<(usize, Action)> {
        loop {
            let action = self.poll_queued().or_else(|| self.poll_first_start());
            if action.is_some() {
                return action;
            }
            if !self.note_ends() {
                return self.poll_exec();
            }
        }
    }

    fn poll_queued(&mut self) -> Option<(usize, Action)> {
        for index in iter::once(self.first_in_turn).chain(0..self.pools.len()) {
            let pool = &mut self.pools[index];
            if let Some(action) = pool.policy.poll_queued() {
                if let Action::Emit(event) = &action {
                    pool.note_event(event);
                }
                return Some((index, action));
            }
        }
        None
    }

    fn poll_first_start(&mut self) -> Option<(usize, Action)> {
        let mut pools = self.pools.iter_mut().enumerate();
        pools.find_map(|(index, pool)| Some((index, pool.policy.poll_first_start()?)))
    }

    /// Returns the time at which to call [`Service::handle_timeout`] if no event happens earlier.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        let upgrade = self.upgrade.deadline();
        self.pools.live_mut().filter_map(|pool| pool.policy.next_deadline()).chain(upgrade).min()
    }

    /// Returns the policy of a pool, for questions about its workers.
    pub fn pool(&self, index: usize) -> &Policy {
        &self.pools[index].policy
    }

    /// Returns whether the service goes on if this pool fails.
    pub fn is_optional(&self, index: usize) -> bool {
        self.pools[index].is_optional
    }

    #[cfg(test)]
    pub fn policy_mut(&mut self, index: usize) -> &mut Policy {
        &mut self.pools[index].policy
    }

    /// Returns the policies of the pools that are neither stopping nor have ended.
    pub(super) fn open(&self) -> impl Iterator<Item = &Policy> {
        self.pools.iter().filter(|pool| !pool.is_closed()).map(|pool| &pool.policy)
    }

    /// Returns the position of the pool to which this process belongs.
    pub fn index_of(&self, process: Process) -> Option<usize> {
        self.pools.iter().position(|pool| pool.name() == process.pool)
    }

    fn policy_of(&mut self, process: Process) -> Option<&mut Policy> {
        self.pools.iter_mut().find(|pool| pool.name() == process.pool).map(|pool| &mut pool.policy)
    }

    /// Returns the number of workers of all pools that should run if all of them are up, as [`Policy::up`] does for one
    /// pool. Pools that have ended do not count, and neither do optional pools that are stopping. Returns `None` while
    /// any other pool is not up or is stopping.
    #[cfg_attr(not(unix), allow(dead_code, reason = "only the notification of systemd needs it"))]
    pub fn up(&self) -> Option<usize> {
        if self.stop.is_some() {
            return None;
        }
        let counts = |pool: &&Pool| !(pool.has_ended() || pool.is_optional && pool.is_closed());
        self.pools.iter().filter(counts).map(|pool| pool.policy.up()).sum()
    }

    /// Handles a request for the pool `to`. `None` stands for the service: then stop requests, rolling restarts and
    /// [`Request::Reopen`] concern all pools, and other requests the first pool. Requests for a pool that is stopping
    /// or has ended have no effect and are reported. [`Request::Upgrade`] always concerns the service.
    pub fn handle_request(&mut self, now: Instant, to: Option<usize>, request: Request) {
        match (to, request) {
            (None, Request::Stop | Request::QuickStop) => self.stop_by_operator(now, request),
            (_, Request::Upgrade) => self.upgrade.requested |= !self.is_stopping(),
            _ if self.pools.is_single() => self.pools[0].policy.handle_request(now, request),
            (Some(index), Request::Stop | Request::QuickStop) => self.handle_program_stop(now, Some(index)),
            _ if self.is_stopping() => {}
            (None, Request::Roll) => self.roll.requested = true,
            (None, Request::Reopen) => {
                self.pools.live_mut().for_each(|pool| pool.policy.handle_request(now, request));
            }
            (to, _) => {
                let index = to.unwrap_or(0);
                match self.pools.get_mut(index) {
                    Some(pool) if pool.is_closed() => self.ignore_request(index),
                    Some(pool) => pool.policy.handle_request(now, request),
                    None => {}
                }
            }
        }
    }

    /// Returns whether a call of [`Service::execute_requests`] is due. Requests that wait for the end of an upgrade do
    /// not count.
    pub fn has_requests(&self) -> bool {
        if self.is_upgrade_due() || !self.ignored.is_empty() {
            return true;
        }
        if self.upgrade.holds() {
            return self.pools.iter().any(|pool| pool.policy.requests.has_reopen());
        }
        let has_requests = |pool: &Pool| !pool.is_waiting() && pool.policy.has_requests();
        self.pools.iter().any(has_requests) || self.is_roll_due()
    }

    /// Executes the requests that have arrived since the last call, as [`Policy::execute_requests`] does. Also lets the
    /// rolling restart of all pools go on with the next pool, and an upgrade with its next step. During an upgrade, the
    /// requests wait for its end, except those to reopen files.
    pub fn execute_requests(&mut self, now: Instant) {
        self.report_ignored(now);
        self.advance_upgrade(now);
        if self.upgrade.holds() {
            self.pools.live_mut().for_each(|pool| pool.policy.execute_reopen());
            return;
        }
        self.advance_roll(now);
        let started = self.pools.live_mut().filter(|pool| !pool.is_waiting());
        started.for_each(|pool| pool.policy.execute_requests(now));
    }

    /// Lowers the `max_workers` of a pool to the number of processes that the system allows.
    pub fn limit_workers(&mut self, pool: usize, processes: usize) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.policy.limit_workers(processes);
        }
    }

    pub fn handle_started(&mut self, now: Instant, process: Process) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_started(now, process);
        }
    }

    pub fn handle_ready(&mut self, now: Instant, process: Process) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_ready(now, process.id, process.generation);
        }
    }

    pub fn handle_retire(&mut self, now: Instant, process: Process) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_retire(now, process);
        }
    }

    pub fn handle_work_done(&mut self, now: Instant, process: Process) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_work_done(now, process);
        }
    }

    /// Returns what the parent must read now about the memory of one pool, and the position of this pool. See
    /// [`Policy::memory_reading`].
    pub fn memory_reading(&mut self, now: Instant) -> Option<(usize, MemoryReading)> {
        let mut pools = self.pools.iter_mut().enumerate().filter(|(_, pool)| !pool.has_ended());
        pools.find_map(|(index, pool)| Some((index, pool.policy.memory_reading(now)?)))
    }

    pub fn handle_memory_bound(&mut self, now: Instant, process: Process, bytes: u64) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_memory_bound(now, process, bytes);
        }
    }

    pub fn handle_memory(&mut self, now: Instant, process: Process, bytes: u64) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_memory(now, process, bytes);
        }
    }

    pub fn end_memory_reading(&mut self, pool: usize, begun: Instant, now: Instant) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.policy.end_memory_reading(begun, now);
        }
    }

    pub fn handle_beat(&mut self, now: Instant, process: Process) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_beat(now, process.id, process.generation);
        }
    }

    pub fn handle_exited(&mut self, now: Instant, exited: ExitedProcess) {
        let Some(index) = self.index_of(exited.process) else { return };
        self.pools[index].policy.handle_exited(now, exited);
        self.stop_after_failure(now, index);
    }

    pub fn handle_abandoned_exited(&mut self, now: Instant, process: Process) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_abandoned_exited(now, process);
        }
    }

    pub fn handle_reached_call(&mut self, process: Process) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_reached_call(process.id);
        }
    }

    pub fn handle_core_dump(&mut self, now: Instant, process: Process) {
        if let Some(policy) = self.policy_of(process) {
            policy.handle_core_dump(now, process);
        }
    }

    /// Lets the draining process of worker `id` of this pool continue, because connections are left in its queue.
    pub fn handle_work_left(&mut self, now: Instant, pool: usize, id: usize) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.policy.handle_work_left(now, id);
        }
    }

    pub fn handle_interruption(&mut self, now: Instant) {
        self.pools.iter_mut().for_each(|pool| pool.policy.handle_interruption(now));
    }

    pub fn extend_deadlines(&mut self, now: Instant) {
        self.pools.live_mut().for_each(|pool| pool.policy.extend_deadlines(now));
        self.upgrade.extend(now, self.pools[0].policy.interrupted_at);
    }

    /// Handles every deadline that has passed, in all pools.
    pub fn handle_timeout(&mut self, now: Instant) {
        for index in 0..self.pools.len() {
            if !self.pools[index].has_ended() {
                self.pools[index].policy.handle_timeout(now);
                self.stop_after_failure(now, index);
            }
        }
        self.handle_upgrade_timeout(now);
    }
}
