//! The number of connections that wait in the queue of a listening socket.
//!
//! # Safety
//! getsockopt(2) writes at most as many bytes as the given length.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::socket_diag::unix_diag;

/// Returns the number of connections that clients have opened and no process has accepted. Returns `None` for a socket
/// that does not listen, for a UDP socket, and if the kernel cannot answer this.
pub(crate) fn queue_length(socket: BorrowedFd<'_>) -> Option<u32> {
    const UDIAG_SHOW_RQLEN: u32 = 16;
    const UNIX_DIAG_RQLEN: u16 = 4;
    match get::<libc::c_int>(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)? {
        // The kernel counts the datagrams that wait at a datagram socket, and the bytes that wait at a connection.
        libc::AF_UNIX if get::<libc::c_int>(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0 => {
            unix_diag(socket, UDIAG_SHOW_RQLEN, UNIX_DIAG_RQLEN)
        }
        libc::AF_INET | libc::AF_INET6 => tcp_queue_length(socket),
        _ => None,
    }
}

/// Reads the length from `TCP_INFO` (tcp(7)). For a socket that listens, the kernel puts the length of the queue into
/// the field `tcpi_unacked`.
fn tcp_queue_length(socket: BorrowedFd<'_>) -> Option<u32> {
    const TCP_LISTEN: u8 = 10;
    /// The first fields of `struct tcp_info`.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Info {
        state: u8,
        others: [u8; 7],
        rto: u32,
        ato: u32,
        snd_mss: u32,
        rcv_mss: u32,
        unacked: u32,
    }
    // For a UDP socket, getsockopt(2) fails, because the level is wrong.
    let info = get::<Info>(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    (info.state == TCP_LISTEN).then_some(info.unacked)
}

/// Reads a socket option. `T` must consist of integers.
fn get<T: Copy>(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> Option<T> {
    // SAFETY: all-zero bytes are valid integers.
    let mut value: T = unsafe { mem::zeroed() };
    let mut len = mem::size_of::<T>() as libc::socklen_t;
    let out = (&raw mut value).cast();
    // SAFETY: see the top of this file. `len` is the size of `value`.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, out, &raw mut len) };
    (result == 0 && len as usize == mem::size_of::<T>()).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn connections_count_until_they_are_accepted() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(tcp) = TcpListener::bind(host) else { continue };
            let address = tcp.local_addr().expect("an address");
            assert_eq!(queue_length(tcp.as_fd()), Some(0));
            let clients = [(); 3].map(|()| TcpStream::connect(address).expect("a connection"));
            assert_eq!(queue_length(tcp.as_fd()), Some(3));
            let _server = tcp.accept().expect("a connection");
            assert_eq!(queue_length(tcp.as_fd()), Some(2));
            assert_eq!(queue_length(clients[0].as_fd()), None, "a connection does not listen");
        }
    }

    #[test]
    fn connections_to_a_unix_socket_count_as_well() {
        let name = format!("taskfork-queue-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let unix = UnixListener::bind_addr(&address).expect("a socket");
        // The kernel may lack the module that answers this.
        let Some(before) = queue_length(unix.as_fd()) else { return };
        assert_eq!(before, 0);
        let clients = [(); 3].map(|()| UnixStream::connect_addr(&address).expect("a connection"));
        assert_eq!(queue_length(unix.as_fd()), Some(3));
        let _server = unix.accept().expect("a connection");
        assert_eq!(queue_length(unix.as_fd()), Some(2));
        assert_eq!(queue_length(clients[0].as_fd()), None, "a connection does not listen");
    }

    #[test]
    fn a_udp_socket_has_no_length() {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        udp.send_to(b"datagram", udp.local_addr().expect("an address")).expect("sent");
        assert_eq!(queue_length(udp.as_fd()), None);
    }
}
