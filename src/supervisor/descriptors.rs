//! Everything that the parent has open: the poller, its sources, and the counter of out-of-memory kills.

use std::thread;
use std::time::Duration;

use super::poller::{PollSource, Poller, Waited};
use crate::error::{Error, Result};
use crate::scoreboard::Scoreboard;
use crate::sys::{ExitNotifier, OomCounter, SignalInfo, Signals, SupervisorLock, WakeReceiver, WorkerKind};

/// The parent's open descriptors. A worker closes them, and does nothing else with them.
///
/// The signals are dropped last, because that restores the signal mask.
pub(super) struct Descriptors {
    poller: Poller,
    wake_receiver: Option<WakeReceiver>,
    /// The doorbell could not be drained completely.
    is_draining: bool,
    /// Opened once the first workers run, because opening it takes longer than starting some of them.
    out_of_memory: Option<OomCounter>,
    signals: Signals,
}

impl Descriptors {
    pub fn open(lock: SupervisorLock, workers: WorkerKind) -> Result<Descriptors> {
        let signals = Signals::take(lock, workers)?;
        let poller = Poller::open()?;
        poller.register(PollSource::Signals, &signals)?;
        Ok(Descriptors { poller, wake_receiver: None, is_draining: false, out_of_memory: None, signals })
    }

    pub fn open_scoreboard(&mut self, workers: usize, kind: WorkerKind) -> Result<Scoreboard> {
        let (scoreboard, wake_receiver) = Scoreboard::new(workers, kind)?;
        self.poller.register(PollSource::Doorbell, &wake_receiver)?;
        self.wake_receiver = Some(wake_receiver);
        Ok(scoreboard)
    }

    /// Returns the notifier of exits on systems where no signal announces them.
    pub fn exit_notifier(&self) -> ExitNotifier {
        self.signals.exit_notifier()
    }

    /// Waits for a poll source, for `timeout` at most; without one, for as long as it takes.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Waited> {
        self.out_of_memory.get_or_insert_with(|| {
            // The last of the workers may be waiting for this CPU.
            thread::yield_now();
            OomCounter::open()
        });
        self.poller.wait(if self.is_draining { Some(Duration::ZERO) } else { timeout })
    }

    /// Returns whether a signal that arrives interrupts a wait. Then an interruption needs no other explanation. (If this
    /// process was also stopped at that moment, it wakes up late: a long stop is noticed by that.)
    pub fn signals_interrupt(&self) -> bool {
        self.signals.interrupts()
    }

    /// Returns the next pending signal.
    pub fn next_signal(&mut self) -> Result<Option<SignalInfo>> {
        Ok(self.signals.next()?)
    }

    /// Returns whether the last wait found the doorbell ringing, and drains it. If it could not be drained completely, it
    /// rings in the next wait as well, which then returns at once.
    pub fn drain_doorbell(&mut self) -> Result<bool> {
        let Some(wake_receiver) = &self.wake_receiver else { return Ok(false) };
        let rings = self.poller.is_ready(PollSource::Doorbell) || self.is_draining;
        if rings {
            self.is_draining = !wake_receiver.drain()?;
        }
        Ok(rings)
    }

    /// Returns whether the kernel has killed a process for lack of memory since the last call. `None`: unknown.
    pub fn take_out_of_memory(&mut self) -> Option<bool> {
        match &mut self.out_of_memory {
            Some(counter) => counter.take(),
            // The count from before the start is unknown. But a count of zero shows that there was no such kill.
            None => self.out_of_memory.insert(OomCounter::open()).is_zero().then_some(false),
        }
    }

    /// Closes everything in a fork. Inlined, because each page of the program that the fork runs costs it a page fault.
    #[inline]
    pub fn release_in_child(self) {
        self.poller.release_in_child();
    }

    /// Closes everything in the parent, and restores the program's signal handling. `has_stopped`: stop requests that were
    /// not taken are obsolete, because the service has stopped.
    pub fn close(self, has_stopped: bool) -> Result<()> {
        Ok(self.signals.end(has_stopped)?)
    }

    /// Closes everything in the parent after an error, and returns that error, whatever else fails.
    pub fn close_after(self, error: Error) -> Error {
        let _ = self.close(false);
        error
    }
}
