//! Children, each by its handle.

use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::os::windows::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{ERROR_ACCESS_DENIED, STATUS_CONTROL_C_EXIT};
use windows_sys::Win32::System::Threading::{GetExitCodeProcess, TerminateProcess};

use super::event::EventHandle;
use super::handle;
use super::signal::ExitNotifier;
use super::watch::Watch;
use crate::sys::{CallError, Shared, Signal};

/// The status of a process that is killed, as Task Manager and `taskkill /F` have it.
const KILLED: u32 = 1;

/// A child, whose pid is its own as long as there is a handle to it.
#[derive(Debug)]
pub(crate) struct ChildHandle {
    pid: u32,
    _watch: Watch,
    process: Arc<OwnedHandle>,
    /// By which it is asked to stop.
    stop: EventHandle,
    /// Where it says whether it listens.
    status_slot: (Arc<Shared>, usize),
    started: Instant,
    exit_notifier: ExitNotifier,
}

impl ChildHandle {
    /// One that was just started. If it cannot be watched it must not live.
    pub(super) fn watch(
        process: OwnedHandle,
        pid: u32,
        stop: EventHandle,
        status_slot: (Arc<Shared>, usize),
        exit_notifier: ExitNotifier,
    ) -> Result<ChildHandle, CallError> {
        let process = Arc::new(process);
        let (watched, told) = (Arc::clone(&process), exit_notifier.clone());
        let watch = Watch::once(&process, move || told.tell(pid, status_of(&watched).unwrap_or_default()));
        match watch {
            Ok(watch) => Ok(ChildHandle {
                pid,
                _watch: watch,
                process,
                stop,
                status_slot,
                started: Instant::now(),
                exit_notifier,
            }),
            Err(error) => {
                let _ = kill(&process);
                Err(error)
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to stop, or kills it; the other signals have no meaning here. One that does not listen is not asked in vain,
    /// unless it has heard of it from the console, and does about that what it does.
    pub fn send(&self, signal: Signal) -> Result<(), CallError> {
        match signal {
            Signal::Terminate | Signal::Interrupt | Signal::Quit => {
                self.stop.set()?;
                let (memory, slot) = &self.status_slot;
                let knows = memory.has_listener(*slot) || self.exit_notifier.has_console_asked(self.started);
                if knows { Ok(()) } else { self.kill() }
            }
            Signal::Abort | Signal::Kill => self.kill(),
            Signal::Hangup | Signal::TerminalInput | Signal::TerminalOutput | Signal::User1 | Signal::Child => Ok(()),
        }
    }

    /// Whether it has ended, told of or not; but for one that the console has ended, which is to be told of that first.
    pub fn was_reaped_elsewhere(&self) -> bool {
        self.has_ended() && status_of(&self.process).is_ok_and(|status| status != STATUS_CONTROL_C_EXIT as u32)
    }

    /// How it ended, if it has.
    pub fn reap(&self) -> Result<Option<ExitStatus>, CallError> {
        if !self.has_ended() {
            return Ok(None);
        }
        Ok(Some(ExitStatus::from_raw(status_of(&self.process)?)))
    }

    /// Waits until it has ended.
    pub fn reap_blocking(&self) -> Result<Option<ExitStatus>, CallError> {
        handle::wait(&self.process, None);
        self.reap()
    }

    /// One that has ended, or is about to, cannot be killed, and need not be. (Nothing else is behind a refusal of access:
    /// whoever starts a process has all of it.)
    fn kill(&self) -> Result<(), CallError> {
        kill(&self.process).or_else(|error| {
            let is_refused = error.source.raw_os_error() == Some(ERROR_ACCESS_DENIED as i32);
            if is_refused || self.has_ended() { Ok(()) } else { Err(error) }
        })
    }

    fn has_ended(&self) -> bool {
        handle::wait(&self.process, Some(Duration::ZERO))
    }
}

fn kill(process: &OwnedHandle) -> Result<(), CallError> {
    // SAFETY: the handle is open.
    match unsafe { TerminateProcess(process.as_raw_handle(), KILLED) } {
        0 => Err(CallError::last("TerminateProcess")),
        _ => Ok(()),
    }
}

/// Of a process that has ended: all 32 bits.
fn status_of(process: &OwnedHandle) -> Result<u32, CallError> {
    let mut status = 0;
    // SAFETY: the handle is open, and there is room for the status.
    match unsafe { GetExitCodeProcess(process.as_raw_handle(), &raw mut status) } {
        0 => Err(CallError::last("GetExitCodeProcess")),
        _ => Ok(status),
    }
}

/// Each end is told by the pid, so that nobody has to be looked for.
pub(crate) fn peek_exited() -> Result<Option<u32>, CallError> {
    Ok(None)
}

/// There are no orphans to be reaped.
pub(crate) fn reap_as_init(_: u32) -> Result<bool, CallError> {
    Ok(false)
}

/// A handle to a child is good for as long as there is one.
pub(crate) fn is_echild(_: &CallError) -> bool {
    false
}

/// There are no signals.
pub(crate) fn signal_of(_: ExitStatus) -> Option<i32> {
    None
}
