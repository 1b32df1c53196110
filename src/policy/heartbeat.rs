//! Checking heartbeats.

use std::time::Instant;

use super::Policy;

impl Policy {
    /// Aborts processes without a heartbeat, if the next check is due.
    ///
    /// A parent that wakes up much later than it asked was starved, or the machine was suspended, and the workers with it:
    /// then every process gets one more period. If it wakes up somewhat later, or was interrupted, that may be so: then a
    /// silent process gets one more period, but only one.
    pub(super) fn check_heartbeats(&mut self, now: Instant) {
        let Some(timeout) = self.config.heartbeat_timeout else { return };
        let Some(check_at) = self.check_beats_at else { return };
        let Some(late) = now.checked_duration_since(check_at) else { return };
        let interrupted = self.interrupted_at.is_some_and(|at| at + timeout >= check_at);
        let doubtful = interrupted || late >= timeout / 10;
        for slot in &mut self.slots {
            if late >= timeout / 2 {
                slot.forgive_beats(now);
            } else {
                slot.check_beats(now, timeout, doubtful, &mut self.actions);
            }
        }
        self.check_beats_at = Some(now + timeout);
    }
}
