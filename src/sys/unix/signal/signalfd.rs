//! signalfd(2): the signals are blocked, and read from a descriptor. No handler, so nothing to hand down to a child.
//!
//! # Safety
//! Nothing unsafe here.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::taken::Before;
use super::{native, number};
use crate::sys::{CallError, Signal};

#[derive(Debug)]
pub(super) struct Source(SignalFd);

impl Source {
    /// An ignored SIGCHLD, or one with `SA_NOCLDWAIT`, makes wait(2) fail, so it alone gets its default disposition.
    pub fn open(signals: &[Signal], before: &mut Before) -> Result<Source, CallError> {
        before.set_disposition(Signal::Child, libc::SIG_DFL)?;
        let fd = SignalFd::with_flags(&set_of(signals), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        fd.map(Source).map_err(|error| CallError::new("signalfd", error))
    }

    pub fn mask(before: SigSet, signals: &[Signal]) -> SigSet {
        before | set_of(signals)
    }

    pub fn next(&mut self) -> Result<Option<Signal>, CallError> {
        let info = self.0.read_signal().map_err(|error| CallError::new("read", error))?;
        Ok(info.and_then(|info| Signal::SUPERVISED.into_iter().find(|&signal| number(signal) as u32 == info.ssi_signo)))
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn set_of(signals: &[Signal]) -> SigSet {
    signals.iter().map(|&signal| native(signal)).collect()
}
