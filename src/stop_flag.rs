//! Stop requests for worker threads. (A worker process gets its stop request as a signal. On Windows, it gets the
//! request through an event object.)

#[cfg(unix)]
use std::io;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::sys::{CallError, Gate};
use crate::waker_set::WakerSet;
use crate::waker_thread;

/// The flag through which the parent requests a stop of one worker thread. The thread can check the flag, wait until it
/// is set, or poll a descriptor that becomes readable when the flag is set.
#[derive(Debug, Default)]
pub(crate) struct StopFlag {
    is_made: AtomicBool,
    /// Locked while `make` sets `is_made`. `wait` also locks this mutex, and checks `is_made` before its thread sleeps
    /// on the condition variable. So `make` cannot set `is_made` between this check and the sleep, and the thread does
    /// not miss the wakeup.
    changes: Mutex<Changes>,
    made: Condvar,
    /// The tasks that wait until the flag is set.
    wakers: Arc<WakerSet>,
    /// Ends the waits of the thread for connections and datagrams.
    gate: Arc<Gate>,
    /// The first call of `fd` creates this pipe.
    #[cfg(unix)]
    pipe: std::sync::OnceLock<Pipe>,
}

#[derive(Debug, Default)]
struct Changes {
    /// Whether the waker thread waits for this flag.
    is_watched: bool,
}

/// A socket pair. After a call of `fill`, `reader` is readable.
#[cfg(unix)]
#[derive(Debug)]
struct Pipe {
    reader: UnixStream,
    writer: UnixStream,
}

impl StopFlag {
    /// Requests the stop, and wakes all threads that wait for the request. Further calls have no effect. The waker
    /// thread then wakes the tasks that wait for the request.
    pub fn make(&self) {
        let changes = self.lock();
        if !self.is_made.swap(true, Ordering::Release) {
            self.made.notify_all();
            if changes.is_watched {
                waker_thread::wake_soon(Arc::clone(&self.wakers));
            }
            self.gate.request_stop();
            #[cfg(unix)]
            if let Some(pipe) = self.pipe.get() {
                pipe.fill();
            }
        }
    }

    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Returns whether the stop was requested.
    pub fn is_made(&self) -> bool {
        self.is_made.load(Ordering::Acquire)
    }

    /// Waits until the stop is requested or `timeout` has passed. With `None`, waits without a time limit. Returns
    /// whether the stop was requested.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let changes = self.lock();
        let is_open = |_: &mut Changes| !self.is_made();
        match timeout {
            Some(timeout) => drop(self.made.wait_timeout_while(changes, timeout, is_open)),
            None => drop(self.made.wait_while(changes, is_open)),
        }
        self.is_made()
    }

    /// Returns the wakers of the tasks that wait for the request.
    pub fn wakers(&self) -> &WakerSet {
        &self.wakers
    }

    /// Makes sure that the waker thread wakes the tasks when the stop is requested. Does nothing if the stop has been
    /// requested already.
    pub fn watch(&self) -> Result<(), CallError> {
        let mut changes = self.lock();
        if !changes.is_watched && !self.is_made() {
            waker_thread::expect_request()?;
            changes.is_watched = true;
        }
        Ok(())
    }

    /// Returns a descriptor that becomes readable when the stop is requested, and then stays readable.
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

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(unix)]
impl Pipe {
    /// Makes `reader` readable by writing one byte to `writer`. This function is called only once for each pipe, so the
    /// buffer always has room for the byte.
    fn fill(&self) {
        let _ = io::Write::write(&mut &self.writer, &[0]);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn wait_returns_after_the_stop_is_requested() {
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
    fn fd_is_readable_after_the_stop_is_requested() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

        let is_readable = |flag: &StopFlag| {
            let fd = flag.fd().expect("a descriptor");
            poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).expect("a descriptor") > 0
        };
        let [before, after] = [StopFlag::default(), StopFlag::default()];
        assert!(!is_readable(&before));
        for flag in [&before, &after] {
            flag.make();
            assert!(is_readable(flag) && is_readable(flag), "the descriptor stays readable");
        }
    }
}
