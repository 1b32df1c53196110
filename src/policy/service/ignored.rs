//! Requests that have no effect, because there is no such pool, or because the pool is stopping or has ended.

use std::mem;
use std::time::Instant;

use super::Service;
use crate::event::Event;
use crate::policy::scale::QUIET;

/// The requests without an effect that the policy has not reported yet, and the last one that it has reported.
#[derive(Debug, Default)]
pub(super) struct IgnoredRequests {
    /// Contains each pool at most once, and at most one name that no pool has. So a flood of requests does not fill the
    /// memory.
    waiting: Vec<IgnoredRequest>,
    reported: Option<(IgnoredRequest, Instant)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IgnoredRequest {
    name: String,
    /// The position of the pool. `None` if there is no pool with this name.
    pool: Option<usize>,
}

impl IgnoredRequests {
    fn add(&mut self, request: IgnoredRequest) {
        if self.waiting.iter().all(|other| other.pool != request.pool) {
            self.waiting.push(request);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Returns whether an equal request was reported less than a second ago.
    fn is_repeated(&self, now: Instant, request: &IgnoredRequest) -> bool {
        self.reported.as_ref().is_some_and(|(last, at)| last == request && now < *at + QUIET)
    }
}

impl Service {
    /// Handles a request for a pool that does not exist. The next call of [`Service::execute_requests`] reports it.
    pub fn handle_ignored(&mut self, pool: String) {
        if !self.is_stopping() {
            self.ignored.add(IgnoredRequest { name: pool, pool: None });
        }
    }

    /// Handles a request for a pool that is stopping or has ended.
    pub(super) fn ignore_request(&mut self, index: usize) {
        let name = self.pools[index].name().to_owned();
        self.ignored.add(IgnoredRequest { name, pool: Some(index) });
    }

    /// Reports the requests that have no effect. Does not report a request that repeats the last one within a second,
    /// so that a process that sends signals in a loop does not fill the log.
    pub(super) fn report_ignored(&mut self, now: Instant) {
        for request in mem::take(&mut self.ignored.waiting) {
            if self.ignored.is_repeated(now, &request) {
                continue;
            }
            let event = Event::RequestIgnored { pool: request.name.clone(), has_ended: request.pool.is_some() };
            self.pools[request.pool.unwrap_or(0)].policy.actions.emit(event);
            self.ignored.reported = Some((request, now));
        }
    }
}
