//! Descriptors are waited for.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use std::{io, mem};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::Waited;
use crate::error::Result;
use crate::sys::{CallError, POLL_CALLS, Signals, WakeReceiver};

const SIGNALS: Token = Token(0);
const DOORBELL: Token = Token(1);

#[derive(Debug)]
pub(crate) struct Poller {
    poll: Poll,
    events: Events,
}

impl Poller {
    pub fn open() -> Result<Poller> {
        let poll = Poll::new().map_err(|error| CallError::new(POLL_CALLS.create, error))?;
        Ok(Poller { poll, events: Events::with_capacity(2) })
    }

    pub fn wake_on_signals(&self, signals: &Signals) -> Result<()> {
        self.wake_on(signals, SIGNALS)
    }

    pub fn wake_on_doorbell(&self, wake_receiver: &WakeReceiver) -> Result<()> {
        self.wake_on(wake_receiver, DOORBELL)
    }

    fn wake_on(&self, source: &impl AsFd, token: Token) -> Result<()> {
        let fd = source.as_fd().as_raw_fd();
        let registered = self.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE);
        registered.map_err(|error| CallError::new(POLL_CALLS.add, error).into())
    }

    /// For a signal or the doorbell, and for this time at most, if one is given.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Waited> {
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => Ok(Waited::ToTheEnd),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Waited::Interrupted),
            Err(error) => Err(CallError::new(POLL_CALLS.wait, error).into()),
        }
    }

    /// Whether the doorbell rang in the last wait.
    pub fn has_woken(&self) -> bool {
        self.events.iter().any(|event| event.token() == DOORBELL)
    }

    /// In a fork. To free the parent's memory would be to copy it first, and to take something out of the epoll would be to
    /// take it out of the parent's.
    #[inline]
    pub fn release_in_child(self) {
        mem::forget(self.events);
        if !POLL_CALLS.is_inherited {
            mem::forget(self.poll);
        }
    }
}
