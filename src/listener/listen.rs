//! What is to be listened on, and how it comes about.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
#[cfg(unix)]
use std::os::unix::net::UnixListener;
#[cfg(unix)]
use std::path::PathBuf;

use socket2::{Domain, Protocol, Socket, Type};

use super::Listener;
#[cfg(unix)]
use super::path::{self, Owner};
use crate::error::{Error, Result};

/// What is to be listened on, for [`Prefork::listen`](crate::Prefork::listen).
///
/// It is made from an address: `"127.0.0.1:8000"`, `"[::]:80"`, `"localhost:8000"` (of several addresses, the first that
/// works), `"udp:0.0.0.0:53"`, `"unix:/run/service.sock"` (Unix only), or a [`SocketAddr`] for TCP. Or from a `TcpListener`,
/// a `UdpSocket` or a `UnixListener` that exists already.
///
/// ```no_run
/// use taskfork::{Listen, Prefork};
///
/// let service = Prefork::new().listen("127.0.0.1:0").listen(Listen::from("[::]:80").backlog(4096).only_v6(true));
/// # #[cfg(unix)]
/// let service = service.listen(Listen::from("unix:/run/service.sock").mode(0o660).group("www-data"));
/// ```
#[derive(Debug)]
#[must_use = "it is for Prefork::listen()"]
pub struct Listen {
    on: On,
    #[cfg(unix)]
    name: Option<String>,
    backlog: i32,
    only_v6: bool,
    #[cfg(unix)]
    mode: u32,
    #[cfg(unix)]
    owner: Owner,
}

#[derive(Debug)]
enum On {
    Name(String),
    Address(SocketAddr),
    #[cfg(unix)]
    Path(PathBuf),
    Made(Listener),
}

/// What was opened, and what has to be removed from the disk at the end.
pub(crate) struct Opened {
    pub listener: Listener,
    pub entry: Option<Entry>,
}

#[cfg(unix)]
pub(crate) use super::path::Entry;

/// There is nothing like it.
#[cfg(not(unix))]
#[derive(Debug)]
pub(crate) enum Entry {}

/// If one cannot be had, nothing is left of the others.
pub(crate) fn open_all(listens: Vec<Listen>) -> Result<Vec<Opened>> {
    listens.into_iter().map(Listen::open).collect()
}

impl Listen {
    fn new(on: On) -> Listen {
        Listen {
            on,
            #[cfg(unix)]
            name: None,
            backlog: 1024,
            only_v6: false,
            #[cfg(unix)]
            mode: 0o666,
            #[cfg(unix)]
            owner: Owner::default(),
        }
    }

    /// A Unix stream socket at this path. Unix only.
    ///
    /// If there is a socket already, it is replaced if nobody answers on it, and an error otherwise, as anything else there is.
    /// At the end the parent removes it, and nobody else does. (If the parent is killed it stays, to be replaced at the next
    /// start.)
    #[cfg(unix)]
    pub fn unix(path: impl Into<PathBuf>) -> Listen {
        Listen::new(On::Path(path.into()))
    }

    /// How many connections may wait to be accepted; the system may have a lower limit (`net.core.somaxconn`, on Linux).
    /// Default: 1024. None of UDP's.
    pub fn backlog(mut self, connections: u32) -> Listen {
        self.backlog = connections.try_into().unwrap_or(i32::MAX);
        self
    }

    /// Whether a socket for IPv6 is for that alone (`IPV6_V6ONLY`). Default: no, so that `[::]:80` is for IPv4 as well, where
    /// the system can do that.
    pub fn only_v6(mut self, yes: bool) -> Listen {
        self.only_v6 = yes;
        self
    }

    /// Who may connect to a Unix socket, as in chmod(1). Default: `0o666`, all. Unix only.
    #[cfg(unix)]
    pub fn mode(mut self, mode: u32) -> Listen {
        self.mode = mode;
        self
    }

