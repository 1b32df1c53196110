//! The listeners: sockets that the parent opens before it starts workers. The parent keeps the sockets open, so they
//! outlive each worker.

#[cfg(unix)]
mod abstract_name;
#[cfg(unix)]
mod activation;
mod config;
mod group;
mod index;
#[cfg(unix)]
mod path;
mod retry;
mod sockets;
mod steering;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
#[cfg(unix)]
use std::os::unix::net::UnixListener;
use std::sync::Arc;

#[cfg(unix)]
pub(crate) use activation::take_over;
pub use config::ListenConfig;
pub use index::ListenerIndex;
pub(crate) use retry::Retry;
pub(crate) use sockets::{ShutDown, Sockets};

use crate::sys::{BorrowedSocket, OwnedSocket};

/// A socket on which workers accept connections or receive datagrams. [`Worker::listeners`](crate::Worker::listeners)
/// returns the listeners of a worker.
///
/// `Display` writes the address, for example `127.0.0.1:8000`, `unix:/run/service.sock`,
/// `unix:@service` or `udp:[::]:53`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Listener {
    /// A TCP listener.
    Tcp(TcpListener),
    /// A UDP socket.
    Udp(UdpSocket),
    /// A Unix stream listener. Unix only.
    #[cfg(unix)]
    Unix(UnixListener),
}

/// The listeners of a worker. `None` if the service has no listeners: unlike an empty list, `None` needs no allocation.
pub(crate) type Listeners = Option<Arc<[Listener]>>;

/// The name of each listener, in the order of the listeners. `None` if there are no listeners.
pub(crate) type ListenerNames = Option<Arc<[Option<String>]>>;

impl Listener {
    /// Returns the TCP listener, or `None` if this is another kind of socket.
    pub fn as_tcp(&self) -> Option<&TcpListener> {
        match self {
            Listener::Tcp(listener) => Some(listener),
            _ => None,
        }
    }

    /// Returns the UDP socket, or `None` if this is another kind of socket.
    pub fn as_udp(&self) -> Option<&UdpSocket> {
        match self {
            Listener::Udp(socket) => Some(socket),
            _ => None,
        }
    }

    /// Returns the Unix listener, or `None` if this is another kind of socket. Unix only.
    #[cfg(unix)]
    pub fn as_unix(&self) -> Option<&UnixListener> {
        match self {
            Listener::Unix(listener) => Some(listener),
            _ => None,
        }
    }

    /// Returns the IP address and port of this socket. Returns an error for a Unix listener.
    fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr(),
            Listener::Udp(socket) => socket.local_addr(),
            #[cfg(unix)]
            Listener::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn try_clone(&self) -> io::Result<Listener> {
        Ok(match self {
            Listener::Tcp(listener) => Listener::Tcp(listener.try_clone()?),
            Listener::Udp(socket) => Listener::Udp(socket.try_clone()?),
            #[cfg(unix)]
            Listener::Unix(listener) => Listener::Unix(listener.try_clone()?),
        })
    }

    /// Returns the descriptor (on Windows, the socket handle) that the parent passes to a spawned worker.
    pub(crate) fn as_passed(&self) -> BorrowedSocket<'_> {
        match self {
            Listener::Tcp(listener) => borrow(listener),
            Listener::Udp(socket) => borrow(socket),
            #[cfg(unix)]
            Listener::Unix(listener) => borrow(listener),
        }
    }

    /// Returns a letter for the kind of this socket. The parent passes the letter to a spawned worker together with the
    /// socket. The worker cannot query the kind from the system, because Wine does not report the kind of an inherited
    /// socket.
    pub(crate) fn kind(&self) -> char {
        match self {
            Listener::Tcp(_) => 't',
            Listener::Udp(_) => 'u',
            #[cfg(unix)]
            Listener::Unix(_) => 'x',
        }
    }

    /// Creates a listener from a socket that a spawned worker has inherited. `kind` is the [letter](Listener::kind) for
    /// the kind of the socket. Returns `None` if the letter is unknown.
    pub(crate) fn given(kind: char, socket: OwnedSocket) -> Option<Listener> {
        match kind {
            't' => Some(Listener::Tcp(socket.into())),
            'u' => Some(Listener::Udp(socket.into())),
            #[cfg(unix)]
            'x' => Some(Listener::Unix(socket.into())),
            _ => None,
        }
    }
}

#[cfg(unix)]
fn borrow(socket: &impl std::os::fd::AsFd) -> BorrowedSocket<'_> {
    socket.as_fd()
}

#[cfg(windows)]
fn borrow(socket: &impl std::os::windows::io::AsSocket) -> BorrowedSocket<'_> {
    socket.as_socket()
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listener::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(error) => write!(f, "an unknown address ({error})"),
            },
            Listener::Udp(socket) => match socket.local_addr() {
                Ok(address) => write!(f, "udp:{address}"),
                Err(error) => write!(f, "udp:an unknown address ({error})"),
            },
            #[cfg(unix)]
            Listener::Unix(listener) => match listener.local_addr() {
                Ok(address) => write_unix_address(&address, f),
                Err(error) => write!(f, "unix:an unknown address ({error})"),
            },
        }
    }
}

/// Writes `unix:` and a path, or `unix:@` and an abstract name.
#[cfg(unix)]
fn write_unix_address(address: &std::os::unix::net::SocketAddr, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    #[cfg(target_os = "linux")]
    if let Some(name) = std::os::linux::net::SocketAddrExt::as_abstract_name(address) {
        return write!(f, "unix:@{}", String::from_utf8_lossy(name));
    }
    match address.as_pathname() {
        Some(path) => write!(f, "unix:{}", path.display()),
        None => f.write_str("unix:a socket without a path"),
    }
}
