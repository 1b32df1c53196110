//! The [`Gate`]: ends the waits for connections and datagrams in a worker.

use std::io::{self, ErrorKind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::time::{Duration, Instant};

use super::{BorrowedSocket, WakePipe, wait_for_socket};

/// How long a worker takes the connections and datagrams that wait already, from the first look at the gate after a
/// stop request. Without a limit, the worker of a busy service would always find another connection, and would never
/// stop.
const LONGEST_DRAIN: Duration = Duration::from_secs(3);

/// A wait without a pipe looks at the gate this often.
const PAUSE: Duration = Duration::from_millis(10);

static OF_PROCESS: Gate = Gate::new();

/// Ends the waits for connections and datagrams of one worker, when a stop is requested or when the worker stops
/// listening. Both are final.
///
/// A process that the worker forks has a copy of the gate, and a pipe of its own. The worker does not end its waits.
#[derive(Debug)]
pub(crate) struct Gate {
    is_stop_requested: AtomicBool,
    is_closed: AtomicBool,
    /// The first time that a caller looked at the gate after a stop request.
    noticed: OnceLock<Instant>,
    /// Null if there was no wait yet. Only a worker thread frees it, because the signal handler of a process may use it
    /// at any time.
    pipe: AtomicPtr<Entry>,
    /// Locked while a thread creates the pipe, so that two threads cannot create two pipes.
    making: Mutex<()>,
}

#[derive(Debug)]
struct Entry {
    pid: u32,
    pipe: WakePipe,
}

impl Gate {
    pub const fn new() -> Gate {
        Gate {
            is_stop_requested: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            noticed: OnceLock::new(),
            pipe: AtomicPtr::new(ptr::null_mut()),
            making: Mutex::new(()),
        }
    }

    /// Returns the gate of this process. A worker thread has a gate of its own.
    pub fn of_process() -> &'static Gate {
        &OF_PROCESS
    }

    /// Ends all waits because a stop was requested. On Unix, only makes calls that are async-signal-safe, and changes
    /// `errno`.
    pub fn request_stop(&self) {
        self.is_stop_requested.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Ends all waits because the worker has stopped listening.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub fn is_stop_requested(&self) -> bool {
        self.is_stop_requested.load(Ordering::SeqCst)
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Returns whether a stop was requested, and the worker has had its time to take what waits already.
    pub fn is_drain_over(&self) -> bool {
        self.is_stop_requested() && self.noticed.get_or_init(Instant::now).elapsed() > LONGEST_DRAIN
    }

    /// Waits until the socket is readable, a stop is requested, or the worker stops listening. May return earlier.
    /// Without a pipe, returns after 10 ms.
    pub fn wait(&self, socket: BorrowedSocket<'_>) -> io::Result<()> {
        let Ok(pipe) = self.pipe() else { return wait_for_socket(socket, None, Some(PAUSE)).map(drop) };
        if self.is_open() && wait_for_socket(socket, Some(pipe), None)? && self.is_open() {
            // Other code has written to the pipe. Without this pause, the caller would be a busy loop.
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn is_open(&self) -> bool {
        !self.is_stop_requested() && !self.is_closed()
    }

    fn wake(&self) {
        if let Some(entry) = self.entry().filter(|entry| entry.pid == std::process::id()) {
            entry.pipe.wake();
        }
    }

    /// Returns the pipe. Creates it at the first call in a process, and again if the program has closed it. Returns an
    /// error while another thread creates it. In a process that was forked at that moment, this stays so, because the
    /// other thread does not exist there.
    fn pipe(&self) -> io::Result<&WakePipe> {
        let pid = std::process::id();
        let made = || self.entry().filter(|entry| entry.pid == pid && entry.pipe.is_open()).map(|entry| &entry.pipe);
        if let Some(pipe) = made() {
            return Ok(pipe);
        }
        let _making = match self.making.try_lock() {
            Ok(making) => making,
            Err(TryLockError::Poisoned(making)) => making.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::WouldBlock.into()),
        };
        if let Some(pipe) = made() {
            return Ok(pipe);
        }
        let entry = Box::leak(Box::new(Entry { pid, pipe: WakePipe::open()? }));
        // A pipe that this one replaces is leaked, because another thread or the signal handler may use it.
        self.pipe.store(entry, Ordering::SeqCst);
        // A stop request before the store has found no pipe. The caller looks at the flags after the store.
        Ok(&entry.pipe)
    }

    fn entry(&self) -> Option<&Entry> {
        // SAFETY: the pointer is null, or from a box that was leaked. Only `drop` frees it.
        unsafe { self.pipe.load(Ordering::SeqCst).as_ref() }
    }
}

impl Default for Gate {
    fn default() -> Gate {
        Gate::new()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let pipe = *self.pipe.get_mut();
        if !pipe.is_null() {
            // SAFETY: the pointer is from a box that was leaked, and no reference to the gate or its pipe is left.
            drop(unsafe { Box::from_raw(pipe) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    #[cfg(unix)]
    use std::os::fd::AsFd;
    #[cfg(windows)]
    use std::os::windows::io::AsSocket;
    use std::thread;

    use super::*;

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").expect("a port")
    }

    #[cfg(unix)]
    fn borrow(listener: &TcpListener) -> BorrowedSocket<'_> {
        listener.as_fd()
    }

    #[cfg(windows)]
    fn borrow(listener: &TcpListener) -> BorrowedSocket<'_> {
        listener.as_socket()
    }

    #[test]
    fn a_stop_request_ends_every_wait() {
        let gate = Gate::new();
        let listener = listener();
        thread::scope(|scope| {
            let wait = || {
                while !gate.is_stop_requested() {
                    gate.wait(borrow(&listener)).expect("a wait");
                }
            };
            let waiting = [(); 4].map(|()| scope.spawn(wait));
            thread::yield_now();
            gate.request_stop();
            for waiting in waiting {
                waiting.join().expect("no panic");
            }
        });
        gate.wait(borrow(&listener)).expect("no wait");
        assert!(!gate.is_closed() && !gate.is_drain_over());
    }

    #[test]
    fn closing_ends_every_wait() {
        let gate = Gate::new();
        let listener = listener();
        gate.close();
        gate.wait(borrow(&listener)).expect("no wait");
        assert!(gate.is_closed() && !gate.is_stop_requested() && !gate.is_drain_over());
    }

    /// This is the state in a process that was forked while another thread created the pipe.
    #[test]
    fn a_wait_ends_although_the_pipe_is_being_made() {
        let gate = Gate::new();
        let _making = gate.making.lock().expect("a lock");
        gate.wait(borrow(&listener())).expect("a short wait");
        assert!(gate.entry().is_none());
    }

    #[test]
    fn a_connection_ends_the_wait() {
        let gate = Gate::new();
        let listener = listener();
        let _client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        gate.wait(borrow(&listener)).expect("a wait");
        listener.set_nonblocking(true).expect("a socket");
        listener.accept().expect("a connection");
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_closed_in_place_keeps_its_number() {
        use std::os::fd::AsRawFd;

        let listener = listener();
        let number = listener.as_raw_fd();
        crate::sys::close_in_place(listener.as_fd()).expect("a placeholder");
        listener.accept().expect_err("no listener");
        // SAFETY: fcntl(2) takes integers here.
        assert_eq!(unsafe { libc::fcntl(number, libc::F_GETFD) }, libc::FD_CLOEXEC);
    }
}
