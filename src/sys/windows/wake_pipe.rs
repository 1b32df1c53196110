//! A socket that ends a wait for another socket, and the wait itself.
//!
//! # Safety
//! WSAPoll reads and writes the given number of `WSAPOLLFD` values, and the sockets in them are borrowed for the time
//! of the call.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::windows::io::{AsRawSocket, BorrowedSocket, RawSocket};
use std::time::Duration;

use windows_sys::Win32::Networking::WinSock::{POLLRDNORM, SOCKET, SOCKET_ERROR, WSAPOLLFD, WSAPoll};

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

/// The longest time of one wait. If several processes wait for one listener, Wine does not report each connection to
/// any of them. The caller then finds the connection after this time.
const LONGEST: Duration = Duration::from_millis(50);

/// Waits until the socket or the pipe is readable, or `timeout` or 50 ms has passed. Returns whether the pipe is
/// readable.
pub(crate) fn wait_for_socket(
    socket: BorrowedSocket<'_>,
    pipe: Option<&WakePipe>,
    timeout: Option<Duration>,
) -> io::Result<bool> {
    let entry = |socket: RawSocket| WSAPOLLFD { fd: socket as SOCKET, events: POLLRDNORM, revents: 0 };
    let mut entries = vec![entry(socket.as_raw_socket())];
    entries.extend(pipe.map(|pipe| entry(pipe.socket.as_raw_socket())));
    let millis = timeout.unwrap_or(LONGEST).min(LONGEST).as_millis() as i32;
    // SAFETY: see the top of this file.
    if unsafe { WSAPoll(entries.as_mut_ptr(), entries.len() as u32, millis) } == SOCKET_ERROR {
        return Err(io::Error::last_os_error());
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
