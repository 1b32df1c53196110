//! Receives stop requests in a worker. A stop request is the signal SIGTERM or SIGINT. The crate signal-hook-registry,
//! on which signal-hook is based, installs the handler for both signals.
//!
//! # Safety
//! The handler uses only lock-free atomics, getpid(2), getppid(2), timer_settime(2), fstat(2) and send(2), which are
//! async-signal-safe (signal-safety(7)). The caller of [`StopRequest::listen`] passes a closure that must be so too.
//! The handler restores `errno`. The memory that it uses exists until the process ends.

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, io};

use nix::errno::Errno;
use signal_hook_registry::register_sigaction;

use super::guarded_socket::GuardedSocket;
use super::lifeline;
use super::orphan_timer::OrphanTimer;
use super::poll::wait_readable;
use super::signal::{is_ignored, number, sender};
use crate::sys::{CallError, Gate, Signal};

/// The listener for stop requests in a worker. Its signal handlers stay installed until the process ends. The pipe that
/// the handlers write to also stays open until then.
#[derive(Debug)]
pub(crate) struct StopRequest {
    handler: &'static Handler,
    /// Locked while a thread creates the pipe, so that two threads cannot create two pipes.
    making: Mutex<()>,
}

struct Handler {
    /// The worker's pid. A process that the worker forks inherits the handlers and the pipe. The handlers do nothing in
    /// that process, because its pid differs from this one.
    pid: u32,
    is_requested: AtomicBool,
    /// Null if the pipe was not created yet. A pipe is never freed, because the handler may use it at any time.
    pipe: AtomicPtr<Pipe>,
    /// `None` if the death of the parent does not lead to a SIGKILL.
    orphan_timer: Option<OrphanTimer>,
    /// The pid of the parent, or `None` if it is unknown.
    parent: Option<u32>,
    /// Called if neither the parent nor the kernel has sent the signal.
    note: Box<dyn Fn() + Send + Sync>,
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
    ///
    /// Calls `note` for each stop request that another process than the parent has sent, for example `kill`. A request
    /// of a terminal and a signal of this process to itself do not count. `note` runs in the signal handler, so it must
    /// be async-signal-safe.
    pub fn listen(on_error: impl FnOnce(CallError), note: impl Fn() + Send + Sync + 'static) -> StopRequest {
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
            parent: lifeline::parent(),
            note: Box::new(note),
        }));
        for signal in stop_signals() {
            // SAFETY: the handler uses only what signal-safety(7) allows; see the module's safety section. This ignores
            // errors, because sigaction(2) refuses a handler only for SIGKILL, SIGSTOP and invalid signal numbers.
            let _ = unsafe { register_sigaction(number(signal), |info| handler.handle(info)) };
        }
        // The parent may have ended before, when this process ignored SIGTERM.
        if handler.orphan_timer.as_ref().is_some_and(OrphanTimer::is_orphaned) {
            handler.request();
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
    /// Handles SIGTERM or SIGINT. Runs in the signal handler.
    fn handle(&self, info: &libc::siginfo_t) {
        let pid = std::process::id();
        if pid != self.pid {
            return;
        }
        // Before the request is visible, because the process may exit as soon as it notices the request.
        if sender(info).is_some_and(|sender| sender != pid && Some(sender) != self.parent) {
            (self.note)();
        }
        self.request();
    }

    /// Records a stop request and makes the pipe readable. If the parent has ended, also starts the timer that kills
    /// this process. Only makes calls that are async-signal-safe.
    fn request(&self) {
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

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").field("is_requested", &self.is_requested).finish_non_exhaustive()
    }
}

/// Returns the signals that request a stop: SIGTERM, which the parent sends, and SIGINT, which a terminal sends. Leaves
/// out SIGINT if the program ignores it.
fn stop_signals() -> impl Iterator<Item = Signal> {
    let ignores_int = is_ignored(Signal::Interrupt).unwrap_or(false);
    std::iter::once(Signal::Terminate).chain((!ignores_int).then_some(Signal::Interrupt))
}
