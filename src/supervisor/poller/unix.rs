//! The poller for Unix, which waits until a descriptor is readable.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use std::{io, mem};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::{PollSource, Waited};
use crate::error::Result;
use crate::sys::{self, CallError, OpenEpoll, POLL_CALLS};

#[derive(Debug)]
pub(crate) struct Poller {
    poll: Poll,
    events: Events,
}

impl Poller {
    pub fn open() -> Result<Poller> {
        let poll = Poll::new().map_err(|error| CallError::new(POLL_CALLS.create, error))?;
        Ok(Poller { poll, events: Events::with_capacity(PollSource::COUNT) })
    }

    pub fn register(&self, source: PollSource, waited_for: &impl AsFd) -> Result<()> {
        let fd = waited_for.as_fd().as_raw_fd();
        let registered = self.poll.registry().register(&mut SourceFd(&fd), token(source), Interest::READABLE);
        registered.map_err(|error| CallError::new(POLL_CALLS.add, error).into())
    }

    /// Returns the epoll instances that the program has opened.
    pub fn epolls_of_program(&self) -> Vec<OpenEpoll> {
        sys::other_epolls(self.poll.as_raw_fd())
    }

    /// Waits until a source is ready, but at most for `timeout`. Without a timeout, waits without a limit.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Waited> {
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => Ok(Waited::Completed),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Waited::Interrupted),
            Err(error) => Err(CallError::new(POLL_CALLS.wait, error).into()),
        }
    }

    /// Returns whether the last wait found this source ready.
    pub fn is_ready(&self, source: PollSource) -> bool {
        self.events.iter().any(|event| event.token() == token(source))
    }

    /// Closes the inherited descriptor of epoll(7) in a forked worker. A fork does not inherit a kqueue(2), so nothing
    /// is closed on systems with kqueue(2). Does not free the inherited memory, because freeing writes to pages that
    /// the kernel would first copy (copy-on-write). Does not deregister the sources, because the parent uses the same
    /// epoll(7) instance.
    #[inline]
    pub fn release_in_child(self) {
        mem::forget(self.events);
        if !POLL_CALLS.is_inherited {
            mem::forget(self.poll);
        }
    }
}

fn token(source: PollSource) -> Token {
    Token(source as usize)
}
