//! Finds sockets on which shutdown(2) was called.
//!
//! # Safety
//! poll(2) reads and writes one `pollfd`, and the descriptor in it is borrowed for the time of the call.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Returns whether shutdown(2) was called on this listening socket or UDP socket, in this process or in any other
/// process that has a copy of it.
pub(crate) fn is_shut_down(socket: BorrowedFd<'_>) -> bool {
    const HANGUP: libc::c_short = libc::POLLHUP | libc::POLLRDHUP;
    let mut one = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: see the top of this file.
    let count = unsafe { libc::poll(&raw mut one, 1, 0) };
    count == 1 && one.revents & HANGUP != 0
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use socket2::SockRef;

    use super::*;

    #[test]
    fn a_shutdown_is_found_for_each_kind_of_socket() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let name = format!("taskfork-shutdown-{}", std::process::id());
        let address = <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
        let unix = UnixListener::bind_addr(&address.expect("a name")).expect("a socket");
        let _waiting = TcpStream::connect(tcp.local_addr().expect("an address")).expect("a connection");
        for socket in [tcp.as_fd(), udp.as_fd(), unix.as_fd()] {
            assert!(!is_shut_down(socket));
            // For a UDP socket, this reports ENOTCONN and takes effect nevertheless.
            let _ = SockRef::from(&socket).shutdown(Shutdown::Both);
            assert!(is_shut_down(socket));
        }
    }
}
