//! The requests of operators, other than stop requests, that the policy has not executed yet.

/// A request to the parent, which arrives as a signal on Unix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Stop,
    QuickStop,
    Roll,
    ScaleUp,
    ScaleDown,
    Reopen,
}

/// Requests that wait until all actions of the earlier requests have been executed. Each kind of request is in the
/// list at most once, so a flood of requests neither fills the memory nor delays a stop.
#[derive(Debug, Default)]
pub(crate) struct PendingRequests(Vec<Request>);

impl PendingRequests {
    pub fn add(&mut self, request: Request) {
        if !self.0.contains(&request) {
            self.0.push(request);
        }
    }

    /// Removes all requests and returns them in the order in which they arrived.
    pub fn take(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    #[cfg(test)]
    pub fn contains(&self, request: Request) -> bool {
        self.0.contains(&request)
    }
}
