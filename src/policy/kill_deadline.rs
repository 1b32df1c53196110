//! The time at which a process gets SIGKILL, and its delay by a core dump.

use std::time::{Duration, Instant};

use super::deadline::Deadline;

/// The time until the next look at a process whose core dump the kernel is writing.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The longest delay of SIGKILL by a core dump.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// The time at which a process gets SIGKILL. The supervisor may delay it while the kernel is writing a core dump of the
/// process, because SIGKILL would cut the core dump off. The total delay is limited, because a program that receives
/// the core dump through a pipe may hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KillDeadline {
    deadline: Deadline,
    /// The time of the next look at the process while the kernel is writing its core dump.
    check_at: Option<Instant>,
}

impl KillDeadline {
    pub fn new(deadline: Deadline) -> KillDeadline {
        KillDeadline { deadline, check_at: None }
    }

    pub fn at(self) -> Instant {
        self.check_at.unwrap_or(self.deadline.at())
    }

    fn latest(self) -> Instant {
        self.deadline.at() + MAX_DELAY
    }

    /// Returns this deadline, or `other` if that is earlier.
    pub fn or_earlier(self, other: Deadline) -> KillDeadline {
        if other.at() < self.at() {
            KillDeadline::new(other)
        } else {
            KillDeadline { deadline: self.deadline.or_earlier(other), ..self }
        }
    }

    /// Extends the deadline if the parent was paused or starved ([`Deadline::extend`]). Does nothing while the kernel
    /// is writing a core dump.
    pub fn extend(&mut self, now: Instant, interrupted_at: Option<Instant>) -> bool {
        self.check_at.is_none() && self.deadline.extend(now, interrupted_at)
    }

    /// Returns whether the deadline has passed, but may be delayed.
    pub fn may_wait(self, now: Instant) -> bool {
        self.at() <= now && now < self.latest()
    }

    /// Delays the deadline if it has passed.
    pub fn wait(&mut self, now: Instant) {
        if self.may_wait(now) {
            self.check_at = Some((now + CHECK_INTERVAL).min(self.latest()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::some_time;
    use super::*;

    #[test]
    fn a_kill_is_delayed_from_its_deadline_to_the_limit() {
        let begun = some_time();
        let due = begun + CHECK_INTERVAL;
        let latest = due + MAX_DELAY;
        let mut deadline = KillDeadline::new(Deadline::after(begun, CHECK_INTERVAL));
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
        let now = Deadline::after(due, Duration::ZERO);
        let mut deadline = KillDeadline::new(now);
        deadline.wait(due);
        let same = Deadline::after(due, deadline.at() - due);
        assert_eq!(deadline.or_earlier(same).at(), deadline.at());
        assert_eq!(deadline.or_earlier(same).latest(), deadline.latest(), "the limit of the delay stays");
        assert_eq!(deadline.or_earlier(now), KillDeadline::new(now));
    }

    #[test]
    fn a_deadline_is_not_extended_during_a_core_dump() {
        let begun = some_time();
        let mut deadline = KillDeadline::new(Deadline::after(begun, CHECK_INTERVAL));
        deadline.wait(begun + CHECK_INTERVAL);
        assert!(!deadline.extend(begun + 5 * CHECK_INTERVAL, None));
    }
}
