//! Stop requests to a worker: SIGTERM and SIGINT, for which signal-hook runs the handlers.
//!
//! # Safety
//! The handlers use only lock-free atomics, getpid(2) and write(2), which are async-signal-safe (signal-safety(7)), and
//! restore `errno`. The memory and the descriptor that they use exist until the process ends.

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

/// The listener for stop requests. Its handlers stay installed until the process ends, and the pipe that they write to
/// stays open.
#[derive(Debug)]
pub(crate) struct StopRequest {
    handler: &'static Handler,
    pipe: OnceLock<&'static UnixStream>,
    /// Locked while the pipe is made, so that two threads do not make two.
    making: Mutex<()>,
}

#[derive(Debug)]
struct Handler {
    /// The worker's pid. A process that the worker forks inherits the handlers and the pipe, and must not use them.
    pid: u32,
    is_requested: AtomicBool,
    /// The writing end of the pipe; -1 until the pipe is made.
    writer: AtomicI32,
}

impl StopRequest {
    pub fn listen() -> StopRequest {
        let handler =
            Handler { pid: std::process::id(), is_requested: AtomicBool::new(false), writer: AtomicI32::new(-1) };
        let handler: &Handler = Box::leak(Box::new(handler));
        for signal in stop_signals() {
            // SAFETY: the handler uses only what signal-safety(7) allows; see the module's safety section. An error is
            // ignored, because sigaction(2) refuses a handler only for SIGKILL, SIGSTOP and invalid numbers.
            let _ = unsafe { register(number(signal), || handler.handle()) };
        }
        StopRequest { handler, pipe: OnceLock::new(), making: Mutex::new(()) }
    }

    pub fn is_made(&self) -> bool {
        self.handler.is_requested.load(Ordering::Relaxed)
    }

    /// Waits for a request, for `timeout` at most. Returns whether there is one. If the pipe could not be made, checks
    /// every 10 ms instead.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        // If the deadline overflows `Instant`, waits without one.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while !self.is_made() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let waited = self.pipe().and_then(|pipe| wait_readable(pipe.as_fd(), left));
            // The pipe could not be made or polled, or other code has written to it. The pause prevents a busy loop.
            if waited.map_or(true, |is_readable| is_readable && !self.is_made()) {
                thread::sleep(Duration::from_millis(10));
            }
        }
        true
    }

    /// Returns a descriptor that becomes readable when a stop is requested, and then stays readable.
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
        // The handler of an earlier request had no descriptor to write to.
        if self.handler.is_requested.load(Ordering::SeqCst) {
            self.handler.wake();
        }
        Ok(self.pipe.get_or_init(|| reader))
    }
}

impl Handler {
    /// Notes a request and makes the pipe readable. Runs in the signal handler.
    fn handle(&self) {
        if std::process::id() == self.pid {
            self.is_requested.store(true, Ordering::SeqCst);
            self.wake();
        }
    }

    fn wake(&self) {
        let errno = Errno::last_raw();
        // SAFETY: write(2) reads one byte of a static string. With the descriptor -1 it only fails, with EBADF. It
        // raises no SIGPIPE, because the reading end stays open.
        unsafe { libc::write(self.writer.load(Ordering::SeqCst), c"".as_ptr().cast(), 1) };
        Errno::set_raw(errno);
    }
}

/// Returns SIGTERM, which the parent sends, and SIGINT, which a terminal sends. Leaves out SIGINT if the program
/// ignores it.
fn stop_signals() -> impl Iterator<Item = Signal> {
    let ignores_int = is_ignored(Signal::Interrupt).unwrap_or(false);
    std::iter::once(Signal::Terminate).chain((!ignores_int).then_some(Signal::Interrupt))
}
