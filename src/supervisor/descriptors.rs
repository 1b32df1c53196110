//! What the parent waits on.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;
use std::{io, mem};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::error::{Error, Result};
use crate::scoreboard::{Memory, Scoreboard};
use crate::sys::{Arrived, Bell, CallError, OomCounter, POLLER, Signals};

const SIGNALS: Token = Token(0);
const BELL: Token = Token(1);

/// All that the parent has open, and a worker closes and does nothing else to: to take the signals out of the epoll would be
/// to take them out of the parent's. The signals are last, so that the mask is put back when all is done.
pub(super) struct Descriptors {
    poll: Poll,
    events: Events,
    bell: Option<Bell>,
    /// The doorbell could not be silenced in one go.
    is_ringing: bool,
    /// Opened once the first workers are on their way, which takes longer than to start some of them.
    out_of_memory: Option<OomCounter>,
    signals: Signals,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// There is something to be done, or the time is over.
    ToTheEnd,
    /// By a handler of the program's own; or this process had been stopped, and others perhaps with it.
    Interrupted,
}

impl Descriptors {
    /// `alone`: there is one thread only, and will be.
    pub fn open(alone: bool) -> Result<Descriptors> {
        let signals = Signals::take(alone)?;
        let poll = Poll::new().map_err(|error| CallError::new(POLLER.create, error))?;
        let events = Events::with_capacity(2);
        let descriptors = Descriptors { poll, events, bell: None, is_ringing: false, out_of_memory: None, signals };
        descriptors.wake_on(descriptors.signals.as_fd(), SIGNALS)?;
        Ok(descriptors)
    }

    pub fn open_scoreboard(&mut self, workers: usize, memory: Memory) -> Result<Scoreboard> {
        let (scoreboard, bell) = Scoreboard::new(workers, memory)?;
        self.wake_on(bell.as_fd(), BELL)?;
        self.bell = Some(bell);
        Ok(scoreboard)
    }

    fn wake_on(&self, fd: BorrowedFd<'_>, token: Token) -> Result<()> {
        let registered = self.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE);
        registered.map_err(|error| CallError::new(POLLER.add, error).into())
    }

    /// For a signal or the doorbell, and for this time at most, if one is given.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Waited> {
        self.out_of_memory.get_or_insert_with(OomCounter::open);
        let timeout = if self.is_ringing { Some(Duration::ZERO) } else { timeout };
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => Ok(Waited::ToTheEnd),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Waited::Interrupted),
            Err(error) => Err(CallError::new(POLLER.wait, error).into()),
        }
    }

    /// The next signal that has arrived, if any.
    pub fn next_signal(&mut self) -> Result<Option<Arrived>> {
        Ok(self.signals.next()?)
    }

    /// Whether the doorbell rang in the last wait. It is silent then, or rings in the next one.
    pub fn take_ring(&mut self) -> Result<bool> {
        let rings = self.is_ringing || self.events.iter().any(|event| event.token() == BELL);
        if let (true, Some(bell)) = (rings, &self.bell) {
            self.is_ringing = !bell.silence()?;
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

    /// In a worker. To free the parent's memory would be to copy it first.
    pub fn leave(self) {
        mem::forget(self.events);
        if !POLLER.is_inherited {
            mem::forget(self.poll);
        }
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
