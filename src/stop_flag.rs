//! A request to stop that concerns one thread, and not the process.

#[cfg(unix)]
use std::io;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn who_waits_is_woken_and_who_comes_later_need_not_wait() {
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
    fn its_descriptor_is_readable_whether_it_was_asked_for_before_or_after() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

        let is_readable = |flag: &StopFlag| {
            let fd = flag.fd().expect("a descriptor");
            poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).expect("a descriptor") > 0
        };
        let [before, after] = [StopFlag::default(), StopFlag::default()];
        assert!(!is_readable(&before));
        for flag in [&before, &after] {
            flag.make();
            assert!(is_readable(flag) && is_readable(flag), "it stays so");
        }
    }
}
