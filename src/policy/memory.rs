//! Plans when the parent reads how much memory the processes of a pool use.
//!
//! The parent first reads an upper bound for every process, because that is cheap. It then reads the exact size of each
//! process with a bound above the limit: one process in each turn of the loop, because an exact size can take the
//! kernel several milliseconds.
//!
//! After each reading, the parent waits for 99 times as long as the reading took. So all readings of a pool together
//! take at most 1 % of the parent's time, however large the processes are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Policy;
use crate::event::RecycleReason;
use crate::exit::Process;

/// The time from the beginning of one check of all processes to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// The shortest time between two readings.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// The longest time between two readings. Without this limit, a parent that was stopped (SIGSTOP) during a reading
/// would pause for days.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// The pause after a reading, as a multiple of the time that the reading took.
const PAUSE_FACTOR: u32 = 99;

/// What the parent must read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryReading {
    /// The upper bounds of all processes of the pool.
    Bounds,
    /// The exact size of one process.
    Exact(Process),
}

/// The last known size of the private memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemorySample {
    pub bytes: u64,
    /// The time at which the parent read the size.
    pub at: Instant,
    /// Whether `bytes` is the exact size. If `false`, it is an upper bound.
    pub is_exact: bool,
}

/// The readings of one pool with a `max_memory`.
#[derive(Debug)]
pub(super) struct MemoryChecks {
    limit: u64,
    /// The time of the next reading.
    next_at: Instant,
    /// The earliest time at which the next check of all processes begins.
    check_at: Instant,
    /// The processes with an upper bound above the limit, of which the exact size was not read since.
    suspects: Vec<Process>,
    /// The last sample of each process, by worker id and generation.
    samples: BTreeMap<(usize, u32), MemorySample>,
}

impl MemoryChecks {
    pub fn new(limit: u64, now: Instant) -> MemoryChecks {
        let first = now + INTERVAL;
        MemoryChecks { limit, next_at: first, check_at: first, suspects: Vec::new(), samples: BTreeMap::new() }
    }
}

impl Policy {
    /// Returns what the parent must read now, if anything. After the reading, call
    /// [`Policy::handle_memory_bound`] or [`Policy::handle_memory`] for each process, and then
    /// [`Policy::end_memory_reading`].
    pub fn memory_reading(&mut self, now: Instant) -> Option<MemoryReading> {
        let is_stopping = self.stop.is_some();
        let checks = self.memory.as_mut().filter(|checks| checks.next_at <= now && !is_stopping)?;
        while let Some(process) = checks.suspects.pop() {
            if self.slots.get(process.id).is_some_and(|slot| slot.may_wear_out(process.generation)) {
                return Some(MemoryReading::Exact(process));
            }
        }
        if checks.check_at > now {
            checks.next_at = checks.check_at;
            return None;
        }
        checks.check_at = now + INTERVAL;
        let slots = &self.slots;
        checks.samples.retain(|(id, generation), _| {
            slots.get(*id).is_some_and(|slot| slot.processes().any(|process| process.generation == *generation))
        });
        Some(MemoryReading::Bounds)
    }

    /// Handles an upper bound of the private memory of a process, in bytes.
    pub fn handle_memory_bound(&mut self, now: Instant, process: Process, bytes: u64) {
        let Some(checks) = &mut self.memory else { return };
        let Some(slot) = self.slots.get(process.id).filter(|slot| slot.processes().any(|known| known == process))
        else {
            return;
        };
        let sample = MemorySample { bytes, at: now, is_exact: false };
        if bytes <= checks.limit {
            checks.samples.insert((process.id, process.generation), sample);
            return;
        }
        // An earlier exact size says more than the bound, which may include much memory of the parent.
        let last = checks.samples.entry((process.id, process.generation)).or_insert(sample);
        if !last.is_exact {
            *last = sample;
        }
        if slot.may_wear_out(process.generation) {
            checks.suspects.push(process);
        }
    }

    /// Handles the exact size of the private memory of a process, in bytes.
    pub fn handle_memory(&mut self, now: Instant, process: Process, bytes: u64) {
        let Some(checks) = &mut self.memory else { return };
        let sample = MemorySample { bytes, at: now, is_exact: true };
        checks.samples.insert((process.id, process.generation), sample);
        if bytes > checks.limit {
            self.handle_worn_out(now, process, RecycleReason::Memory { bytes });
        }
    }

    /// Plans the next reading, after a reading that has begun at `begun`.
    pub fn end_memory_reading(&mut self, begun: Instant, now: Instant) {
        let Some(checks) = &mut self.memory else { return };
        let pause = now.saturating_duration_since(begun).saturating_mul(PAUSE_FACTOR);
        let next_at = now + pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        checks.next_at = if checks.suspects.is_empty() { next_at.max(checks.check_at) } else { next_at };
    }

    /// Returns the time of the next reading.
    pub(super) fn next_memory_reading(&self) -> Option<Instant> {
        let checks = self.memory.as_ref().filter(|_| self.stop.is_none())?;
        Some(checks.next_at)
    }

    /// Returns the last sample of this process. Returns `None` before the first one, and without a `max_memory`.
    pub fn memory_sample(&self, process: Process) -> Option<MemorySample> {
        self.memory.as_ref()?.samples.get(&(process.id, process.generation)).copied()
    }
}
