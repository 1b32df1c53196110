//! The time at which a process gets SIGKILL, and its delay by a core dump.

use std::time::{Duration, Instant};

/// The time until the next look at a process whose core dump the kernel is writing.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The longest delay of SIGKILL by a core dump.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// The time at which a process gets SIGKILL. The supervisor may delay it while the kernel is writing a core dump of the
/// process, because SIGKILL would cut the core dump off. The total delay is limited, because a program that receives the
/// core dump through a pipe may hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KillDeadline {
    at: Instant,
    latest: Instant,
}

impl KillDeadline {
    pub fn new(at: Instant) -> KillDeadline {
        KillDeadline { at, latest: at + MAX_DELAY }
    }

    pub fn at(self) -> Instant {
        self.at
    }

    /// Returns this deadline, or that of `at` if `at` is earlier.
    pub fn or_earlier(self, at: Instant) -> KillDeadline {
        if at < self.at { KillDeadline::new(at) } else { self }
    }

    /// Returns whether the deadline has passed, but may be delayed.
    pub fn may_wait(self, now: Instant) -> bool {
        self.at <= now && now < self.latest
    }

    /// Delays the deadline if it has passed.
    pub fn wait(&mut self, now: Instant) {
        if self.may_wait(now) {
            self.at = (now + CHECK_INTERVAL).min(self.latest);
        }
    }
}
