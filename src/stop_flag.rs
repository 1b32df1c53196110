//! A stop request for one worker thread. (A stop request for a process is a signal, or an event on Windows.)

#[cfg(unix)]
use std::io;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A stop request that a thread can check, wait for, or poll through a descriptor.
#[derive(Debug, Default)]
pub(crate) struct StopFlag {
    is_made: AtomicBool,
    /// Held while the request is made, and while a thread checks it before it waits, so that no wakeup is lost.
    changes: Mutex<()>,
    made: Condvar,
    /// Opened by the first call of `fd`.
    #[cfg(unix)]
    pipe: std::sync::OnceLock<Pipe>,
}

/// A socket pair. The reader is readable once `fill` was called.
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

    /// Waits for the request, for `timeout` at most. Returns whether it was made.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let changes = self.lock();
        let is_open = |(): &mut ()| !self.is_made();
        match timeout {
            Some(timeout) => drop(self.made.wait_timeout_while(changes, timeout, is_open)),
            None => drop(self.made.wait_while(changes, is_open)),
        }
        self.is_made()
    }

    /// Returns a descriptor that becomes readable when the request is made, and stays readable.
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
    /// Writes the only byte that is ever written, so the buffer has room for it.
    fn fill(&self) {
        let _ = io::Write::write(&mut &self.writer, &[0]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn wait_returns_once_the_request_is_made() {
        let flag = Arc::<StopFlag>::default();
        assert!(!flag.is_made() && !flag.wait(Some(Duration::from_millis(1))));
        let waiting = thread::spawn({
            let flag = Arc::clone(&flag);
            move || flag.wait(None)
        });
        flag.make();
        flag.make();
        assert!(waiting.join().expect("no panic"));
        assert!(flag.is_made() && flag.wait(None) && flag.wait(Some(Duration::ZERO)));
    }

    #[cfg(unix)]
    #[test]
    fn fd_is_readable_once_the_request_is_made() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

        let is_readable = |flag: &StopFlag| {
            let fd = flag.fd().expect("a descriptor");
            poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).expect("a descriptor") > 0
        };
        let [before, after] = [StopFlag::default(), StopFlag::default()];
        assert!(!is_readable(&before));
        for flag in [&before, &after] {
            flag.make();
            assert!(is_readable(flag) && is_readable(flag), "it stays readable");
        }
    }
}
