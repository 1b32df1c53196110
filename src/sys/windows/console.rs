//! The console's events: Ctrl-C, Ctrl-Break, the closing of the console, and the shutdown of the system.
//!
//! # Safety
//! The handler is a function that exists until the process ends, and it may run in any thread, because the system
//! starts a thread for each event (HandlerRoutine).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use windows_sys::Win32::System::Console::{CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_LOGOFF_EVENT, SetConsoleCtrlHandler};
use windows_sys::core::BOOL;

use crate::sys::{CallError, Signal};

pub(super) type Receiver = Arc<dyn Fn(Signal) + Send + Sync>;

static RECEIVER: Mutex<Option<Receiver>> = Mutex::new(None);

/// Sets the receiver of the console's events; `None` leaves each event to the next handler. The handler stays
/// installed, because removing it could wait forever: the system holds a lock while a handler runs, and once the
/// console was closed, this handler runs until the process ends.
pub(super) fn set_receiver(receiver: Option<Receiver>) -> Result<(), CallError> {
    static IS_SET: OnceLock<()> = OnceLock::new();
    *RECEIVER.lock().unwrap_or_else(PoisonError::into_inner) = receiver;
    if IS_SET.get().is_none() {
        // SAFETY: SetConsoleCtrlHandler takes a function that exists until the process ends and may run in any thread.
        if unsafe { SetConsoleCtrlHandler(Some(handle), 1) } == 0 {
            return Err(CallError::last("SetConsoleCtrlHandler"));
        }
        IS_SET.get_or_init(|| ());
    }
    Ok(())
}

/// Handles an event, in a thread that the system has started for it. Returns 0 to leave the event to the next handler.
unsafe extern "system" fn handle(event: u32) -> BOOL {
    let Some(receiver) = RECEIVER.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return 0 };
    match event {
        CTRL_C_EVENT | CTRL_BREAK_EVENT => {
            receiver(Signal::Interrupt);
            1
        }
        // A user has logged off. Only a service gets this event, and it keeps running.
        CTRL_LOGOFF_EVENT => 0,
        // The console is being closed, or the system shuts down. The process ends when this function returns.
        _ => {
            receiver(Signal::Terminate);
            loop {
                thread::park();
            }
        }
    }
}
