//! The limit on restarts.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The number of restarts that all workers together may still have, either in the lifetime of the service or within a
/// sliding time window.
#[derive(Debug)]
pub(super) struct Budget {
    /// `None` if there is no limit.
    max: Option<u32>,
    window: Option<Duration>,
    spent: u32,
    /// The times of the restarts that may still be in the window, in ascending order. The list is empty if there is no
    /// window or no limit.
    recent: VecDeque<Instant>,
}

impl Budget {
    pub fn new(max: Option<u32>, window: Option<Duration>) -> Budget {
        Budget { max, window, spent: 0, recent: VecDeque::new() }
    }

    /// Takes one restart out of the budget. Returns false if no restart is left.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.left(now) == Some(0) {
            return false;
        }
        self.spent = self.spent.saturating_add(1);
        if let (Some(_), Some(window)) = (self.max, self.window) {
            while self.recent.front().is_some_and(|&then| now.duration_since(then) > window) {
                self.recent.pop_front();
            }
            self.recent.push_back(now);
        }
        true
    }

    /// Returns how many restarts are left, or `None` if there is no limit.
    pub fn left(&self, now: Instant) -> Option<u32> {
        let max = self.max?;
        let counted = match self.window {
            Some(window) => self.recent.iter().filter(|&&then| now.duration_since(then) <= window).count() as u32,
            None => self.spent,
        };
        Some(max.saturating_sub(counted))
    }

    /// Returns the number of restarts in the whole lifetime of the service, even if the limit applies to a window.
    pub fn spent(&self) -> u32 {
        self.spent
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::some_time;
    use super::*;

    #[test]
    fn a_lifetime_budget_counts_every_restart() {
        let mut budget = Budget::new(Some(2), None);
        let now = some_time();
        assert!(budget.take(now) && budget.take(now + Duration::from_secs(1_000_000)));
        assert!(!budget.take(now + Duration::from_secs(2_000_000)));
        assert_eq!((budget.spent(), budget.left(now + Duration::from_secs(2_000_000))), (2, Some(0)));
    }

    #[test]
    fn a_window_counts_only_the_restarts_within_it() {
        let mut budget = Budget::new(Some(2), Some(Duration::from_secs(60)));
        let now = some_time();
        assert!(budget.take(now) && budget.take(now + Duration::from_secs(59)));
        assert!(!budget.take(now + Duration::from_secs(60)));
        assert!(budget.take(now + Duration::from_secs(61)), "the first restart has left the window");
        assert_eq!((budget.spent(), budget.left(now + Duration::from_secs(61))), (3, Some(0)));
    }

    #[test]
    fn without_a_limit_restarts_need_no_memory() {
        let mut budget = Budget::new(None, Some(Duration::from_secs(60)));
        for _ in 0..1000 {
            assert!(budget.take(some_time()));
        }
        assert_eq!((budget.spent(), budget.left(some_time())), (1000, None));
        assert!(budget.recent.is_empty());
    }

    #[test]
    fn the_number_of_restarts_does_not_overflow() {
        let mut budget = Budget::new(Some(1), Some(Duration::from_secs(60)));
        budget.spent = u32::MAX;
        assert!(budget.take(some_time()));
        assert_eq!(budget.spent(), u32::MAX);
    }

    #[test]
    fn a_restart_counts_until_the_window_has_passed() {
        let mut budget = Budget::new(Some(3), Some(Duration::from_secs(60)));
        let now = some_time();
        let last = now + Duration::from_secs(60);
        assert!(budget.take(now) && budget.take(last));
        assert_eq!(budget.left(last), Some(1), "the first restart was exactly one window ago");
        assert_eq!(budget.left(last + Duration::from_nanos(1)), Some(2));
    }
}
