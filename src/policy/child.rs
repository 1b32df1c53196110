//! One process, from its start to its end.

use std::time::{Duration, Instant};

use super::{ActionQueue, WorkerSignal};
use crate::event::Event;
use crate::exit::Process;

/// From SIGABRT to SIGKILL: a stopped process only dies of the latter.
const ABORT_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Child {
    pub process: Process,
    pub since: Instant,
    /// The count of rolling restarts when this one was started.
    pub epoch: u64,
    pub phase: Phase,
    pub last_beat: Instant,
    /// It was silent when it was last looked at, and that was put down to something else.
    suspect: bool,
    /// It got more time to become ready already.
    extended: bool,
    /// When it is to be replaced because of its age.
    pub recycle_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is to say that it is ready until then.
    NotReady {
        late_at: Instant,
    },
    /// A replacement that nobody asks for readiness: ready if it lives until then.
    Probation {
        ready_at: Instant,
    },
    Ready,
    Aborting {
        kill_at: Instant,
    },
    /// Nothing new comes to it. It is to be asked to go then, or later, but not after the last moment.
    Draining {
        stop_at: Instant,
        last: Instant,
    },
    Stopping {
        kill_at: Instant,
    },
    /// By us.
    Killed,
}

impl Child {
    pub fn new(process: Process, now: Instant, epoch: u64, phase: Phase, recycle_at: Option<Instant>) -> Child {
        Child { process, since: now, epoch, phase, last_beat: now, suspect: false, extended: false, recycle_at }
    }

    /// Whether it was us who sent it SIGKILL.
    pub fn was_killed(&self) -> bool {
        self.phase == Phase::Killed
    }

    /// Whether it was taken for hung or late.
    pub fn was_given_up(&self) -> bool {
        matches!(self.phase, Phase::Aborting { .. } | Phase::Killed)
    }

    pub fn is(&self, generation: u32) -> bool {
        self.process.generation == generation
    }

    pub fn is_unproven(&self) -> bool {
        matches!(self.phase, Phase::NotReady { .. } | Phase::Probation { .. })
    }

    pub fn ask(&mut self, message: WorkerSignal, kill_at: Instant, actions: &mut ActionQueue) {
        if self.phase == Phase::Killed {
            return;
        }
        self.phase = match self.phase {
            Phase::Stopping { kill_at: earlier } | Phase::Aborting { kill_at: earlier } if earlier < kill_at => {
                Phase::Stopping { kill_at: earlier }
            }
            _ => Phase::Stopping { kill_at },
        };
        actions.send(self.process, message);
    }

    pub fn drains(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. })
    }

    pub fn drains_until(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Draining { stop_at, last } if stop_at <= now && now < last)
    }

    pub fn drain_longer(&mut self, now: Instant, drain: Duration) {
        match &mut self.phase {
            Phase::Draining { stop_at, last } if *stop_at <= now => *stop_at = (now + drain).min(*last),
            _ => {}
        }
    }

    /// One that lingers and whose time for that is up is asked.
    pub fn stop_overdue(&mut self, now: Instant, graceful: Duration, actions: &mut ActionQueue) {
        if matches!(self.phase, Phase::Draining { stop_at, .. } if stop_at <= now) {
            self.ask(WorkerSignal::Stop, now + graceful, actions);
        }
    }

    pub fn kill(&mut self, actions: &mut ActionQueue) {
        if self.phase != Phase::Killed {
            self.phase = Phase::Killed;
            actions.send(self.process, WorkerSignal::Kill);
        }
    }

    /// An asked or hung one whose time is up is killed.
    pub fn kill_overdue(&mut self, now: Instant, actions: &mut ActionQueue) {
        if let Phase::Stopping { kill_at } | Phase::Aborting { kill_at } = self.phase {
            if kill_at <= now {
                actions.emit(Event::StopTimedOut { process: self.process });
                self.kill(actions);
            }
        }
    }

    /// A sign of life.
    pub fn beat(&mut self, at: Instant) {
        self.last_beat = self.last_beat.max(at);
        self.suspect = false;
    }

    /// In doubt, one that is silent is only suspected the first time.
    pub fn check_beat(&mut self, now: Instant, timeout: Duration, doubtful: bool, actions: &mut ActionQueue) {
        if !matches!(self.phase, Phase::Ready | Phase::Probation { .. }) || now < self.last_beat + timeout {
            return;
        }
        if doubtful && !self.suspect {
            self.suspect = true;
        } else {
            actions.emit(Event::HeartbeatTimedOut { process: self.process });
            self.phase = Phase::Aborting { kill_at: now + ABORT_GRACE };
            actions.send(self.process, WorkerSignal::Abort);
        }
    }

    /// One that is late to become ready, but perhaps only because everything was stopped meanwhile, gets the same time once
    /// more, and only once.
    pub fn extend(&mut self, now: Instant, timeout: Duration, interrupted_at: Option<Instant>) -> bool {
        let Phase::NotReady { late_at } = self.phase else { return false };
        let late = now.saturating_duration_since(late_at);
        let doubtful = interrupted_at.is_some_and(|at| at >= self.since) || late >= timeout / 10;
        if self.extended || !doubtful {
            return false;
        }
        self.extended = true;
        self.phase = Phase::NotReady { late_at: now + timeout };
        true
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::NotReady { late_at: at } | Phase::Probation { ready_at: at } => Some(at),
            Phase::Aborting { kill_at } | Phase::Stopping { kill_at } => Some(kill_at),
            Phase::Draining { stop_at, .. } => Some(stop_at),
            Phase::Ready | Phase::Killed => None,
        }
    }

    pub fn ready(mut self, now: Instant, actions: &mut ActionQueue) -> Child {
        actions.emit(Event::Ready { process: self.process });
        self.phase = Phase::Ready;
        self.beat(now);
        self
    }
}
