//! A [`Deadline`], which is extended once if the parent was paused or starved.

use std::time::{Duration, Instant};

/// A parent that is late by this much was paused or starved, however long the timeout is. The parent does not notice
/// every pause otherwise: if all processes are stopped, the SIGCHLD of a stopped worker can wake the parent before its
/// own stop.
const STARVED: Duration = Duration::from_millis(100);

/// The end of the time that a process has for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline {
    begun: Instant,
    at: Instant,
    /// The time by which the deadline is extended.
    timeout: Duration,
    is_extended: bool,
}

impl Deadline {
    pub fn after(now: Instant, timeout: Duration) -> Deadline {
        Deadline { begun: now, at: now + timeout, timeout, is_extended: false }
    }

    pub fn at(self) -> Instant {
        self.at
    }

    pub fn has_passed(self, now: Instant) -> bool {
        self.at <= now
    }

    /// Returns the earlier one of two deadlines. `newer` begins later. If `self` is earlier, an extension of it still
    /// does not exceed an extension of `newer`.
    pub fn or_earlier(self, newer: Deadline) -> Deadline {
        if newer.at < self.at {
            newer
        } else if self.has_passed(newer.begun) {
            Deadline { timeout: self.timeout.min(newer.timeout), ..self }
        } else {
            Deadline { begun: newer.begun, timeout: self.at - newer.begun, ..self }
        }
    }

    /// Gives the process the whole time once more if the deadline has passed and the parent may have been paused or
    /// starved meanwhile, because the process may have been too. Does this only once. `interrupted_at` is the end of
    /// the last wait of the parent that ended early for no known reason. Returns whether the deadline was extended.
    pub fn extend(&mut self, now: Instant, interrupted_at: Option<Instant>) -> bool {
        let late = now.saturating_duration_since(self.at);
        let was_paused = interrupted_at.is_some_and(|at| at > self.begun) || late >= STARVED.min(self.timeout / 10);
        if !self.has_passed(now) || !was_paused || self.is_extended {
            return false;
        }
        self.is_extended = true;
        self.at = now + self.timeout;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::some_time;
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[test]
    fn a_late_parent_extends_a_deadline_once() {
        let now = some_time();
        let mut deadline = Deadline::after(now, TIMEOUT);
        assert!(!deadline.extend(now + TIMEOUT - Duration::from_nanos(1), None), "it has not passed");
        let late = now + TIMEOUT + Duration::from_millis(100);
        assert!(!deadline.extend(late - Duration::from_nanos(1), None), "the parent is not late enough");
        assert!(deadline.extend(late, None));
        assert_eq!(deadline.at(), late + TIMEOUT);
        assert!(!deadline.extend(late + 2 * TIMEOUT, None));
    }

    #[test]
    fn a_newer_deadline_limits_the_extension_of_an_earlier_one() {
        let now = some_time();
        let second = Duration::from_secs(1);
        let old = Deadline::after(now, TIMEOUT);
        let quick = Deadline::after(now + 20 * second, 2 * second);
        assert_eq!(old.or_earlier(quick), quick);
        let newer = Deadline::after(now + 20 * second, TIMEOUT);
        let mut running = old.or_earlier(newer);
        assert_eq!(running.at(), old.at());
        assert!(!running.extend(old.at(), Some(now + 10 * second)), "the interruption came before the newer request");
        assert!(running.extend(old.at(), Some(now + 21 * second)));
        assert_eq!(running.at(), old.at() + 10 * second);
        let late = old.at() + 3 * second;
        let mut passed = old.or_earlier(Deadline::after(late, 2 * second));
        assert!(passed.extend(late, None));
        assert_eq!(passed.at(), late + 2 * second);
    }

    #[test]
    fn a_tenth_of_a_short_timeout_is_late() {
        let now = some_time();
        let mut deadline = Deadline::after(now, Duration::from_millis(500));
        assert!(!deadline.extend(now + Duration::from_millis(549), None));
        assert!(deadline.extend(now + Duration::from_millis(550), None));
    }

    #[test]
    fn only_an_interruption_after_its_begin_extends_a_deadline() {
        let now = some_time();
        let mut deadline = Deadline::after(now, TIMEOUT);
        assert!(!deadline.extend(now + TIMEOUT, Some(now)));
        assert!(!deadline.extend(now + TIMEOUT / 2, Some(now + TIMEOUT / 3)), "it has not passed");
        assert!(deadline.extend(now + TIMEOUT, Some(now + Duration::from_nanos(1))));
    }
}
