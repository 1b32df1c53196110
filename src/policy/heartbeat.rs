//! Checks the heartbeats of all processes.

use std::time::Instant;

use super::Policy;

impl Policy {
    /// Aborts the processes that have sent no heartbeat in time. Does nothing before the next check is due. Returns
    /// whether it has checked the heartbeats.
    ///
    /// If the parent wakes up late, the workers may have been delayed too. The policy distinguishes two cases:
    ///
    /// - If the parent wakes up late by half the timeout or more, it was starved, or the machine was suspended. So the
    ///   workers were delayed as well, and every process gets one more period.
    /// - If the parent wakes up late by a tenth of the timeout or more, or was interrupted during the period, the
    ///   workers may have been delayed. A process without a heartbeat then gets one more period, but only once.
    pub(super) fn check_heartbeats(&mut self, now: Instant) -> bool {
        let Some(timeout) = self.beat_interval else { return false };
        let Some(check_at) = self.check_beats_at else { return false };
        let Some(late) = now.checked_duration_since(check_at) else { return false };
        let interrupted = self.interrupted_at.is_some_and(|at| at + timeout >= check_at);
        let doubtful = interrupted || late >= timeout / 10;
        for slot in &mut self.slots {
            if late >= timeout / 2 {
                slot.forgive_beats(now);
            } else {
                slot.check_beats(now, &self.config, doubtful, &mut self.actions);
            }
        }
        self.check_beats_at = Some(now + timeout);
        true
    }
}
