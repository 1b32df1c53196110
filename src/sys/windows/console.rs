//! What is typed at the console, and its end.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use windows_sys::Win32::System::Console::{CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_LOGOFF_EVENT, SetConsoleCtrlHandler};
use windows_sys::core::BOOL;

use crate::sys::{CallError, Signal};

pub(super) type Hears = Arc<dyn Fn(Signal) + Send + Sync>;

static HEARS: Mutex<Option<Hears>> = Mutex::new(None);

/// The handler is never taken away: the system keeps a lock while handlers run, and ours, at the end of the console, runs
/// until the process ends. When nobody hears by it, it leaves what comes to the next one.
pub(super) fn hear_by(hears: Option<Hears>) -> Result<(), CallError> {
    static IS_SET: OnceLock<()> = OnceLock::new();
    *HEARS.lock().unwrap_or_else(PoisonError::into_inner) = hears;
    if IS_SET.get().is_none() {
        // SAFETY: the function is there until the end, and may run in any thread.
        if unsafe { SetConsoleCtrlHandler(Some(handle), 1) } == 0 {
            return Err(CallError::last("SetConsoleCtrlHandler"));
        }
        IS_SET.get_or_init(|| ());
    }
    Ok(())
}

/// In a thread of its own.
unsafe extern "system" fn handle(event: u32) -> BOOL {
    let Some(hears) = HEARS.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return 0 };
    match event {
        CTRL_C_EVENT | CTRL_BREAK_EVENT => {
            hears(Signal::Interrupt);
            1
        }
        // Of some user: only services are told, and they stay.
        CTRL_LOGOFF_EVENT => 0,
        // The console is closed, or the system shuts down: the process ends when this returns.
        _ => {
            hears(Signal::Terminate);
            loop {
                thread::park();
            }
        }
    }
}
