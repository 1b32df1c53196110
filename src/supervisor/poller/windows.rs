//! Threads of the system's pool wait, and wake this one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use super::Waited;
use crate::error::Result;
use crate::sys::{CallError, POLL_CALLS, Signals, WakeReceiver};

const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug)]
pub(crate) struct Poller {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    has_woken: Arc<AtomicBool>,
}

impl Poller {
    pub fn open() -> Result<Poller> {
        let poll = Poll::new().map_err(|error| CallError::new(POLL_CALLS.create, error))?;
        let waker = Waker::new(poll.registry(), Token(0)).map_err(|error| CallError::new(POLL_CALLS.add, error))?;
        let has_woken = Arc::new(AtomicBool::new(false));
        Ok(Poller { poll, events: Events::with_capacity(1), waker: Arc::new(waker), has_woken })
    }

    pub fn wake_on_signals(&self, signals: &Signals) -> Result<()> {
        let waker = Arc::clone(&self.waker);
        signals.wake_by(move || wake(&waker));
        Ok(())
    }

    pub fn wake_on_doorbell(&self, wake_receiver: &WakeReceiver) -> Result<()> {
        let (waker, has_woken) = (Arc::clone(&self.waker), Arc::clone(&self.has_woken));
        Ok(wake_receiver.wake_by(move || {
            has_woken.store(true, Ordering::Release);
            wake(&waker);
        })?)
    }

    /// For a signal or the doorbell, and for this time at most, if one is given.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Waited> {
        // More than a month of milliseconds would be taken for ever; whoever wakes early waits again.
        match self.poll.poll(&mut self.events, timeout.map(|timeout| timeout.min(LONGEST))) {
            Ok(()) => Ok(Waited::ToTheEnd),
            Err(error) => Err(CallError::new(POLL_CALLS.wait, error).into()),
        }
    }

    /// Whether the doorbell rang in the last wait.
    pub fn has_woken(&self) -> bool {
        self.has_woken.swap(false, Ordering::Acquire)
    }

    /// Nobody is forked here.
    pub fn release_in_child(self) {}
}

/// It fails for want of memory only, and then there is nobody to be told.
fn wake(waker: &Waker) {
    let _ = waker.wake();
}
