//! The state of a slot that an upgrade hands over, and the slot that the new program makes of it.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;

use super::recycle::end_of_lifetime;
use super::{BringUp, Queue, Slot, StartReason, State};
use crate::exit::{Exit, Process};
use crate::policy::child::{Child, Phase};
use crate::policy::deadline::Deadline;
use crate::policy::kill_deadline::KillDeadline;
use crate::policy::rolling_restart::ADOPTER_EPOCH;
use crate::policy::stopping_child::{StoppingChild, StoppingPhase};
use crate::policy::{ActionQueue, ChildRole, ChildSnapshot, Config, SlotSnapshot, WorkerSignal};

impl Slot {
    /// Returns the state that the new program needs.
    pub fn snapshot(&self, now: Instant) -> SlotSnapshot {
        let stopping = self.stopping.iter().map(|child| child.snapshot(now));
        let trial = self.has_passed_trial().then(|| self.running().last()).flatten().map(|child| child.process);
        let running = self.running().map(|child| child.snapshot(now, trial == Some(child.process)));
        SlotSnapshot {
            id: self.id,
            generation: self.generation,
            is_wanted: self.is_wanted(),
            has_been_ready: self.bring_up == BringUp::Done,
            processes: self.report.processes,
            restarts: self.report.restarts,
            exit: self.report.exit,
            failed: self.report.failed,
            abandoned: self.abandoned,
            children: stopping.chain(running).collect(),
        }
    }

    /// Returns the slot of a worker whose processes another program has started. `taken` is the time of the snapshot.
    ///
    /// One process serves: the trial, if there is one. The others are asked to stop. If a worker that should run has no
    /// process, its next one starts at once.
    pub fn adopt(
        snapshot: SlotSnapshot,
        taken: Instant,
        now: Instant,
        config: &Config,
        rng: &mut SmallRng,
        actions: &mut ActionQueue,
    ) -> Slot {
        let SlotSnapshot { id, children, is_wanted, .. } = snapshot;
        let mut slot = Slot::added(id, now, config);
        slot.take_history(snapshot.exit, &children);
        slot.generation = snapshot.generation;
        slot.abandoned = snapshot.abandoned;
        slot.report.processes = snapshot.processes;
        slot.report.restarts = snapshot.restarts;
        slot.report.exit = snapshot.exit;
        slot.report.failed = snapshot.failed;
        let is_known = snapshot.has_been_ready || snapshot.processes > 0;
        if is_known && is_wanted {
            // Otherwise a process of the old program that is not ready in time could stop the new service.
            slot.bring_up = BringUp::Done;
            slot.reached_call = true;
            slot.queue = Queue::Open;
        }
        let reason = if is_known { StartReason::UncountedRestart } else { StartReason::ScaleUp };
        slot.state = if is_wanted { State::Backoff { until: now, reason } } else { State::Stopped };
        let serving =
            children.iter().filter_map(|child| Some((child.role.rank()?, child.process))).min_by_key(|it| it.0);
        let serving = serving.map(|(_, process)| process).filter(|_| is_wanted);
        let kill_at = Deadline::after(now, config.graceful_timeout);
        for child in children {
            let process = Process { pool: config.pool, ..child.process };
            if serving == Some(child.process) {
                let recycling = end_of_lifetime(now, config, rng);
                slot.state = State::Running(Child { recycling, ..Child::adopt(child, process, taken, config) });
            } else {
                slot.stopping.push(StoppingChild::adopt(child, process, taken, kill_at, actions));
            }
        }
        slot
    }

    /// Returns the shortest heartbeat timeout of the processes of this worker.
    pub fn heartbeat_timeout(&self) -> Option<Duration> {
        self.running().filter_map(|child| child.heartbeat_timeout).min()
    }

    /// Returns whether a process that an earlier program has started serves as this worker.
    pub fn has_adopted_running(&self) -> bool {
        self.running().any(|child| child.epoch < ADOPTER_EPOCH)
    }

    /// Returns whether processes of this worker drain or stop, and the next one, if any, was not started by an earlier
    /// program.
    pub fn has_adopted_leaving(&self) -> bool {
        self.has_stopping() && self.running().all(|child| child.epoch >= ADOPTER_EPOCH)
    }

    /// Lets the exit of each process count as newer than the exit in the report.
    fn take_history(&mut self, exit: Option<Exit>, children: &[ChildSnapshot]) {
        let oldest = children.iter().map(|child| child.process.generation).min();
        self.reported_generation = match (exit, oldest) {
            (Some(_), Some(oldest)) => oldest.wrapping_sub(1),
            _ => 0,
        };
    }
}

impl ChildRole {
    /// Returns the rank of a process among those of its id that may serve. The lowest one serves. Returns `None` for a
    /// process that was asked to stop or was killed.
    fn rank(self) -> Option<u8> {
        match self {
            ChildRole::Trial => Some(0),
            ChildRole::Serving => Some(1),
            ChildRole::NotReady { .. } | ChildRole::Probation { .. } => Some(2),
            ChildRole::Aborting { .. } => Some(3),
            ChildRole::Draining { .. } | ChildRole::Stopping { .. } | ChildRole::Killed { .. } => None,
        }
    }
}

