//! Where the signals that were taken over are read from.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::SigSet;

use super::self_pipe::SelfPipe;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use super::signalfd::Signalfd;
use super::taken::Before;
use crate::sys::{Arrived, CallError, Signal};

#[derive(Debug)]
pub(super) enum Source {
    /// They are blocked. That is a thread's own affair, so there must be no other thread.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    Blocked(Signalfd),
    /// They run a handler, in whichever thread.
    Handled(SelfPipe),
}

impl Source {
    pub fn open(alone: bool, signals: &[Signal], before: &mut Before) -> Result<Source, CallError> {
        #[cfg(all(target_os = "linux", not(taskfork_portable)))]
        if alone {
            return Signalfd::open(signals, before).map(Source::Blocked);
        }
        let _ = alone;
        SelfPipe::open(signals, before).map(Source::Handled)
    }

    /// The mask of the thread that reads them.
    pub fn mask(&self, before: SigSet, signals: &[Signal]) -> SigSet {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(_) => Signalfd::mask(before, signals),
            Source::Handled(_) => SelfPipe::mask(before, signals),
        }
    }

    pub fn interrupts(&self) -> bool {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(_) => false,
            Source::Handled(_) => true,
        }
    }

    pub fn next(&mut self) -> Result<Option<Arrived>, CallError> {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(signalfd) => signalfd.next(),
            Source::Handled(self_pipe) => self_pipe.next(),
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(signalfd) => signalfd.as_fd(),
            Source::Handled(self_pipe) => self_pipe.as_fd(),
        }
    }
}
