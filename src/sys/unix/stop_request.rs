//! How a worker hears that it is to stop: signal-hook's handlers for TERM and INT.
//!
//! # Safety
//! What they run uses lock-free atomics, getpid(2) and write(2) only, all async-signal-safe (signal-safety(7)), and keeps
//! `errno`. What it uses is there until the process ends.

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

/// Listens from when it is made, for the rest of the process: a handler stays, and so does what it writes to.
#[derive(Debug)]
pub(crate) struct StopRequest {
    heard: &'static Heard,
    pipe: OnceLock<&'static UnixStream>,
    /// Held while the pipe is made, so that there is one.
    making: Mutex<()>,
}

#[derive(Debug)]
struct Heard {
    /// A process that this one forks has the handlers as well, and the pipe.
    pid: u32,
    is_requested: AtomicBool,
    /// -1 as long as there is none.
    writer: AtomicI32,
}

impl StopRequest {
    pub fn listen() -> StopRequest {
        let heard = Heard { pid: std::process::id(), is_requested: AtomicBool::new(false), writer: AtomicI32::new(-1) };
        let heard: &Heard = Box::leak(Box::new(heard));
        for signal in stop_signals() {
            // SAFETY: as above. It is an error only for signals that take no handler.
            let _ = unsafe { register(number(signal), || heard.hear()) };
        }
        StopRequest { heard, pipe: OnceLock::new(), making: Mutex::new(()) }
    }

    pub fn is_made(&self) -> bool {
        self.heard.is_requested.load(Ordering::Relaxed)
    }

    /// For this time at most; without a descriptor to wait on, by looking every 10 ms.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        // A deadline that no clock can tell is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while !self.is_made() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let waited = self.pipe().and_then(|pipe| wait_readable(pipe.as_fd(), left));
            // No descriptor; or somebody else has written to it.
            if waited.map_or(true, |is_readable| is_readable && !self.is_made()) {
                thread::sleep(Duration::from_millis(10));
            }
        }
        true
    }

    /// Readable once the request is made, and from then on.
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
        self.heard.writer.store(writer.into_raw_fd(), Ordering::SeqCst);
        // What came before is not in the pipe.
        if self.heard.is_requested.load(Ordering::SeqCst) {
            self.heard.wake();
        }
        Ok(self.pipe.get_or_init(|| reader))
    }
}

impl Heard {
    /// In a handler.
    fn hear(&self) {
        if std::process::id() == self.pid {
            self.is_requested.store(true, Ordering::SeqCst);
            self.wake();
        }
    }

    fn wake(&self) {
        let errno = Errno::last_raw();
        // SAFETY: write(2) of one byte that is there; to -1 it is an error, and nothing else. The other end stays open.
        unsafe { libc::write(self.writer.load(Ordering::SeqCst), c"".as_ptr().cast(), 1) };
        Errno::set_raw(errno);
    }
}

/// TERM is how the parent asks. INT is what a terminal sends, but not to who ignores it.
fn stop_signals() -> impl Iterator<Item = Signal> {
    let ignores_int = is_ignored(Signal::Interrupt).unwrap_or(false);
    std::iter::once(Signal::Terminate).chain((!ignores_int).then_some(Signal::Interrupt))
}
