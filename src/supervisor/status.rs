//! Assembles the [`Status`] of the service from what the policy, the pools and the system know.

use std::process;
use std::time::{Duration, Instant, SystemTime};

use super::observer::ServiceView;
use super::pool::Pool;
use crate::event::Event;
use crate::exit::Process;
use crate::policy::{MemorySample, Service, WorkerFacts};
use crate::scoreboard::Work;
use crate::status::{ListenerStatus, PoolStatus, PrivateMemory, Status, UpgradeOutcome, WorkerStatus};
use crate::sys;

/// The name of the service, and the time of its start.
#[derive(Debug)]
pub(super) struct ServiceInfo {
    name: Option<String>,
    started: Instant,
    started_at: SystemTime,
    last_upgrade: Option<EndedUpgrade>,
}

/// An upgrade that has ended or was refused.
#[derive(Debug)]
struct EndedUpgrade {
    ended: Instant,
    ended_at: SystemTime,
    /// The reason for which it was aborted.
    failure: Option<String>,
}

impl ServiceInfo {
    /// Describes a service that starts now, or one that this program takes over and that has this age.
    pub fn new(name: Option<String>, age: Option<Duration>) -> ServiceInfo {
        let age = age.unwrap_or_default();
        let now = Instant::now();
        let started = now.checked_sub(age).unwrap_or(now);
        ServiceInfo {
            name,
            started,
            started_at: SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH),
            last_upgrade: None,
        }
    }

    /// Returns how long the service has run.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        expect(dead_code, reason = "only an upgrade needs it")
    )]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Notes the end of an upgrade. Called before the observers get the event, so that their status has the end.
    pub fn note_event(&mut self, event: &Event) {
        let failure = match event {
            Event::UpgradeFinished => None,
            Event::UpgradeAborted { reason } => Some(reason.clone()),
            _ => return,
        };
        self.last_upgrade = Some(EndedUpgrade { ended: Instant::now(), ended_at: SystemTime::now(), failure });
    }

    fn last_upgrade(&self, now: Instant) -> Option<UpgradeOutcome> {
        let EndedUpgrade { ended, ended_at, failure } = self.last_upgrade.as_ref()?;
        let age = now.saturating_duration_since(*ended);
        Some(UpgradeOutcome { ended_at: *ended_at, age, failure: failure.clone() })
    }
}

/// The parts of the event loop that the observers may look at.
pub(super) struct View<'a> {
    pub policy: &'a Service,
    pub pools: &'a [Pool],
    pub info: &'a ServiceInfo,
}

impl ServiceView for View<'_> {
    fn up(&self) -> Option<usize> {
        self.policy.up()
    }

    fn is_rolling(&self) -> bool {
        self.policy.is_rolling()
    }

    fn is_stopping(&self) -> bool {
        self.policy.is_stopping()
    }

    fn status(&self) -> Status {
        let clock = Clock { now: Instant::now(), taken_at: sys::process_clock() };
        Status {
            name: self.info.name.clone(),
            pid: process::id(),
            started_at: self.info.started_at,
            age: clock.now.saturating_duration_since(self.info.started),
            state: self.policy.state(),
            last_upgrade: self.info.last_upgrade(clock.now),
            pools: (0..self.pools.len()).map(|at| self.pool_status(at, clock)).collect(),
        }
    }
}

/// The time of a status, on two clocks.
#[derive(Clone, Copy)]
struct Clock {
    now: Instant,
    /// The time on the clock of `sys::process_times`.
    taken_at: Duration,
}

impl Clock {
    fn age_of(self, sample: MemorySample) -> PrivateMemory {
        let MemorySample { bytes, at, is_exact } = sample;
        PrivateMemory { bytes, age: self.now.saturating_duration_since(at), is_exact }
    }
}

impl View<'_> {
    fn pool_status(&self, at: usize, clock: Clock) -> PoolStatus {
        let policy = self.policy.pool(at);
        let pool = &self.pools[at];
        let works = Works::new(pool.works());
        let queues = pool.sockets.addresses().into_iter().zip(pool.sockets.queue_lengths());
        let workers = policy.facts().map(|facts| {
            let work = facts.process.map(|process| works.of_process(process)).unwrap_or_default();
            WorkerStatus {
                work_in_progress: work.in_progress,
                work_completed: work.completed,
                memory_sample: facts
                    .process
                    .and_then(|process| policy.memory_sample(process))
                    .map(|sample| clock.age_of(sample)),
                ..worker_status(pool.name, facts, policy.expects_beats(), clock)
            }
        });
        PoolStatus {
            name: pool.name,
            wanted: policy.wanted(),
            ready: policy.ready(),
            restarts: policy.restarts(),
            workers: workers.collect(),
            listeners: queues.map(|(address, queued)| ListenerStatus { address, queued }).collect(),
        }
    }
}

/// The work counts of all processes of a pool, in the order of their ids and generations. So each process is found by a
/// binary search, and not by a search through all slots of the scoreboard.
struct Works(Vec<(Process, Work)>);

impl Works {
    fn new(works: impl Iterator<Item = (Process, Work)>) -> Works {
        let mut works: Vec<(Process, Work)> = works.collect();
        works.sort_unstable_by_key(|(process, _)| (process.id, process.generation));
        Works(works)
    }

    fn of_process(&self, process: Process) -> Work {
        let key = (process.id, process.generation);
        let found = self.0.binary_search_by_key(&key, |(process, _)| (process.id, process.generation));
        found.map(|at| self.0[at].1).unwrap_or_default()
    }
}

fn worker_status(pool: &'static str, facts: WorkerFacts, beats: bool, clock: Clock) -> WorkerStatus {
    let age = |since: Option<Instant>| since.map(|since| clock.now.saturating_duration_since(since));
    WorkerStatus {
        pool,
        id: facts.id,
        generation: facts.generation,
        process: facts.process,
        state: facts.state,
        age: age(facts.since),
        since_ready: age(facts.ready_at),
        last_heartbeat: age(facts.last_beat).filter(|_| beats),
        restarts: facts.restarts,
        last_exit: facts.last_exit,
        work_in_progress: 0,
        work_completed: 0,
        memory_sample: None,
        taken_at: clock.taken_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_its_own_work() {
        let process = |id, generation| Process { pool: "", id, generation, pid: Some(71) };
        let work = |completed| Work { in_progress: 0, completed };
        let works =
            [(process(2, 0), work(1)), (process(0, 1), work(2)), (process(1, 0), work(3)), (process(0, 0), work(4))];
        let sorted = Works::new(works.into_iter());
        assert!(works.iter().all(|&(process, work)| sorted.of_process(process) == work));
        assert_eq!(sorted.of_process(process(1, 1)), Work::default());
    }

    #[test]
    fn the_last_end_of_an_upgrade_counts() {
        let mut info = ServiceInfo::new(None, None);
        let last = |info: &ServiceInfo| info.last_upgrade(Instant::now()).map(|outcome| outcome.to_string());
        info.note_event(&Event::UpgradeStarted);
        assert_eq!(last(&info), None, "it has not ended");
        info.note_event(&Event::UpgradeAborted { reason: "no program".into() });
        info.note_event(&Event::UpgradeStarted);
        info.note_event(&Event::RollingRestartFinished { pool: "" });
        assert_eq!(last(&info).as_deref(), Some("aborted: no program"));
        let failed = info.last_upgrade(Instant::now()).expect("an outcome");
        assert_eq!((failed.is_success(), failed.failure()), (false, Some("no program")));
        info.note_event(&Event::UpgradeFinished);
        assert_eq!(last(&info).as_deref(), Some("done"));
    }
}
