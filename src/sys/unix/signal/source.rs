//! The two ways to receive the supervised signals.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::SigSet;

use super::self_pipe::SelfPipe;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use super::signalfd::Signalfd;
use super::takeover::Dispositions;
use crate::sys::{CallError, Signal, SignalInfo};

#[derive(Debug)]
pub(super) enum Source {
    /// The signals are blocked and read from a signalfd. A mask belongs to one thread, so the process must have no
    /// other thread, which would receive them.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    Blocked(Signalfd),
    /// The signals run a handler, in any thread of the process.
    Handled(SelfPipe),
}

impl Source {
    /// Opens the source. `alone`: this process has no other thread.
    pub fn open(alone: bool, signals: &[Signal]) -> Result<Source, CallError> {
        #[cfg(all(target_os = "linux", not(taskfork_portable)))]
        if alone {
            return Signalfd::open(signals).map(Source::Blocked);
        }
        let _ = (alone, signals);
        SelfPipe::open().map(Source::Handled)
    }

    pub fn set_dispositions(&self, dispositions: &mut Dispositions, signals: &[Signal]) -> Result<(), CallError> {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(_) => Signalfd::set_dispositions(dispositions),
            Source::Handled(_) => SelfPipe::set_dispositions(dispositions, signals),
        }
    }

    /// Returns the mask for the thread that reads the signals.
    pub fn mask(&self, before: SigSet, signals: &[Signal]) -> SigSet {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(_) => Signalfd::mask(before, signals),
            Source::Handled(_) => SelfPipe::mask(before, signals),
        }
    }

    /// Returns whether a signal that arrives makes a waiting call fail.
    pub fn interrupts(&self) -> bool {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(_) => false,
            Source::Handled(_) => true,
        }
    }

    /// Stops receiving signals, after the program's dispositions were restored.
    pub fn close(&mut self) {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(_) => {}
            Source::Handled(self_pipe) => self_pipe.close(),
        }
    }

    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
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
