//! signalfd(2): the signals are blocked, and read from a descriptor. No handler, so nothing to hand down to a child.
//!
//! Not read through nix, which panics if a read is short.
//!
//! # Safety
//! The calls here write a set of signals, or what is known about one, into memory of the right size.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::takeover::{Dispositions, is_plain};
use super::{native, number};
use crate::sys::{CallError, Signal, SignalInfo};

#[derive(Debug)]
pub(super) struct Signalfd(SignalFd);

impl Signalfd {
    pub fn open(signals: &[Signal]) -> Result<Signalfd, CallError> {
        let fd = SignalFd::with_flags(&set_of(signals), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        fd.map(Signalfd).map_err(|error| CallError::new("signalfd", error))
    }

    /// An ignored SIGCHLD, or one with `SA_NOCLDWAIT`, makes wait(2) fail, so it alone gets its default disposition. (If it
    /// has that already, no worker has anything to put back.)
    pub fn set_dispositions(dispositions: &mut Dispositions) -> Result<(), CallError> {
        if is_plain(Signal::Child)? { Ok(()) } else { dispositions.set(Signal::Child, libc::SIG_DFL) }
    }

    /// Added one by one: to nix, the union of two sets is that of the standard signals in them.
    pub fn mask(mut before: SigSet, signals: &[Signal]) -> SigSet {
        for &signal in signals {
            before.add(native(signal));
        }
        before
    }

    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        while self.is_pending() {
            let Some(info) = self.read()? else { break };
            let signal = Signal::SUPERVISED.into_iter().find(|&signal| number(signal) as u32 == info.ssi_signo);
            match signal {
                Some(signal) if signal.is_job_control() && info.ssi_code == libc::SI_KERNEL => {}
                Some(signal) => return Ok(Some(SignalInfo { signal, sender: Some(info.ssi_pid) })),
                None => {}
            }
        }
        Ok(None)
    }

    fn read(&self) -> Result<Option<libc::signalfd_siginfo>, CallError> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of_val(&info);
        // SAFETY: read(2) writes at most `size` bytes, for which there is room.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if read == size as isize {
            // SAFETY: all of it has been written.
            return Ok(Some(unsafe { info.assume_init() }));
        }
        match CallError::last("read") {
            _ if read >= 0 => Err(CallError::new("read", io::Error::from(io::ErrorKind::UnexpectedEof))),
            error if error.source.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        }
    }

    /// Asked before each read, because a read that fails sets `errno`: a page that every fork makes one to be copied.
    fn is_pending(&self) -> bool {
        let mut pending = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigpending(2) writes a set to where there is room for one.
        if unsafe { libc::sigpending(pending.as_mut_ptr()) } != 0 {
            return true;
        }
        // SAFETY: it has been written, since the call succeeded.
        let pending = unsafe { SigSet::from_sigset_t_unchecked(pending.assume_init()) };
        Signal::SUPERVISED.iter().any(|&signal| pending.contains(native(signal)))
    }
}

impl AsFd for Signalfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn set_of(signals: &[Signal]) -> SigSet {
    signals.iter().map(|&signal| native(signal)).collect()
}
