//! Receives stop requests in a worker. A stop request is the signal SIGTERM or SIGINT. The crate signal-hook installs
//! the handler for both signals.
//!
//! # Safety
//! The handler uses only lock-free atomics, getpid(2) and write(2), which are async-signal-safe (signal-safety(7)). The
//! handler restores `errno`. The memory and the descriptor that it uses exist until the process ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use signal_hook::low_level::register;

use super::poll::wait_readable;
use super::signal::{is_ignored, number};
use crate::sys::Signal;

/// The listener for stop requests in a worker. Its signal handlers stay installed until the process ends. The pipe that
/// the handlers write to also stays open until then.
#[derive(Debug)]
pub(crate) struct StopRequest {
    handler: &'static Handler,
    pipe: OnceLock<&'static UnixStream>,
    /// Locked while a thread creates the pipe, so that two threads cannot create two pipes.
    making: Mutex<()>,
}

#[derive(Debug)]
struct Handler {
    /// The worker's pid. A process that the worker forks inherits the handlers and the pipe. The handlers do nothing in
    /// that process, because its pid differs from this one.
    pid: u32,
    is_requested: AtomicBool,
    /// The writing end of the pipe, or -1 if the pipe was not created yet.
    writer: AtomicI32,
}

impl StopRequest {
    pub fn listen() -> StopRequest {
        let handler =
            Handler { pid: std::process::id(), is_requested: AtomicBool::new(false), writer: AtomicI32::new(-1) };
        let handler: &Handler = Box::leak(Box::new(handler));
        for signal in stop_signals() {
            // SAFETY: the handler uses only what signal-safety(7) allows; see the module's safety section. This ignores
            // errors, because sigaction(2) refuses a handler only for SIGKILL, SIGSTOP and invalid signal numbers.
            let _ = unsafe { register(number(signal), || handler.handle()) };
        }
        StopRequest { handler, pipe: OnceLock::new(), making: Mutex::new(()) }
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
            let waited = self.pipe().and_then(|pipe| wait_readable(pipe.as_fd(), left));
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
        self.pipe().map(AsFd::as_fd)
    }

    fn pipe(&self) -> io::Result<&'static UnixStream> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = self.pipe.get() {
            return Ok(pipe);
        }
        let (reader, writer) = UnixStream::pair()?;
        writer.set_nonblocking(true)?;
        let reader: &UnixStream = Box::leak(Box::new(reader));
        self.handler.writer.store(writer.into_raw_fd(), Ordering::SeqCst);
        // If a stop was requested before the pipe existed, the handler had no descriptor to write to. So this code
        // writes the byte now.
        if self.handler.is_requested.load(Ordering::SeqCst) {
            self.handler.wake();
        }
        Ok(self.pipe.get_or_init(|| reader))
    }
}

impl Handler {
    /// Records a stop request and makes the pipe readable. Runs in the signal handler.
    fn handle(&self) {
        if std::process::id() == self.pid {
            self.is_requested.store(true, Ordering::SeqCst);
            self.wake();
        }
    }

    fn wake(&self) {
        let errno = Errno::last_raw();
        // SAFETY: write(2) reads one byte of a static string. If the pipe was not created yet, the descriptor is -1,
        // and write(2) only fails with EBADF. write(2) raises no SIGPIPE, because the reading end stays open.
        unsafe { libc::write(self.writer.load(Ordering::SeqCst), c"".as_ptr().cast(), 1) };
        Errno::set_raw(errno);
    }
}

/// Returns the signals that request a stop: SIGTERM, which the parent sends, and SIGINT, which a terminal sends. Leaves
/// out SIGINT if the program ignores it.
fn stop_signals() -> impl Iterator<Item = Signal> {
    let ignores_int = is_ignored(Signal::Interrupt).unwrap_or(false);
    std::iter::once(Signal::Terminate).chain((!ignores_int).then_some(Signal::Interrupt))
}
