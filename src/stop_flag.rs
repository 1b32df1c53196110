//! A request to stop that concerns one thread, and not the process.

#[cfg(unix)]
use std::io;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Default)]
pub(crate) struct StopFlag {
    is_made: AtomicBool,
    /// Held for each change, and by who is about to wait.
    changes: Mutex<()>,
    made: Condvar,
    #[cfg(unix)]
    pipe: std::sync::OnceLock<Pipe>,
}

/// Readable once its other end is written to.
#[cfg(unix)]
#[derive(Debug)]
struct Pipe {
    reader: UnixStream,
    writer: UnixStream,
}

impl StopFlag {
    pub fn make(&self) {
        let _changes = self.lock();
        if !self.is_made.swap(true, Ordering::Release) {
            self.made.notify_all();
            #[cfg(unix)]
            if let Some(pipe) = self.pipe.get() {
                pipe.fill();
            }
        }
    }

    pub fn is_made(&self) -> bool {
        self.is_made.load(Ordering::Acquire)
    }

    /// Waits until it is made, and for this time at most. Whether it was.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let changes = self.lock();
        let is_open = |(): &mut ()| !self.is_made();
        match timeout {
            Some(timeout) => drop(self.made.wait_timeout_while(changes, timeout, is_open)),
            None => drop(self.made.wait_while(changes, is_open)),
        }
        self.is_made()
    }

    /// Readable once it is made, and from then on.
    #[cfg(unix)]
    pub fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        let _changes = self.lock();
        if let Some(pipe) = self.pipe.get() {
            return Ok(pipe.reader.as_fd());
        }
        let (reader, writer) = UnixStream::pair()?;
        writer.set_nonblocking(true)?;
        let pipe = self.pipe.get_or_init(|| Pipe { reader, writer });
        if self.is_made() {
            pipe.fill();
        }
        Ok(pipe.reader.as_fd())
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(unix)]
impl Pipe {
    /// There is room for the one byte that it ever gets.
    fn fill(&self) {
        let _ = io::Write::write(&mut &self.writer, &[0]);
    }
}
