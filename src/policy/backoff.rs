//! Computes how long a worker waits before its next start.

use std::time::Duration;

use rand::{RngExt, rngs::SmallRng};

/// If a process exits after less than this time, its worker waits before the next start. The first of several failures
/// in a row is an exception: the worker then restarts at once.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// A process that has lived for at least this long resets the failure count of its worker.
pub(super) const SOUND_LIFE: Duration = Duration::from_secs(10);

/// The first and the longest delay before a restart, for all workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delays {
    pub first: Duration,
    pub max: Duration,
}

/// The delays and the failures of one worker.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// The number of delays so far, which determines the next delay. The first failure counts as a delay too.
    steps: u32,
    /// The number of failures in a row.
    failures: u32,
}

impl Backoff {
    /// Resets both counts if the current process has lived for at least [`SOUND_LIFE`].
    pub fn note_uptime(&mut self, uptime: Duration) {
        if uptime >= SOUND_LIFE {
            *self = Backoff::default();
        }
    }

    /// Returns the number of failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Begins a new row of failures.
    pub fn forget_failures(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure of a process that has lived for `uptime`. Returns the delay before the next start.
    pub fn after_failure(&mut self, uptime: Duration, delays: Delays, rng: &mut SmallRng) -> Duration {
        self.note_uptime(uptime);
        self.failures = self.failures.saturating_add(1);
        if self.steps == 0 || uptime >= SHORT_LIFE {
            self.steps = self.steps.max(1);
            return Duration::ZERO;
        }
        self.next(delays, rng)
    }

    /// Returns the delay before the next start, after a process has exited without a failure and has lived for
    /// `uptime`. The delay after a short life keeps a worker that always exits at once from using a whole CPU.
    pub fn after_normal_exit(&mut self, uptime: Duration, delays: Delays, rng: &mut SmallRng) -> Duration {
        self.note_uptime(uptime);
        self.forget_failures();
        if uptime >= SHORT_LIFE { Duration::ZERO } else { self.after_refusal(delays, rng) }
    }

    /// Counts a start that the system has refused. Returns the delay before the next attempt, which is never zero.
    pub fn after_refusal(&mut self, delays: Delays, rng: &mut SmallRng) -> Duration {
        self.steps = self.steps.max(1);
        self.next(delays, rng)
    }

    /// Returns a random delay between half of an upper limit and the limit itself, so that workers that failed together
    /// do not restart together. The upper limit is `delays.first` at the first call. The limit doubles at each further
    /// call, up to `delays.max`.
    fn next(&mut self, delays: Delays, rng: &mut SmallRng) -> Duration {
        let doubled = 1u32.checked_shl(self.steps - 1).and_then(|factor| delays.first.checked_mul(factor));
        let whole = doubled.unwrap_or(delays.max).min(delays.max);
        self.steps = self.steps.saturating_add(1);
        whole.mul_f64(rng.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const DELAYS: Delays = Delays { first: Duration::from_millis(10), max: Duration::from_secs(1) };

    #[test]
    fn delays_double_after_the_first_failure() {
        let mut backoff = Backoff::default();
        let mut rng = SmallRng::seed_from_u64(1);
        assert_eq!(backoff.after_failure(Duration::ZERO, DELAYS, &mut rng), Duration::ZERO);
        for whole in [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000] {
            let delay = backoff.after_failure(Duration::from_millis(5), DELAYS, &mut rng);
            let whole = Duration::from_millis(whole);
            assert!(delay >= whole / 2 && delay <= whole, "{delay:?} of {whole:?}");
        }
    }

    #[test]
    fn ten_seconds_of_uptime_reset_the_delay() {
        let mut backoff = Backoff::default();
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..5 {
            backoff.after_failure(Duration::ZERO, DELAYS, &mut rng);
        }
        assert_eq!(backoff.after_failure(Duration::from_secs(5), DELAYS, &mut rng), Duration::ZERO);
        assert!(
            backoff.after_failure(Duration::ZERO, DELAYS, &mut rng) >= Duration::from_millis(80),
            "5 s of uptime do not reset the count"
        );
        assert_eq!(backoff.after_failure(Duration::from_secs(10), DELAYS, &mut rng), Duration::ZERO);
        assert!(backoff.after_failure(Duration::ZERO, DELAYS, &mut rng) <= Duration::from_millis(10));
    }

    #[test]
    fn only_failures_without_a_normal_exit_are_in_a_row() {
        let mut backoff = Backoff::default();
        let mut rng = SmallRng::seed_from_u64(1);
        for expected in 1..=3 {
            backoff.after_failure(Duration::from_secs(5), DELAYS, &mut rng);
            backoff.after_refusal(DELAYS, &mut rng);
            assert_eq!(backoff.failures(), expected);
        }
        backoff.after_normal_exit(Duration::from_secs(5), DELAYS, &mut rng);
        assert_eq!(backoff.failures(), 0);
        backoff.after_failure(Duration::ZERO, DELAYS, &mut rng);
        backoff.note_uptime(SOUND_LIFE);
        assert_eq!(backoff.failures(), 0);
    }

    #[test]
    fn refused_starts_always_wait_and_never_overflow() {
        let mut backoff = Backoff::default();
        let mut rng = SmallRng::seed_from_u64(1);
        for attempt in 0..200 {
            if attempt == 100 {
                backoff.steps = u32::MAX - 50;
            }
            let delay = backoff.after_refusal(DELAYS, &mut rng);
            assert!(delay >= DELAYS.first / 2 && delay <= DELAYS.max, "{delay:?}");
        }
        assert!(backoff.after_failure(Duration::ZERO, DELAYS, &mut rng) >= DELAYS.max / 2);
        assert_eq!(backoff.steps, u32::MAX);
    }
}
