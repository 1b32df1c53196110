//! Signal numbers, and the takeover of signals from the program. While a supervisor runs, it receives the signals of
//! [`Signal::SUPERVISED`], and the program's own handlers do not run for them.
//!
//! # Safety
//! This module sets signal dispositions with sigaction(2). Each of them is one of three kinds: the default, an
//! async-signal-safe handler of this module, and a disposition that an earlier call of sigaction(2) returned. The
//! program itself has set a returned disposition, so the program already allows that handler to run at any time and in
//! any thread. Dispositions belong to the process, and other threads may change them at the same time. Each call of
//! sigaction(2) is atomic, so a disposition is never half written. The [`SupervisorLock`] allows one takeover at a
//! time. So each takeover restores the dispositions of the program, and never those that another takeover has set.

use std::{mem, ptr};

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::sys::{CallError, Signal, SignalInfo, SupervisorLock, WorkerKind};

#[cfg(all(target_os = "linux", not(taskfork_portable)))]
mod handover;
mod job_control;
mod self_pipe;
mod sender;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
mod signalfd;
mod source;
mod takeover;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(crate) use handover::SignalHandover;
pub(super) use sender::sender;
pub(super) use takeover::is_ignored;
pub(crate) use takeover::{ExitNotifier, Signals, with_requests_blocked, with_signals_blocked};

type Native = nix::sys::signal::Signal;

fn native(signal: Signal) -> Native {
    match signal {
        Signal::Terminate => Native::SIGTERM,
        Signal::Interrupt => Native::SIGINT,
        Signal::Quit => Native::SIGQUIT,
        Signal::Hangup => Native::SIGHUP,
        Signal::TerminalInput => Native::SIGTTIN,
        Signal::TerminalOutput => Native::SIGTTOU,
        Signal::User1 => Native::SIGUSR1,
        Signal::User2 => Native::SIGUSR2,
        Signal::Child => Native::SIGCHLD,
        Signal::Abort => Native::SIGABRT,
        Signal::Kill => Native::SIGKILL,
    }
}

pub(super) fn number(signal: Signal) -> libc::c_int {
    native(signal) as libc::c_int
}

/// Returns the index of the next signal to read in [`Signal::SUPERVISED`]. `pending` has one bit for each signal, and
/// `last` is the index of the signal that was read last. The signals take turns, so that a process that sends one
/// signal in a loop does not keep the parent from reading the others.
fn next_in_turn(pending: u32, last: usize) -> Option<usize> {
    let len = Signal::SUPERVISED.len();
    (1..=len).map(|step| (last + step) % len).find(|index| pending & 1 << index != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_arrive_all_the_time_take_turns() {
        let mut last = 0;
        let mut read = Vec::new();
        for _ in 0..6 {
            last = next_in_turn(0b1000_0101, last).expect("a signal");
            read.push(last);
        }
        assert_eq!(read, [2, 7, 0, 2, 7, 0]);
        assert_eq!(next_in_turn(0b100, 2), Some(2));
        assert_eq!(next_in_turn(0, 2), None);
    }
}
