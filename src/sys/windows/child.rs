//! Child processes, each identified by its handle.

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

/// The exit status of a killed process, the same as from Task Manager and `taskkill /F`.
const KILLED: u32 = 1;

/// A child. Its pid belongs to it as long as a handle to it is open.
#[derive(Debug)]
pub(crate) struct ChildHandle {
    pid: u32,
    _watch: Watch,
    process: Arc<OwnedHandle>,
    /// The event that requests a stop.
    stop: EventHandle,
    /// Where the worker notes that it listens for stop requests.
    status_slot: (Arc<Shared>, usize),
    started: Instant,
    exit_notifier: ExitNotifier,
}

impl ChildHandle {
    /// Makes the handle of a process that was just started. A process that cannot be watched is killed.
    pub(super) fn watch(
        process: OwnedHandle,
        pid: u32,
        stop: EventHandle,
        status_slot: (Arc<Shared>, usize),
        exit_notifier: ExitNotifier,
    ) -> Result<ChildHandle, CallError> {
        let process = Arc::new(process);
        let watched = Arc::clone(&process);
        let notifier = exit_notifier.clone();
        let watch = Watch::once(&process, move || notifier.notify(pid, status_of(&watched).unwrap_or_default()));
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

    /// Requests a stop, or kills the process; other signals have no counterpart. A process that does not listen for
    /// requests is killed at once, unless the console has asked it already; then it does what the console leads to.
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

    /// Returns whether it has exited, reported or not. A process that the console has ended does not count: the
    /// console's event must be handled first.
    pub fn was_reaped_elsewhere(&self) -> bool {
        self.has_ended() && status_of(&self.process).is_ok_and(|status| status != STATUS_CONTROL_C_EXIT as u32)
    }

    /// Returns the exit status, if the process has exited.
    pub fn reap(&self) -> Result<Option<ExitStatus>, CallError> {
        if !self.has_ended() {
            return Ok(None);
        }
        Ok(Some(ExitStatus::from_raw(status_of(&self.process)?)))
    }

    /// Waits until the process has exited.
    pub fn reap_blocking(&self) -> Result<Option<ExitStatus>, CallError> {
        handle::wait(&self.process, None);
        self.reap()
    }

    /// Kills the process. A process that has exited, or is exiting, refuses access, which is no error. (There is no
    /// other reason for that: the starter of a process has every right to it.)
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

/// Returns all 32 bits of the status of a process that has exited.
fn status_of(process: &OwnedHandle) -> Result<u32, CallError> {
    let mut status = 0;
    // SAFETY: the handle is open, and there is room for the status.
    match unsafe { GetExitCodeProcess(process.as_raw_handle(), &raw mut status) } {
        0 => Err(CallError::last("GetExitCodeProcess")),
        _ => Ok(status),
    }
}

/// Returns `None`, because each exit is reported with its pid.
pub(crate) fn peek_exited() -> Result<Option<u32>, CallError> {
    Ok(None)
}

/// Returns false, because Windows does not hand orphans to another process.
pub(crate) fn reap_as_init(_: u32) -> Result<bool, CallError> {
    Ok(false)
}

/// Returns false, because an open handle keeps the process object.
pub(crate) fn is_echild(_: &CallError) -> bool {
    false
}

/// Returns `None`, because Windows has no signals.
pub(crate) fn signal_of(_: ExitStatus) -> Option<i32> {
    None
}
