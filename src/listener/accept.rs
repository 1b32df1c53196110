//! Waits for a connection or a datagram.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use super::{BoundSocket, Connection, Listener};
use crate::sys;

impl Listener {
    /// Waits for a connection and accepts it. Returns the connection, which is blocking, and the client's address. The
    /// address is `None` for a Unix socket.
    ///
    /// Several workers, and several threads of one worker, can wait for connections of the same listener. The system
    /// wakes all of them, and one of them gets the connection. The others go on waiting. The call also goes on waiting
    /// if a client has closed its connection before it was accepted, or if a signal arrives that is not a stop request.
    /// On Windows, the call also looks for a connection every 50 ms, because Wine reports no connection of a listener
    /// that a spawned worker has inherited.
    ///
    /// # Stop requests
    ///
    /// If a stop of the worker is requested, the call ends: it returns `Interrupted`. First it returns the connections
    /// that wait already, one in each call, but for at most 3 s. So a loop that ends at this error drains the queue.
    /// Without the limit, a worker of a busy service would never stop. So the [graceful
    /// timeout](crate::Prefork::graceful_timeout) should be longer than 3 s and the longest request. The worker must
    /// have enabled the [graceful stop](crate::Worker#stopping), before the call or while the call waits: without it,
    /// the stop request kills the worker.
    ///
    /// # Errors
    ///
    /// - `Interrupted`: a stop of the worker was requested, and no connection waits.
    /// - `NotConnected`: the worker has called [`stop_listening`](crate::Worker::stop_listening), and no stop was
    ///   requested.
    /// - `InvalidInput`: this is a UDP socket.
    /// - The system's error otherwise, for example if the process has too many open descriptors (accept(2)). The
    ///   connection then stays in the queue.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::io::{ErrorKind, Write};
    ///
    /// use taskfork::{Prefork, Report};
    ///
    /// fn main() -> taskfork::Result<Report> {
    ///     Prefork::new().workers(4).listen("127.0.0.1:8000").run(|worker| {
    ///         worker.enable_graceful_stop();
    ///         loop {
    ///             let (mut connection, _) = match worker.listeners()[0].accept() {
    ///                 Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()), // a stop was requested
    ///                 accepted => accepted?,
    ///             };
    ///             let _ = connection.write_all(b"hello\n"); // the client may be gone
    ///         }
    ///     })
    /// }
    /// ```
    pub fn accept(&self) -> io::Result<(Connection, Option<SocketAddr>)> {
        match self.socket() {
            BoundSocket::Tcp(listener) => self.wait_for(|| {
                let (stream, address) = listener.accept()?;
                // On Linux, an accepted connection is always blocking.
                if cfg!(not(target_os = "linux")) {
                    stream.set_nonblocking(false)?;
                }
                Ok((Connection::Tcp(stream), Some(address)))
            }),
            BoundSocket::Udp(_) => Err(self.unfit("has no connections")),
            #[cfg(unix)]
            BoundSocket::Unix(listener) => self.wait_for(|| {
                let (stream, _) = listener.accept()?;
                if cfg!(not(target_os = "linux")) {
                    stream.set_nonblocking(false)?;
                }
                Ok((Connection::Unix(stream), None))
            }),
        }
    }

    /// Waits for a datagram on a UDP socket. Returns the length of the datagram and the sender's address. If the buffer
    /// is too short for the datagram, the rest of the datagram is lost.
    ///
    /// The call waits, and a stop request ends the wait, as described for [`accept`](Listener::accept).
    ///
    /// # Errors
    ///
    /// - `Interrupted`: a stop of the worker was requested, and no datagram waits.
    /// - `NotConnected`: the worker has called [`stop_listening`](crate::Worker::stop_listening), and no stop was
    ///   requested.
    /// - `InvalidInput`: this is not a UDP socket.
    /// - The system's error otherwise. On Windows, a datagram that is longer than the buffer is an error.
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match self.socket() {
            BoundSocket::Udp(socket) => self.wait_for(|| socket.recv_from(buffer)),
            BoundSocket::Tcp(_) => Err(self.unfit("has no datagrams")),
            #[cfg(unix)]
            BoundSocket::Unix(_) => Err(self.unfit("has no datagrams")),
        }
    }

    /// Repeats the attempt until it returns something else than `WouldBlock`, and waits between two attempts.
    fn wait_for<T>(&self, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let gate = self.gate();
        loop {
            if gate.is_closed() || gate.is_drain_over() {
                return Err(self.end());
            }
            match attempt() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if gate.is_stop_requested() {
                        return Err(self.end());
                    }
                    gate.wait(self.as_passed())?;
                }
                Err(error) if sys::is_of_connection(&error) => {}
                // Another thread has closed the socket during the attempt.
                Err(_) if gate.is_closed() => return Err(self.end()),
                result => return result,
            }
        }
    }

    /// Returns the error of a call that has ended because of the gate.
    fn end(&self) -> io::Error {
        if self.gate().is_stop_requested() {
            io::Error::new(ErrorKind::Interrupted, "a stop of the worker was requested")
        } else {
            stopped_listening()
        }
    }

    fn unfit(&self, problem: &str) -> io::Error {
        io::Error::new(ErrorKind::InvalidInput, format!("{} ({self}) {problem}", self.description()))
    }

    /// Returns the kind of the socket, for error messages.
    pub(crate) fn description(&self) -> &'static str {
        match self.socket() {
            BoundSocket::Tcp(_) => "a TCP listener",
            BoundSocket::Udp(_) => "a UDP socket",
            #[cfg(unix)]
            BoundSocket::Unix(_) => "a Unix listener",
        }
    }
}

/// Returns the error of a call after the worker has stopped listening.
pub(crate) fn stopped_listening() -> io::Error {
    io::Error::new(ErrorKind::NotConnected, "the worker has stopped listening")
}
