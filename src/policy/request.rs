//! The requests of operators, other than stop requests, that the policy has not executed yet.

use std::collections::BTreeSet;
use std::mem;

/// A request to the parent. Most requests arrive as a signal on Unix. The program makes the others in the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Stop,
    QuickStop,
    Roll,
    ScaleUp,
    ScaleDown,
    /// Run this number of workers.
    Scale(usize),
    /// Replace the process of the worker with this id.
    Replace(usize),
    Reopen,
    /// Upgrade the service to the program on disk.
    Upgrade,
}

/// No system runs this number of processes. So no worker has this id or a higher one.
const MAX_IDS: usize = 1 << 22;

/// Requests that wait until all actions of the earlier requests have been executed. Each kind of request is in the
/// list at most once, so a flood of requests neither fills the memory nor delays a stop.
#[derive(Debug, Default)]
pub(crate) struct PendingRequests {
    requests: Vec<Request>,
    /// The ids of the workers that must be replaced.
    replacements: BTreeSet<usize>,
    /// The first id in a request that no worker had when the request arrived. Further such ids are dropped, because
    /// their number has almost no limit.
    unknown: Option<usize>,
}

impl PendingRequests {
    pub fn add(&mut self, request: Request) {
        match request {
            Request::Replace(id) if id < MAX_IDS => {
                self.replacements.insert(id);
            }
            Request::Replace(id) => self.add_unknown(id),
            Request::Scale(_) => {
                // The last number counts. It also replaces the earlier requests for one worker more or less.
                let is_replaced =
                    |earlier: &Request| matches!(earlier, Request::Scale(_) | Request::ScaleUp | Request::ScaleDown);
                self.requests.retain(|earlier| !is_replaced(earlier));
                self.requests.push(request);
            }
            _ if self.requests.contains(&request) => {}
            _ => self.requests.push(request),
        }
    }

    /// Adds a request to replace a worker that does not exist.
    pub fn add_unknown(&mut self, id: usize) {
        self.unknown.get_or_insert(id);
    }

    /// Removes all requests and returns them: first the others in the order in which they arrived, then the
    /// replacements of single workers in the order of their ids.
    pub fn take(&mut self) -> Vec<Request> {
        let mut requests = mem::take(&mut self.requests);
        let ids = mem::take(&mut self.replacements).into_iter().chain(self.unknown.take());
        requests.extend(ids.map(Request::Replace));
        requests
    }

    /// Returns the requests in the order in which [`PendingRequests::take`] returns them.
    pub fn list(&self) -> Vec<Request> {
        let ids = self.replacements.iter().copied().chain(self.unknown);
        self.requests.iter().copied().chain(ids.map(Request::Replace)).collect()
    }

    pub fn has_reopen(&self) -> bool {
        self.requests.contains(&Request::Reopen)
    }

    /// Removes the request to reopen files. Returns whether there was one.
    pub fn take_reopen(&mut self) -> bool {
        let has_reopen = self.has_reopen();
        self.requests.retain(|request| *request != Request::Reopen);
        has_reopen
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.replacements.is_empty() && self.unknown.is_none()
    }

    pub fn clear(&mut self) {
        *self = PendingRequests::default();
    }

    #[cfg(test)]
    pub fn scales_down(&self) -> bool {
        self.requests.iter().any(|request| matches!(request, Request::ScaleDown | Request::Scale(_)))
    }
}