impl Child {
    fn snapshot(&self, now: Instant, is_trial: bool) -> ChildSnapshot {
        let role = match self.phase {
            Phase::Ready if is_trial => ChildRole::Trial,
            Phase::Ready => ChildRole::Serving,
            Phase::NotReady { late_at } => ChildRole::NotReady { late_in: time_to(now, late_at.at()) },
            Phase::Probation { ready_at } => ChildRole::Probation { ready_in: time_to(now, ready_at.at()) },
            Phase::Aborting { kill } => ChildRole::Aborting { kill_in: time_to(now, kill.at()) },
            Phase::Killed { give_up_at } => killed(now, give_up_at),
        };
        ChildSnapshot {
            process: self.process,
            age: now.saturating_duration_since(self.since),
            ready_for: self.ready_at.map(|at| now.saturating_duration_since(at)),
            silent_for: now.saturating_duration_since(self.last_beat),
            heartbeat_timeout: self.heartbeat_timeout,
            role,
        }
    }

    /// Returns a process that serves its worker id, or will serve it. Only the trial runs this program.
    fn adopt(snapshot: ChildSnapshot, process: Process, taken: Instant, config: &Config) -> Child {
        let phase = match snapshot.role {
            ChildRole::NotReady { late_in } => Phase::NotReady { late_at: Deadline::after(taken, late_in) },
            ChildRole::Probation { ready_in } => Phase::Probation { ready_at: Deadline::after(taken, ready_in) },
            ChildRole::Aborting { kill_in } => Phase::Aborting { kill: kill_after(taken, kill_in) },
            _ => Phase::Ready,
        };
        let is_trial = snapshot.role == ChildRole::Trial;
        let epoch = if is_trial { ADOPTER_EPOCH } else { 0 };
        Child {
            since: before(taken, snapshot.age),
            ready_at: snapshot.ready_for.map(|time| before(taken, time)),
            last_beat: before(taken, snapshot.silent_for),
            heartbeat_timeout: if is_trial { config.heartbeat_timeout } else { snapshot.heartbeat_timeout },
            ..Child::new(process, taken, epoch, phase, None)
        }
    }
}

impl StoppingChild {
    fn snapshot(&self, now: Instant) -> ChildSnapshot {
        let role = match self.phase {
            StoppingPhase::Draining { stop_at, last } => {
                ChildRole::Draining { stop_in: time_to(now, stop_at), last_in: time_to(now, last.at()) }
            }
            StoppingPhase::Stopping { kill } => ChildRole::Stopping { kill_in: time_to(now, kill.at()) },
            StoppingPhase::Killed { give_up_at } => killed(now, give_up_at),
        };
        ChildSnapshot {
            process: self.process,
            age: now.saturating_duration_since(self.since),
            ready_for: self.ready_at.map(|at| now.saturating_duration_since(at)),
            silent_for: now.saturating_duration_since(self.last_beat),
            heartbeat_timeout: self.heartbeat_timeout,
            role,
        }
    }

    /// Returns a process that does not serve its worker id. Asks it to stop, unless the earlier program has done so.
    fn adopt(
        snapshot: ChildSnapshot,
        process: Process,
        taken: Instant,
        kill_at: Deadline,
        actions: &mut ActionQueue,
    ) -> StoppingChild {
        let phase = match snapshot.role {
            ChildRole::Draining { stop_in, last_in } => {
                StoppingPhase::Draining { stop_at: taken + stop_in, last: Deadline::after(taken, last_in) }
            }
            // A process that has got SIGABRT does not need a further request.
            ChildRole::Stopping { kill_in } | ChildRole::Aborting { kill_in } => {
                StoppingPhase::Stopping { kill: kill_after(taken, kill_in) }
            }
            ChildRole::Killed { give_up_in } => {
                StoppingPhase::Killed { give_up_at: give_up_in.map(|time| Deadline::after(taken, time)) }
            }
            ChildRole::Serving | ChildRole::Trial | ChildRole::NotReady { .. } | ChildRole::Probation { .. } => {
                actions.send(process, WorkerSignal::Stop);
                StoppingPhase::Stopping { kill: KillDeadline::new(kill_at) }
            }
        };
        StoppingChild {
            process,
            since: before(taken, snapshot.age),
            ready_at: snapshot.ready_for.map(|time| before(taken, time)),
            last_beat: before(taken, snapshot.silent_for),
            heartbeat_timeout: snapshot.heartbeat_timeout,
            phase,
        }
    }
}

fn killed(now: Instant, give_up_at: Option<Deadline>) -> ChildRole {
    ChildRole::Killed { give_up_in: give_up_at.map(|deadline| time_to(now, deadline.at())) }
}

fn kill_after(taken: Instant, time: Duration) -> KillDeadline {
    KillDeadline::new(Deadline::after(taken, time))
}

fn time_to(now: Instant, at: Instant) -> Duration {
    at.saturating_duration_since(now)
}

/// Returns the time that lies `time` before `taken`. If the system has no such time, returns `taken`.
fn before(taken: Instant, time: Duration) -> Instant {
    taken.checked_sub(time).unwrap_or(taken)
}
