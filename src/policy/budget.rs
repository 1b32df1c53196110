//! How many restarts there may be.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Restarts of all ids together: in the lifetime, or within a sliding window.
#[derive(Debug)]
pub(super) struct Budget {
    max: u32,
    window: Option<Duration>,
    spent: u32,
    recent: VecDeque<Instant>,
}

impl Budget {
    pub fn new(max: u32, window: Option<Duration>) -> Budget {
        Budget { max, window, spent: 0, recent: VecDeque::new() }
    }

    /// Takes one restart out of the budget; false if there is none left.
    pub fn take(&mut self, now: Instant) -> bool {
        self.forget(now);
        if self.left() == 0 {
            return false;
        }
        self.spent += 1;
        if self.window.is_some() {
            self.recent.push_back(now);
        }
        true
    }

    pub fn left(&self) -> u32 {
        let counted = if self.window.is_some() { self.recent.len() as u32 } else { self.spent };
        self.max - counted
    }

    /// Restarts in the whole lifetime, window or not.
    pub fn spent(&self) -> u32 {
        self.spent
    }

    fn forget(&mut self, now: Instant) {
        if let Some(window) = self.window {
            while self.recent.front().is_some_and(|&then| now.duration_since(then) > window) {
                self.recent.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::some_time;
    use super::*;

    #[test]
    fn a_lifetime_budget_counts_every_restart_there_ever_was() {
        let (mut budget, now) = (Budget::new(2, None), some_time());
        assert!(budget.take(now) && budget.take(now + Duration::from_secs(1_000_000)));
        assert!(!budget.take(now + Duration::from_secs(2_000_000)));
        assert_eq!((budget.spent(), budget.left()), (2, 0));
    }

    #[test]
    fn a_window_counts_only_the_restarts_within_it() {
        let (mut budget, now) = (Budget::new(2, Some(Duration::from_secs(60))), some_time());
        assert!(budget.take(now) && budget.take(now + Duration::from_secs(59)));
        assert!(!budget.take(now + Duration::from_secs(60)));
        assert!(budget.take(now + Duration::from_secs(61)), "the first one is forgotten by now");
        assert_eq!((budget.spent(), budget.left()), (3, 0));
    }
}
