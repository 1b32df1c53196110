//! Receives signals through a signalfd(2): the parent blocks the signals and reads them from a descriptor. There is no
//! signal handler that a forked child would inherit.
//!
//! This module calls read(2) itself, because nix panics if read(2) returns fewer bytes than expected.
//!
//! # Safety
//! The system calls here write a signal set or a `signalfd_siginfo` into memory of the right size.

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

    /// Sets SIGCHLD to its default disposition if it has another one. Otherwise wait(2) could fail: it fails if the
    /// program ignores SIGCHLD or has set the flag `SA_NOCLDWAIT`. Leaves the other dispositions unchanged, so that a
    /// worker need not restore them.
    pub fn set_dispositions(dispositions: &mut Dispositions) -> Result<(), CallError> {
        if is_plain(Signal::Child)? { Ok(()) } else { dispositions.set(Signal::Child, libc::SIG_DFL) }
    }

    /// Returns the mask `before` with the signals added. Adds the signals one by one, because nix's union of two signal
    /// sets leaves out real-time signals.
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
        // SAFETY: read(2) writes at most `size` bytes, and `info` has room for them.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if read == size as isize {
            // SAFETY: read(2) has written `size` bytes, which is the size of `info`.
            return Ok(Some(unsafe { info.assume_init() }));
        }
        match CallError::last("read") {
            _ if read >= 0 => Err(CallError::new("read", io::Error::from(io::ErrorKind::UnexpectedEof))),
            error if error.source.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        }
    }

    /// Returns whether a signal of [`Signal::SUPERVISED`] is pending. Call this before each read, because a read
    /// without a pending signal fails and writes `errno`. That write costs memory: each page that the parent writes
    /// between two forks is copied for each worker (copy-on-write).
    fn is_pending(&self) -> bool {
        let mut pending = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigpending(2) writes one signal set.
        if unsafe { libc::sigpending(pending.as_mut_ptr()) } != 0 {
            return true;
        }
        // SAFETY: sigpending(2) has succeeded, so it has written the set.
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
