//! Receives the console's events: Ctrl-C, Ctrl-Break, the closing of the console, and the shutdown of the system.
//!
//! # Safety
//! The handler is a function that exists until the process ends. The system starts a thread for each event
//! (HandlerRoutine), so the handler may run in any thread.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use windows_sys::Win32::System::Console::{CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_LOGOFF_EVENT, SetConsoleCtrlHandler};
use windows_sys::core::BOOL;

use crate::sys::{CallError, Signal};

pub(super) type Receiver = Arc<dyn Fn(Signal) + Send + Sync>;

static RECEIVER: Mutex<Option<Receiver>> = Mutex::new(None);

/// Sets the closure that receives the console's events. `None` removes the closure, and each event then goes to the
/// next handler of the process.
///
/// The handler itself stays installed, because removing the handler could block forever. The system holds a lock while
/// a handler runs, and removing a handler needs the same lock. Once the console was closed, this handler runs until the
/// process ends.
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

/// Handles an event of the console. The system calls this function in a thread that it has started for the event.
/// Returns 0 to leave the event to the next handler.
unsafe extern "system" fn handle(event: u32) -> BOOL {
    let Some(receiver) = RECEIVER.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return 0 };
    match event {
        CTRL_C_EVENT | CTRL_BREAK_EVENT => {
            receiver(Signal::Interrupt);
            1
        }
        // A user has logged off. Only Windows services get this event, and a service continues to run after a logoff.
        CTRL_LOGOFF_EVENT => 0,
        // The console is being closed, or the system shuts down. The system ends the process as soon as this function
        // returns. So this function never returns, and other threads can stop the process gracefully.
        _ => {
            receiver(Signal::Terminate);
            loop {
                thread::park();
            }
        }
    }
}
