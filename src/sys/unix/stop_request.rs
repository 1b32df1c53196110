//! Receives stop requests in a worker. A stop request is the signal SIGTERM or SIGINT. The crate signal-hook installs
//! the handler for both signals.
//!
//! # Safety
//! The handler uses only lock-free atomics, getpid(2), getppid(2), timer_settime(2), fstat(2) and send(2), which are
//! async-signal-safe (signal-safety(7)). The handler restores `errno`. The memory that it uses exists until the process ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use signal_hook::low_level::register;

use super::guarded_socket::GuardedSocket;
use super::orphan_timer::OrphanTimer;
use super::poll::wait_readable;
use super::signal::{is_ignored, number};
use crate::sys::{CallError, Gate, Signal};

/// The listener for stop requests in a worker. Its signal handlers stay installed until the process ends. The pipe that
/// the handlers write to also stays open until then.
#[derive(Debug)]
pub(crate) struct StopRequest {
    handler: &'static Handler,
    /// Locked while a thread creates the pipe, so that two threads cannot create two pipes.
    making: Mutex<()>,
}

#[derive(Debug)]
struct Handler {
    /// The worker's pid. A process that the worker forks inherits the handlers and the pipe. The handlers do nothing in
    /// that process, because its pid differs from this one.
    pid: u32,
    is_requested: AtomicBool,
    /// Null if the pipe was not created yet. A pipe is never freed, because the handler may use it at any time.
    pipe: AtomicPtr<Pipe>,
    /// `None` if the death of the parent does not lead to a SIGKILL.
    orphan_timer: Option<OrphanTimer>,
}

/// A socket pair, whose reader is readable after a request.
#[derive(Debug)]
struct Pipe {
    reader: GuardedSocket,
    writer: GuardedSocket,
}

impl StopRequest {
    /// Enables the graceful stop. Calls `on_error` if the system refuses the timer that kills this process when it does
    /// not exit after the death of its parent. The graceful stop works without the timer.
    pub fn listen(on_error: impl FnOnce(CallError)) -> StopRequest {
        // Created before the handlers: once they are installed, the death of the parent no longer kills this process.
        let (orphan_timer, refused) = match OrphanTimer::new() {
            Ok(timer) => (timer, None),
            Err(error) => (None, Some(error)),
        };
        let handler: &Handler = Box::leak(Box::new(Handler {
            pid: std::process::id(),
            is_requested: AtomicBool::new(false),
            pipe: AtomicPtr::new(ptr::null_mut()),
            orphan_timer,
        }));
        for signal in stop_signals() {
            // SAFETY: the handler uses only what signal-safety(7) allows; see the module's safety section. This ignores
            // errors, because sigaction(2) refuses a handler only for SIGKILL, SIGSTOP and invalid signal numbers.
            let _ = unsafe { register(number(signal), || handler.handle()) };
        }
        // The parent may have ended before, when this process ignored SIGTERM.
        if handler.orphan_timer.as_ref().is_some_and(OrphanTimer::is_orphaned) {
            handler.handle();
        }
        if let Some(error) = refused {
            on_error(error);
        }
        StopRequest { handler, making: Mutex::new(()) }
    }

    pub fn is_made(&self) -> bool {
        self.handler.is_requested.load(Ordering::Relaxed)
    }

    /// Waits until a stop is requested or `timeout` has passed. Returns whether a stop is requested. If the pipe cannot
    /// be created, checks for a request every 10 ms instead.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        // If the deadline overflows `Instant`, this function waits without a deadline.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while !self.is_made() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let waited = self.pipe().and_then(|pipe| wait_readable(pipe.reader.as_fd(), left));
            // Pauses if the pipe could not be created or polled, or if other code has written to it. Without the pause,
            // this would be a busy loop.
            if waited.map_or(true, |is_readable| is_readable && !self.is_made()) {
                thread::sleep(Duration::from_millis(10));
            }
        }
        true
    }

    /// Returns a descriptor that becomes readable when a stop is requested, and stays readable from then on.
    pub fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.pipe().map(|pipe| pipe.reader.as_fd())
    }

    /// Returns the pipe. Creates it at the first call, and again if the program has closed one of its descriptors.
    fn pipe(&self) -> io::Result<&'static Pipe> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = self.handler.pipe().filter(|pipe| pipe.reader.is_open() && pipe.writer.is_open()) {
            return Ok(pipe);
        }
        let (reader, writer) = GuardedSocket::pair().map_err(|error| error.source)?;
        let pipe: &Pipe = Box::leak(Box::new(Pipe { reader, writer }));
        self.handler.pipe.store(ptr::from_ref(pipe).cast_mut(), Ordering::SeqCst);
        // If a stop was requested before the pipe existed, the handler had no descriptor to write to. So this code
        // writes the byte now.
        if self.handler.is_requested.load(Ordering::SeqCst) {
            self.handler.wake();
        }
        Ok(pipe)
    }
}

impl Handler {
    /// Records a stop request and makes the pipe readable. If the parent has ended, also starts the timer that kills
    /// this process. Runs in the signal handler.
    fn handle(&self) {
        if std::process::id() != self.pid {
            return;
        }
        let errno = Errno::last_raw();
        if let Some(timer) = &self.orphan_timer {
            timer.start_if_orphaned();
        }
        self.is_requested.store(true, Ordering::SeqCst);
        self.wake();
        Gate::of_process().request_stop();
        Errno::set_raw(errno);
    }

    /// Makes the pipe readable. Changes `errno`.
    fn wake(&self) {
        if let Some(pipe) = self.pipe() {
            pipe.writer.send_byte();
        }
    }

    fn pipe(&self) -> Option<&'static Pipe> {
        // SAFETY: the pointer is null, or from a pipe that was leaked, so that it is valid until the process ends.
        unsafe { self.pipe.load(Ordering::SeqCst).as_ref() }
    }
}

/// Returns the signals that request a stop: SIGTERM, which the parent sends, and SIGINT, which a terminal sends. Leaves
/// out SIGINT if the program ignores it.
fn stop_signals() -> impl Iterator<Item = Signal> {
    let ignores_int = is_ignored(Signal::Interrupt).unwrap_or(false);
    std::iter::once(Signal::Terminate).chain((!ignores_int).then_some(Signal::Interrupt))
}