    /// Whose a Unix socket is, by the name of the user, or its number where nobody has that name; to give it away takes privileges. Default: the program's own. Unix only.
    #[cfg(unix)]
    pub fn user(mut self, name: impl Into<String>) -> Listen {
        self.owner.user = Some(name.into());
        self
    }

    /// The same for the group.
    #[cfg(unix)]
    pub fn group(mut self, name: impl Into<String>) -> Listen {
        self.owner.group = Some(name.into());
        self
    }

    /// The name of the socket that takes its place, if there is one: see
    /// [`Prefork::socket_activation`](crate::Prefork::socket_activation). Unix only.
    #[cfg(unix)]
    pub fn name(mut self, name: impl Into<String>) -> Listen {
        self.name = Some(name.into());
        self
    }

    #[cfg(unix)]
    pub(super) fn has_name(&self, name: Option<&str>) -> bool {
        self.name.as_deref() == name
    }

    /// By one that is there already.
    #[cfg(unix)]
    pub(super) fn replace(&mut self, listener: Listener) {
        self.on = On::Made(listener);
    }

    fn open(self) -> Result<Opened> {
        let address = self.to_string();
        self.try_open().map_err(|error| Error::listen(address, error))
    }

    fn try_open(self) -> io::Result<Opened> {
        let listener = match &self.on {
            #[cfg(unix)]
            On::Path(path) => {
                let (listener, entry) = path::listen(path, self.mode, &self.owner, self.backlog)?;
                return Ok(Opened { listener: Listener::Unix(listener), entry: Some(entry) });
            }
            On::Name(name) => match name.strip_prefix("udp:") {
                Some(name) => first_that_works(name, |address| self.bind(address, Type::DGRAM))?,
                None => first_that_works(name, |address| self.bind(address, Type::STREAM))?,
            },
            On::Address(address) => self.bind(*address, Type::STREAM)?,
            On::Made(_) => match self.on {
                On::Made(listener) => listener,
                _ => return Err(io::ErrorKind::Unsupported.into()),
            },
        };
        Ok(Opened { listener, entry: None })
    }

    fn bind(&self, address: SocketAddr, kind: Type) -> io::Result<Listener> {
        let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(self.only_v6)?;
        }
        if kind == Type::DGRAM {
            socket.bind(&address.into())?;
            return Ok(Listener::Udp(socket.into()));
        }
        // So that the port is free again at once after an end. On Windows it is so, and this would let anybody have it.
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(self.backlog)?;
        Ok(Listener::Tcp(socket.into()))
    }
}

fn first_that_works(name: &str, bind: impl Fn(SocketAddr) -> io::Result<Listener>) -> io::Result<Listener> {
    let mut refused = io::Error::new(io::ErrorKind::InvalidInput, "it has no address");
    for address in name.to_socket_addrs()? {
        match bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

impl From<&str> for Listen {
    fn from(address: &str) -> Listen {
        Listen::from(address.to_owned())
    }
}

impl From<String> for Listen {
    fn from(address: String) -> Listen {
        #[cfg(unix)]
        if let Some(path) = address.strip_prefix("unix:") {
            return Listen::unix(path);
        }
        Listen::new(On::Name(address))
    }
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Listen {
        Listen::new(On::Address(address))
    }
}

impl From<TcpListener> for Listen {
    fn from(listener: TcpListener) -> Listen {
        Listen::new(On::Made(Listener::Tcp(listener)))
    }
}

impl From<UdpSocket> for Listen {
    fn from(socket: UdpSocket) -> Listen {
        Listen::new(On::Made(Listener::Udp(socket)))
    }
}

#[cfg(unix)]
impl From<UnixListener> for Listen {
    fn from(listener: UnixListener) -> Listen {
        Listen::new(On::Made(Listener::Unix(listener)))
    }
}

/// The address.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.on {
            On::Name(name) => f.write_str(name),
            On::Address(address) => write!(f, "{address}"),
            #[cfg(unix)]
            On::Path(path) => write!(f, "unix:{}", path.display()),
            On::Made(listener) => write!(f, "{listener}"),
        }
    }
}
