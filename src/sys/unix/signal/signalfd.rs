//! Receives signals through a signalfd(2): the parent blocks the signals and waits for the descriptor. There is no
//! signal handler that a forked child would inherit.
//!
//! The parent takes the signals with sigtimedwait(2) instead of read(2), because sigtimedwait(2) lets it choose which
//! of the pending signals it takes.
//!
//! # Safety
//! The system calls here write a signal set or a `siginfo_t` into memory of the right size.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::takeover::{Dispositions, is_plain};
use super::{native, next_in_turn};
use crate::sys::{CallError, Signal, SignalInfo};

#[derive(Debug)]
pub(super) struct Signalfd {
    fd: SignalFd,
    /// The index in [`Signal::SUPERVISED`] of the signal that was read last.
    last: usize,
}

impl Signalfd {
    pub fn open(signals: &[Signal]) -> Result<Signalfd, CallError> {
        let fd = SignalFd::with_flags(&set_of(signals), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        fd.map(|fd| Signalfd { fd, last: 0 }).map_err(|error| CallError::new("signalfd", error))
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

    /// Returns the next pending signal. The kinds of signals take turns: read(2) would return the signal with the
    /// lowest number first, and a flood of SIGUSR1 would then hide SIGTERM.
    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        for _ in Signal::SUPERVISED {
            let Some(index) = next_in_turn(pending()?, self.last) else { break };
            self.last = index;
            let signal = Signal::SUPERVISED[index];
            let Some(info) = take(signal)? else { break };
            if !(signal.is_job_control() && info.si_code == libc::SI_KERNEL) {
                // SAFETY: kill(2), the kernel and an exiting child fill in `si_pid` (sigaction(2)). For other senders
                // the field holds some other integer, because it is part of a union of plain values.
                let sender = unsafe { info.si_pid() } as u32;
                return Ok(Some(SignalInfo { signal, sender: Some(sender) }));
            }
        }
        Ok(None)
    }
}

/// Returns the pending signals, one bit for each index in [`Signal::SUPERVISED`]. Call this before each [`take`],
/// because a call of sigtimedwait(2) without a pending signal fails and writes `errno`. That write costs memory: each
/// page that the parent writes between two forks is copied for each worker (copy-on-write).
fn pending() -> Result<u32, CallError> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigpending(2) writes one signal set.
    if unsafe { libc::sigpending(set.as_mut_ptr()) } != 0 {
        return Err(CallError::last("sigpending"));
    }
    // SAFETY: sigpending(2) has succeeded, so it has written the set.
    let set = unsafe { SigSet::from_sigset_t_unchecked(set.assume_init()) };
    let bits = Signal::SUPERVISED.iter().enumerate().filter(|(_, signal)| set.contains(native(**signal)));
    Ok(bits.map(|(index, _)| 1 << index).sum())
}

/// Takes a pending signal. Returns `None` if it is not pending.
fn take(signal: Signal) -> Result<Option<libc::siginfo_t>, CallError> {
    let set = set_of(&[signal]);
    let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
    let no_wait = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        // SAFETY: sigtimedwait(2) reads the set and the time, and writes one siginfo_t.
        if unsafe { libc::sigtimedwait(set.as_ref(), info.as_mut_ptr(), &raw const no_wait) } > 0 {
            // SAFETY: sigtimedwait(2) has returned a signal, so it has written its siginfo_t.
            return Ok(Some(unsafe { info.assume_init() }));
        }
        match CallError::last("sigtimedwait") {
            error if error.source.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            error if error.source.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    }
}

impl AsFd for Signalfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_of(signals: &[Signal]) -> SigSet {
    signals.iter().map(|&signal| native(signal)).collect()
}
