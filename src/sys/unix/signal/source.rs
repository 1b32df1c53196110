//! The two ways to receive the signals of [`Signal::SUPERVISED`]: a signalfd(2) and a self-pipe.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::SigSet;

use super::self_pipe::SelfPipe;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use super::signalfd::Signalfd;
use super::takeover::Dispositions;
use crate::sys::{CallError, Signal, SignalInfo};

#[derive(Debug)]
pub(super) enum Source {
    /// The signals are blocked, and the parent reads them from a signalfd. The process must have only one thread.
    /// Otherwise the kernel could deliver a signal to another thread, because each thread has its own signal mask. The
    /// thread must keep the signals blocked. So this source does not fit a parent that also starts programs: it
    /// unblocks the signals at each start, so that the program inherits them unblocked, and a signal would then end the
    /// parent.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    Blocked(Signalfd),
    /// The signals run a handler. The kernel may run it in any thread of the process.
    Handled(SelfPipe),
}

impl Source {
    /// Opens the source. `stays_blocked` means that this process has only one thread, and that this thread keeps the
    /// signals blocked until the end of the takeover.
    pub fn open(stays_blocked: bool, signals: &[Signal]) -> Result<Source, CallError> {
        #[cfg(all(target_os = "linux", not(taskfork_portable)))]
        if stays_blocked {
            return Signalfd::open(signals).map(Source::Blocked);
        }
        let _ = (stays_blocked, signals);
        SelfPipe::open().map(Source::Handled)
    }

    pub fn set_dispositions(&self, dispositions: &mut Dispositions, signals: &[Signal]) -> Result<(), CallError> {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(_) => Signalfd::set_dispositions(dispositions),
            Source::Handled(_) => SelfPipe::set_dispositions(dispositions, signals),
        }
    }

    /// Returns the signal mask with which the parent's thread receives the signals. `before` is the mask before the
    /// takeover.
    pub fn mask(&self, before: SigSet, signals: &[Signal]) -> SigSet {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(_) => Signalfd::mask(before, signals),
            Source::Handled(_) => SelfPipe::mask(before, signals),
        }
    }

    /// Returns whether a signal can interrupt a blocking system call, which then fails with `EINTR`.
    pub fn interrupts(&self) -> bool {
        match self {
            #[cfg(all(target_os = "linux", not(taskfork_portable)))]
            Source::Blocked(_) => false,
            Source::Handled(_) => true,
        }
    }

    /// Stops receiving signals. Call this after the program's dispositions were restored.
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
