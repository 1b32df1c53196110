//! A socket that ends a wait for another socket, and the wait itself.
//!
//! # Safety
//! WSAPoll reads and writes the given number of `WSAPOLLFD` values, and the sockets in them are borrowed for the time
//! of the call.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::windows::io::{AsRawSocket, BorrowedSocket, RawSocket};
use std::thread;
use std::time::Duration;

use windows_sys::Win32::Networking::WinSock::{POLLRDNORM, SOCKET, SOCKET_ERROR, WSAENOTSOCK, WSAPOLLFD, WSAPoll};

use crate::sys::CallError;

/// A UDP socket that is connected to itself. It stays readable from the first `wake` on.
#[derive(Debug)]
pub(crate) struct WakePipe {
    socket: UdpSocket,
}

impl WakePipe {
    pub fn open() -> io::Result<WakePipe> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(socket.local_addr()?)?;
        socket.set_nonblocking(true)?;
        Ok(WakePipe { socket })
    }

    pub fn is_open(&self) -> bool {
        true
    }

    pub fn wake(&self) {
        // Ignores errors: the wait has a timeout for this case.
        let _ = self.socket.send(&[0]);
    }
}

/// The longest time of one wait. Wine's WSAPoll ignores a socket that the process has inherited, because it only knows
/// the sockets that the process itself has created. The caller then finds a connection within this time.
const LONGEST: Duration = Duration::from_millis(50);

/// Waits until the socket or the pipe is readable, or `timeout` or 50 ms has passed. Returns whether the pipe is
/// readable. Waits for the whole time if WSAPoll knows neither of them.
pub(crate) fn wait_for_socket(
    socket: BorrowedSocket<'_>,
    pipe: Option<&WakePipe>,
    timeout: Option<Duration>,
) -> io::Result<bool> {
    let entry = |socket: RawSocket| WSAPOLLFD { fd: socket as SOCKET, events: POLLRDNORM, revents: 0 };
    let mut entries = vec![entry(socket.as_raw_socket())];
    entries.extend(pipe.map(|pipe| entry(pipe.socket.as_raw_socket())));
    let timeout = timeout.unwrap_or(LONGEST).min(LONGEST);
    // SAFETY: see the top of this file.
    if unsafe { WSAPoll(entries.as_mut_ptr(), entries.len() as u32, timeout.as_millis() as i32) } == SOCKET_ERROR {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(WSAENOTSOCK) {
            return Err(error);
        }
        // WSAPoll fails in this way if it knows none of the sockets. In Wine, an inherited socket without a pipe is
        // such a case, although accept and recv_from work. If the socket is not usable, the caller's next attempt
        // fails.
        thread::sleep(timeout);
        return Ok(false);
    }
    Ok(entries.get(1).is_some_and(|pipe| pipe.revents != 0))
}

/// Does nothing, because Windows has no call that replaces the socket behind a handle. The socket stays open until its
/// owner drops it.
pub(crate) fn close_in_place(_: BorrowedSocket<'_>) -> Result<(), CallError> {
    Ok(())
}

/// Returns whether accept has failed because of one connection, so that a caller should call it again. A UDP socket
/// reports in the same way that an earlier datagram had no receiver.
pub(crate) fn is_of_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::os::windows::io::AsRawHandle;

    use super::super::event::EventHandle;
    use super::*;

    /// An event takes the place of an inherited socket, because Wine's WSAPoll refuses both with the same error.
    #[test]
    fn a_wait_ends_although_wsapoll_refuses_the_socket() {
        let event = EventHandle::manual_reset().expect("an event");
        // SAFETY: the handle stays open during the borrow, and WSAPoll refuses a handle that is not a socket.
        let unknown = unsafe { BorrowedSocket::borrow_raw(event.handle().as_raw_handle() as RawSocket) };
        let _pipe = WakePipe::open().expect("a pipe"); // starts the sockets of this process
        assert!(!wait_for_socket(unknown, None, Some(Duration::from_millis(1))).expect("a wait"));
    }
}
