//! Child processes. The parent identifies each child by a process handle.
//!
//! # Safety
//! The system calls take a process handle, which is open because an `OwnedHandle` owns it. GetExitCodeProcess also
//! writes one integer.

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

/// The exit status of a process that this module has killed. Task Manager and `taskkill /F` use the same status.
const KILLED: u32 = 1;

/// A child process. Its pid cannot be given to another process while a handle to the child is open.
#[derive(Debug)]
pub(crate) struct ChildHandle {
    pid: u32,
    _watch: Watch,
    process: Arc<OwnedHandle>,
    /// The event through which the parent requests a stop.
    stop: EventHandle,
    /// The shared memory, and the index of the child's status slot in it. The child records in the slot that it listens
    /// for stop requests.
    status_slot: (Arc<Shared>, usize),
    started: Instant,
    exit_notifier: ExitNotifier,
}

impl ChildHandle {
    /// Watches a process that was just started, and reports its exit to the parent. Kills the process if it cannot be
    /// watched.
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

    /// Sends the counterpart of a signal. Requests a stop for SIGTERM, SIGINT and SIGQUIT. Kills the process for
    /// SIGABRT and SIGKILL. Ignores all other signals, because they have no counterpart on Windows.
    ///
    /// If the process does not listen for stop requests, a stop request kills the process. There is one exception: a
    /// process that has received a console event is not killed. The console event has already run the program's own
    /// handler or ended the process.
    pub fn send(&self, signal: Signal) -> Result<(), CallError> {
        match signal {
            Signal::Terminate | Signal::Interrupt | Signal::Quit => {
                self.stop.set()?;
                let (memory, slot) = &self.status_slot;
                let is_notified = memory.has_listener(*slot) || self.exit_notifier.has_sent_console_event(self.started);
                if is_notified { Ok(()) } else { self.kill() }
            }
            Signal::Abort | Signal::Kill => self.kill(),
            Signal::Hangup
            | Signal::TerminalInput
            | Signal::TerminalOutput
            | Signal::User1
            | Signal::User2
            | Signal::Child => Ok(()),
        }
    }

    /// Returns whether the process has exited, even if its exit was not reported yet. Returns false if a console event
    /// has ended the process, because the parent must handle that event before the exit.
    pub fn was_reaped_elsewhere(&self) -> bool {
        self.has_ended() && status_of(&self.process).is_ok_and(|status| status != STATUS_CONTROL_C_EXIT as u32)
    }

    /// Returns the exit status if the process has exited. Returns `None` if the process still runs.
    pub fn reap(&self) -> Result<Option<ExitStatus>, CallError> {
        if !self.has_ended() {
            return Ok(None);
        }
        Ok(Some(ExitStatus::from_raw(status_of(&self.process)?)))
    }

    /// Returns false, because the parent does not wait for error reports of Windows.
    pub fn is_dumping_core(&self) -> bool {
        false
    }

    /// Kills the process. Also succeeds if the process has exited or is exiting. In that case, TerminateProcess fails
    /// with `ERROR_ACCESS_DENIED`. (This error has no other cause here, because the handle that CreateProcessW returned
    /// has every access right to the process.)
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

/// Returns all 32 bits of the exit status of a process that has exited.
fn status_of(process: &OwnedHandle) -> Result<u32, CallError> {
    let mut status = 0;
    // SAFETY: GetExitCodeProcess takes an open handle, and writes one integer.
    match unsafe { GetExitCodeProcess(process.as_raw_handle(), &raw mut status) } {
        0 => Err(CallError::last("GetExitCodeProcess")),
        _ => Ok(status),
    }
}

/// Returns `None`, because on Windows the [`ExitNotifier`] reports each exit together with the pid.
pub(crate) fn peek_exited() -> Result<Option<u32>, CallError> {
    Ok(None)
}

/// Returns false, because Windows does not give a new parent to orphaned processes.
pub(crate) fn adopts_orphans() -> bool {
    false
}

/// Does nothing, because Windows removes a process that has exited when its last handle is closed.
pub(crate) fn reap_stranger(_: u32) -> Result<(), CallError> {
    Ok(())
}

/// Returns `None`, because Windows has no such list.
pub(crate) fn exited_children() -> Option<Vec<u32>> {
    None
}

/// Returns false, because other code cannot reap a child on Windows. The exit status of a process exists while a handle
/// to the process is open.
pub(crate) fn is_echild(_: &CallError) -> bool {
    false
}

/// Returns `None`, because Windows has no signals that could kill a process.
pub(crate) fn signal_of(_: ExitStatus) -> Option<i32> {
    None
}
