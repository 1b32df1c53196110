//! The poller for Windows. Threads of the system's thread pool wait for the sources, and wake the parent's thread when
//! a source is ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use super::{PollSource, Waited};
use crate::error::Result;
use crate::sys::{CallError, POLL_CALLS, Signals, WakeReceiver};

const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug)]
pub(crate) struct Poller {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    /// For each [`PollSource`], whether the source is ready.
    ready: Arc<[AtomicBool; PollSource::COUNT]>,
}

/// A source that calls a closure whenever it becomes ready.
pub(crate) trait CallWhenReady {
    fn call_when_ready(&self, call: impl Fn() + Send + Sync + 'static) -> Result<()>;
}

impl CallWhenReady for Signals {
    fn call_when_ready(&self, call: impl Fn() + Send + Sync + 'static) -> Result<()> {
        self.wake_by(call);
        Ok(())
    }
}

impl CallWhenReady for WakeReceiver {
    fn call_when_ready(&self, call: impl Fn() + Send + Sync + 'static) -> Result<()> {
        Ok(self.wake_by(call)?)
    }
}

impl Poller {
    pub fn open() -> Result<Poller> {
        let poll = Poll::new().map_err(|error| CallError::new(POLL_CALLS.create, error))?;
        let waker = Waker::new(poll.registry(), Token(0)).map_err(|error| CallError::new(POLL_CALLS.add, error))?;
        Ok(Poller { poll, events: Events::with_capacity(1), waker: Arc::new(waker), ready: Arc::default() })
    }

    pub fn register(&self, source: PollSource, waited_for: &impl CallWhenReady) -> Result<()> {
        let waker = Arc::clone(&self.waker);
        let ready = Arc::clone(&self.ready);
        waited_for.call_when_ready(move || {
            ready[source as usize].store(true, Ordering::Release);
            // This fails only if memory runs out, and then the error cannot be reported anywhere.
            let _ = waker.wake();
        })
    }

    /// Waits until a source is ready, but at most for `timeout`. Without a timeout, waits without a limit.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Waited> {
        // The system treats a timeout of more than a month as infinite. So no wait is longer than `LONGEST`. If a wait
        // ends early, the loop waits again.
        match self.poll.poll(&mut self.events, timeout.map(|timeout| timeout.min(LONGEST))) {
            Ok(()) => Ok(Waited::Completed),
            Err(error) => Err(CallError::new(POLL_CALLS.wait, error).into()),
        }
    }

    /// Returns whether this source has become ready since the last call.
    pub fn is_ready(&self, source: PollSource) -> bool {
        self.ready[source as usize].swap(false, Ordering::Acquire)
    }

    /// Does nothing, because Windows has no fork.
    pub fn release_in_child(self) {}
}
