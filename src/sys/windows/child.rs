//! Child processes, each identified by its handle.
//!
//! # Safety
//! The calls take the handle of a process, which is open because an `OwnedHandle` owns it, and write one integer.

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

/// The exit status that a killed process gets. Task Manager and `taskkill /F` set this status too.
const KILLED: u32 = 1;

/// A child process. Its pid belongs to it while a handle to it is open.
#[derive(Debug)]
pub(crate) struct ChildHandle {
    pid: u32,
    _watch: Watch,
    process: Arc<OwnedHandle>,
    /// The event that requests a stop.
    stop: EventHandle,
    /// The status slot in which the worker notes that it listens for stop requests.
    status_slot: (Arc<Shared>, usize),
    started: Instant,
    exit_notifier: ExitNotifier,
}

impl ChildHandle {
    /// Starts to watch a process that was just started, so that its exit is reported. Kills the process if that fails.
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

    /// Requests a stop for SIGTERM, SIGINT and SIGQUIT, and kills the process for SIGABRT and SIGKILL. Ignores other
    /// signals, which have no counterpart on Windows.
    ///
    /// A stop request kills a process that does not listen for such requests, unless the process has received a console
    /// event. That event has run the program's own handler or has ended the process.
    pub fn send(&self, signal: Signal) -> Result<(), CallError> {
        match signal {
            Signal::Terminate | Signal::Interrupt | Signal::Quit => {
                self.stop.set()?;
                let (memory, slot) = &self.status_slot;
                let is_notified = memory.has_listener(*slot) || self.exit_notifier.has_sent_console_event(self.started);
                if is_notified { Ok(()) } else { self.kill() }
            }
            Signal::Abort | Signal::Kill => self.kill(),
            Signal::Hangup | Signal::TerminalInput | Signal::TerminalOutput | Signal::User1 | Signal::Child => Ok(()),
        }
    }

    /// Returns whether the process has exited, also if its exit was not reported yet. Returns false for a process that
    /// a console event has ended, because the parent must handle that event first.
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

    /// Kills the process. Succeeds if it has exited or is exiting: then TerminateProcess fails with
    /// `ERROR_ACCESS_DENIED`. (That error has no other cause here, because the handle from CreateProcessW has every
    /// right to the process.)
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
    // SAFETY: TerminateProcess takes an open handle, and accesses no memory of this process.
    match unsafe { TerminateProcess(process.as_raw_handle(), KILLED) } {
        0 => Err(CallError::last("TerminateProcess")),
        _ => Ok(()),
    }
}

/// Returns all 32 bits of the status of a process that has exited.
fn status_of(process: &OwnedHandle) -> Result<u32, CallError> {
    let mut status = 0;
    // SAFETY: GetExitCodeProcess takes an open handle, and writes one integer.
    match unsafe { GetExitCodeProcess(process.as_raw_handle(), &raw mut status) } {
        0 => Err(CallError::last("GetExitCodeProcess")),
        _ => Ok(status),
    }
}

/// Returns `None`, because the [`ExitNotifier`] reports each exit with its pid.
pub(crate) fn peek_exited() -> Result<Option<u32>, CallError> {
    Ok(None)
}

/// Returns false, because orphans get no new parent on Windows.
pub(crate) fn reap_as_init(_: u32) -> Result<bool, CallError> {
    Ok(false)
}

/// Returns false, because the exit status of a process exists while a handle to it is open.
pub(crate) fn is_echild(_: &CallError) -> bool {
    false
}

/// Returns `None`, because Windows has no signals.
pub(crate) fn signal_of(_: ExitStatus) -> Option<i32> {
    None
}
