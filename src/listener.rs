//! Sockets that are made before the workers, and that all of them have.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::sys::{BorrowedSocket, OwnedSocket};

/// What is to be listened on, for [`Prefork::listen`](crate::Prefork::listen): made from an address, `"127.0.0.1:8000"` or a
/// [`SocketAddr`], or from a `TcpListener` that listens already.
#[derive(Debug)]
pub struct Listen(Kind);

#[derive(Debug)]
enum Kind {
    Named(String),
    Tcp(SocketAddr),
    Open(TcpListener),
}

/// What workers accept connections from: [`Worker::listeners`](crate::Worker::listeners).
#[derive(Debug)]
#[non_exhaustive]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
}

/// What a worker has of them; nothing, and no memory, where none were asked for.
pub(crate) type Listeners = Option<Arc<[Listener]>>;

impl Listen {
    pub(crate) fn open(self) -> Result<Listener> {
        let address = self.to_string();
        let opened = match self.0 {
            Kind::Named(name) => bind(&*name),
            Kind::Tcp(address) => bind(address),
            Kind::Open(listener) => Ok(listener),
        };
        opened.map(Listener::Tcp).map_err(|error| Error::listen(address, error))
    }
}

/// A name may have several addresses: the first that works.
fn bind(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
    TcpListener::bind(address)
}

impl From<&str> for Listen {
    fn from(address: &str) -> Listen {
        Listen(Kind::Named(address.to_owned()))
    }
}

impl From<String> for Listen {
    fn from(address: String) -> Listen {
        Listen(Kind::Named(address))
    }
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Listen {
        Listen(Kind::Tcp(address))
    }
}

impl From<TcpListener> for Listen {
    fn from(listener: TcpListener) -> Listen {
        Listen(Kind::Open(listener))
    }
}

/// The address.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Named(name) => f.write_str(name),
            Kind::Tcp(address) => write!(f, "{address}"),
            Kind::Open(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(_) => f.write_str("a listener"),
            },
        }
    }
}

impl Listener {
    /// The TCP listener that it is.
    pub fn as_tcp(&self) -> Option<&TcpListener> {
        match self {
            Listener::Tcp(listener) => Some(listener),
        }
    }

    /// To be passed to a program.
    pub(crate) fn as_passed(&self) -> BorrowedSocket<'_> {
        match self {
            #[cfg(unix)]
            Listener::Tcp(listener) => std::os::fd::AsFd::as_fd(listener),
            #[cfg(windows)]
            Listener::Tcp(listener) => std::os::windows::io::AsSocket::as_socket(listener),
        }
    }

    /// In a program that it was passed to.
    pub(crate) fn given(socket: OwnedSocket) -> Listener {
        Listener::Tcp(socket.into())
    }
}
