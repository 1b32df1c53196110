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

#[cfg(test)]
mod tests {
    use super::super::tests::some_time;
    use super::*;

    #[test]
    fn a_kill_is_delayed_from_its_deadline_to_the_limit() {
        let due = some_time() + CHECK_INTERVAL;
        let latest = due + MAX_DELAY;
        let mut deadline = KillDeadline::new(due);
        assert!(!deadline.may_wait(due - Duration::from_nanos(1)));
        deadline.wait(due - Duration::from_nanos(1));
        assert_eq!(deadline.at(), due, "it has not passed yet");
        assert!(deadline.may_wait(due));
        deadline.wait(due);
        assert_eq!(deadline.at(), due + CHECK_INTERVAL);
        deadline.wait(latest - Duration::from_nanos(1));
        assert_eq!(deadline.at(), latest);
        assert!(!deadline.may_wait(latest));
        deadline.wait(latest);
        assert_eq!(deadline.at(), latest);
    }

    #[test]
    fn only_an_earlier_deadline_replaces_a_delayed_one() {
        let due = some_time();
        let mut deadline = KillDeadline::new(due);
        deadline.wait(due);
        assert_eq!(deadline.or_earlier(deadline.at()), deadline, "the limit of the delay stays");
        assert_eq!(deadline.or_earlier(due), KillDeadline::new(due));
    }
}
