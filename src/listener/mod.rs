//! Sockets that are made before the workers, and that outlive them.

#[cfg(unix)]
mod activation;
mod config;
mod index;
#[cfg(unix)]
mod path;
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
pub(crate) use sockets::Sockets;

use crate::sys::{BorrowedSocket, OwnedSocket};

/// What workers accept connections from, or receive from: [`Worker::listeners`](crate::Worker::listeners).
///
/// `Display` gives the address: `127.0.0.1:8000`, `unix:/run/service.sock`, `udp:[::]:53`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// UDP.
    Udp(UdpSocket),
    /// A Unix stream socket. Unix only.
    #[cfg(unix)]
    Unix(UnixListener),
}

/// What a worker has of them; nothing, and no memory, where none were asked for.
pub(crate) type Listeners = Option<Arc<[Listener]>>;

/// The names of the listeners, in their order. `None` if there are no listeners.
pub(crate) type ListenerNames = Option<Arc<[Option<String>]>>;

impl Listener {
    /// The TCP listener that it is.
    pub fn as_tcp(&self) -> Option<&TcpListener> {
        match self {
            Listener::Tcp(listener) => Some(listener),
            _ => None,
        }
    }

    /// The UDP socket that it is.
    pub fn as_udp(&self) -> Option<&UdpSocket> {
        match self {
            Listener::Udp(socket) => Some(socket),
            _ => None,
        }
    }

    /// The Unix listener that it is. Unix only.
    #[cfg(unix)]
    pub fn as_unix(&self) -> Option<&UnixListener> {
        match self {
            Listener::Unix(listener) => Some(listener),
            _ => None,
        }
    }

    /// Of the internet, if it has one there.
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

    /// To be passed to a program.
    pub(crate) fn as_passed(&self) -> BorrowedSocket<'_> {
        match self {
            Listener::Tcp(listener) => borrow(listener),
            Listener::Udp(socket) => borrow(socket),
            #[cfg(unix)]
            Listener::Unix(listener) => borrow(listener),
        }
    }

    /// What a program is told of what it is passed. (Wine does not say it of a socket that was inherited.)
    pub(crate) fn kind(&self) -> char {
        match self {
            Listener::Tcp(_) => 't',
            Listener::Udp(_) => 'u',
            #[cfg(unix)]
            Listener::Unix(_) => 'x',
        }
    }

    /// In a program that it was passed to, as what that was told.
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
            Listener::Unix(listener) => {
                let address = listener.local_addr().ok();
                match address.as_ref().and_then(|address| address.as_pathname()) {
                    Some(path) => write!(f, "unix:{}", path.display()),
                    None => f.write_str("unix:a socket without a path"),
                }
            }
        }
    }
}
