//! What the parent waits on.

use std::thread;
use std::time::Duration;

use super::poller::{Poller, Waited};
use crate::error::{Error, Result};
use crate::scoreboard::Scoreboard;
use crate::sys::{ExitNotifier, OomCounter, SignalInfo, Signals, SupervisorLock, WakeReceiver, WorkerKind};

/// All that the parent has open, and a worker closes and does nothing else to. The signals are last, so that the mask is put
/// back when all is done.
pub(super) struct Descriptors {
    poller: Poller,
    wake_receiver: Option<WakeReceiver>,
    /// The doorbell could not be silenced in one go.
    is_draining: bool,
    /// Opened once the first workers run, since it takes longer than to start some of them.
    out_of_memory: Option<OomCounter>,
    signals: Signals,
}

impl Descriptors {
    pub fn open(lock: SupervisorLock, workers: WorkerKind) -> Result<Descriptors> {
        let signals = Signals::take(lock, workers)?;
        let poller = Poller::open()?;
        poller.wake_on_signals(&signals)?;
        Ok(Descriptors { poller, wake_receiver: None, is_draining: false, out_of_memory: None, signals })
    }

    pub fn open_scoreboard(&mut self, workers: usize, kind: WorkerKind) -> Result<Scoreboard> {
        let (scoreboard, wake_receiver) = Scoreboard::new(workers, kind)?;
        self.poller.wake_on_doorbell(&wake_receiver)?;
        self.wake_receiver = Some(wake_receiver);
        Ok(scoreboard)
    }

    /// Who is to be told of the end of a child that is a program.
    pub fn exit_notifier(&self) -> ExitNotifier {
        self.signals.exit_notifier()
    }

    /// For a signal or the doorbell, and for this time at most, if one is given.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Waited> {
        self.out_of_memory.get_or_insert_with(|| {
            // The last of the workers may be waiting for this processor.
            thread::yield_now();
            OomCounter::open()
        });
        self.poller.wait(if self.is_draining { Some(Duration::ZERO) } else { timeout })
    }

    /// Whether a signal that arrives cuts a wait short, so that nothing else need have. (A stop of this process that came
    /// together with it is still told by how late the parent wakes up, if it was long.)
    pub fn signals_interrupt(&self) -> bool {
        self.signals.interrupts()
    }

    /// The next signal that has arrived, if any.
    pub fn next_signal(&mut self) -> Result<Option<SignalInfo>> {
        Ok(self.signals.next()?)
    }

    /// Whether the doorbell rang in the last wait. It is silent then, or rings in the next one.
    pub fn drain_doorbell(&mut self) -> Result<bool> {
        let rings = self.is_draining || self.poller.has_woken();
        if let (true, Some(wake_receiver)) = (rings, &self.wake_receiver) {
            self.is_draining = !wake_receiver.drain()?;
        }
        Ok(rings)
    }

    /// Whether there was a kill for want of memory since this was last asked. None: it cannot be told.
    pub fn take_out_of_memory(&mut self) -> Option<bool> {
        match &mut self.out_of_memory {
            Some(counter) => counter.take(),
            // Its value from before the start is not known; but if there never was such a kill, this was none.
            None => self.out_of_memory.insert(OomCounter::open()).is_zero().then_some(false),
        }
    }

    /// In a fork. In place, as what else runs there only once: each part of the program that it runs costs it a page fault.
    #[inline]
    pub fn release_in_child(self) {
        self.poller.release_in_child();
    }

    /// In the parent.
    pub fn close(self, has_stopped: bool) -> Result<()> {
        Ok(self.signals.end(has_stopped)?)
    }

    /// The same. What went wrong before counts, not what goes wrong here.
    pub fn close_after(self, error: Error) -> Error {
        let _ = self.close(false);
        error
    }
}
