//! Signals: their numbers, how they are taken over from the program and given back, and how they are sent.
//!
//! # Safety
//! sigaction(2) is called with a disposition that is the system's default, a handler of ours that is async-signal-safe, or
//! exactly what an earlier call returned, which the program had set, to be run at any time and in any thread. Dispositions are
//! per process, and other threads may set them meanwhile: each call takes effect as a whole, before theirs or after, so that
//! what is in effect is always what somebody has set. That those who take signals put back what the program had, and not each
//! other's, is for the [`SupervisorLock`], of which there is one at a time.

use std::{mem, ptr};

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::sys::{CallError, Signal, SignalInfo, SupervisorLock, WorkerKind};

mod self_pipe;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
mod signalfd;
mod source;
mod takeover;
pub(super) use takeover::is_ignored;
pub(crate) use takeover::{ExitNotifier, Signals, with_requests_blocked};

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
        Signal::Child => Native::SIGCHLD,
        Signal::Abort => Native::SIGABRT,
        Signal::Kill => Native::SIGKILL,
    }
}

pub(super) fn number(signal: Signal) -> libc::c_int {
    native(signal) as libc::c_int
}
