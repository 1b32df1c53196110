//! Signals: their numbers, and the takeover of the supervised ones from the program.
//!
//! # Safety
//! sigaction(2) sets one of three dispositions: the default, an async-signal-safe handler of this module, or a
//! disposition that an earlier call of sigaction(2) returned. The program has set the last one itself, so its handler
//! may run at any time and in any thread. Dispositions belong to the process, and other threads may set them at the
//! same time. Each call takes effect as a whole, so the disposition is always one that some code has set. The
//! [`SupervisorLock`] allows one takeover at a time, so each takeover restores the program's dispositions and not those
//! of another takeover.

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
