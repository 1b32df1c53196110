//! The settings of a listener, and how its socket is opened.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
#[cfg(unix)]
use std::os::unix::net::UnixListener;
#[cfg(unix)]
use std::path::PathBuf;

use socket2::{Domain, Protocol, Socket, Type};

#[cfg(unix)]
use super::path::{self, Owner};
use super::{Listener, borrow, steering};
use crate::error::{Error, Result};
use crate::sys::{self, CallError};

/// The address and the settings of a listener, for [`Prefork::listen`](crate::Prefork::listen).
///
/// It can be made from:
///
/// - `"127.0.0.1:8000"`, `"[::]:80"` or a [`SocketAddr`]: TCP.
/// - `"localhost:8000"`: TCP. If the name has several addresses, the first one that can be bound is used.
/// - `"udp:0.0.0.0:53"`: UDP.
/// - `"unix:/run/service.sock"`: a Unix stream socket. Unix only.
/// - A `TcpListener`, `UdpSocket` or `UnixListener` that is bound already.
///
/// # Examples
///
/// ```no_run
/// use taskfork::{ListenConfig, Prefork};
///
/// let public = ListenConfig::from("[::]:80").backlog(4096).only_v6(true);
/// let service = Prefork::new().listen("127.0.0.1:0").listen(public);
/// # #[cfg(unix)]
/// let service = service.listen(ListenConfig::from("unix:/run/service.sock").mode(0o660).group("www-data"));
/// ```
#[derive(Debug)]
#[must_use = "nothing is opened before it is passed to Prefork::listen()"]
pub struct ListenConfig {
    source: Source,
    name: Option<String>,
    options: SocketOptions,
    /// Each worker has a socket of its own.
    per_worker: bool,
    /// The CPU that handles a packet chooses the worker.
    by_cpu: bool,
    #[cfg(unix)]
    mode: u32,
    #[cfg(unix)]
    owner: Owner,
}

#[derive(Clone, Copy, Debug)]
struct SocketOptions {
    backlog: i32,
    only_v6: bool,
}

#[derive(Debug)]
enum Source {
    Name(String),
    Address(SocketAddr),
    #[cfg(unix)]
    Path(PathBuf),
    Bound(Listener),
}

/// A socket that was just opened.
pub(super) struct Opened {
    pub listener: Listener,
    /// The file of a Unix socket, to be removed at the end.
    pub file: Option<SocketFile>,
    /// The group that a per-worker listener belongs to.
    pub group: Option<SocketGroup>,
}

/// The sockets of a per-worker listener, which have one address: a `SO_REUSEPORT` group (socket(7)).
#[derive(Debug)]
pub(super) struct SocketGroup {
    address: SocketAddr,
    kind: Type,
    options: SocketOptions,
    pub by_cpu: bool,
}

#[cfg(unix)]
pub(crate) use super::path::SocketFile;

/// There are no socket files on this system.
#[cfg(not(unix))]
#[derive(Debug)]
pub(crate) enum SocketFile {}

impl ListenConfig {
    fn new(source: Source) -> ListenConfig {
        ListenConfig {
            source,
            name: None,
            options: SocketOptions { backlog: 1024, only_v6: false },
            per_worker: false,
            by_cpu: false,
            #[cfg(unix)]
            mode: 0o666,
            #[cfg(unix)]
            owner: Owner::default(),
        }
    }

    /// Creates the settings for a Unix stream socket at this path. Unix only.
    ///
    /// A socket file at this path is replaced if no process listens on it. If a process does, or if the path is any
    /// other file, the start fails. The parent, and no other process, removes the file at the end. If the parent is
    /// killed, the file stays and is replaced at the next start.
    #[cfg(unix)]
    pub fn unix(path: impl Into<PathBuf>) -> ListenConfig {
        ListenConfig::new(Source::Path(path.into()))
    }

    /// Sets how many connections may wait to be accepted. The system may have a lower limit (`net.core.somaxconn` on
    /// Linux). UDP sockets and sockets that are bound already ignore it. Default: 1024.
    pub fn backlog(mut self, connections: u32) -> ListenConfig {
        self.options.backlog = connections.try_into().unwrap_or(i32::MAX);
        self
    }

    /// Sets whether an IPv6 socket accepts IPv6 only (`IPV6_V6ONLY`). Default: no, so that `[::]:80` accepts IPv4 as
    /// well if the system supports this.
    pub fn only_v6(mut self, yes: bool) -> ListenConfig {
        self.options.only_v6 = yes;
        self
    }

    /// Opens a socket for each worker, instead of one that all workers share. The sockets have the same address, and
    /// each has a queue of its own. For TCP and UDP addresses. Default: one shared socket. Linux only: other systems
    /// refuse it.
    ///
    /// The kernel chooses a socket by a hash of the sender's address and port (`SO_REUSEPORT`, socket(7)). So all
    /// workers get equal shares, even if some are faster than others, and the datagrams of one UDP sender go to one
    /// worker. (Multicast and broadcast datagrams go to all workers.)
    ///
    /// The parent keeps the sockets open. If a worker exits, its queued connections wait for the next process with its
    /// id, and none is reset. (If each worker binds its own socket, as is usual, its queue is lost when it exits.)
    ///
    /// # Limits
    ///
    /// - Only one worker accepts from a socket, so clients may wait for a busy worker while others are idle.
    /// - The start fails if the address is in use. After the start, another program of the same user could bind the
    ///   address, but must not: it would get a share, and the kernel's numbers for the sockets might no longer match
    ///   the worker ids.
    /// - A worker must not call shutdown(2) on its socket, because the parent and the next worker with its id use it as
    ///   well.
    /// - The parent holds one descriptor per worker for every listener of the service, also for the shared ones.
    ///
    /// # Changing the number of workers
    ///
    /// A worker that is removed by SIGTTOU gets no new connections or datagrams, but still serves its queue. The parent
    /// checks the queue every second. It asks the worker to stop when the queue is empty, or after the
    /// [`graceful_timeout`](crate::Prefork::graceful_timeout). The worker then has the `graceful_timeout` to stop. If
    /// the worker fails while it serves its queue, or has failed just before, a new process serves the queue and stops
    /// in the same way. A client whose TCP handshake takes longer than a second, for example because a segment was
    /// lost, waits for the next worker with this id.
    ///
    /// A worker that is added by SIGTTIN gets connections and datagrams once it is ready. A worker that exits with
    /// status 0 and is not restarted gets no more of them, and no process serves its queue. Whenever the number of
    /// workers changes, most UDP senders move to another worker.
    pub fn per_worker(mut self) -> ListenConfig {
        self.per_worker = true;
        self
    }

    /// Opens [a socket for each worker](ListenConfig::per_worker), and chooses the socket by the CPU that handles the
    /// incoming packet. Worker `i` gets the packets of the `i`-th CPU that the parent may use. This is the CPU to which
    /// [`pin_cpus`](crate::Prefork::pin_cpus) pins the worker. If there are more workers than CPUs, the workers of one
    /// CPU share its packets. If a CPU has no worker, all workers share its packets. Default: no. Linux only: other
    /// systems refuse it.
    ///
    /// Use it with network cards that spread flows over the CPUs (receive side scaling). If the card interrupts one CPU
    /// only, the workers of this CPU get everything.
    pub fn steer_by_cpu(mut self) -> ListenConfig {
        self.per_worker = true;
        self.by_cpu = true;
        self
    }

    /// Sets the mode of a Unix socket's file, as for chmod(1): it decides which users may connect. Default: `0o666`,
    /// all users. Unix only.
    #[cfg(unix)]
    pub fn mode(mut self, mode: u32) -> ListenConfig {
        self.mode = mode;
        self
    }

    /// Sets the owner of a Unix socket's file: the name of a user, or a number if no user has that name. Another owner
    /// than the parent's user takes privileges (chown(2)). Default: the parent's user. Unix only.
    #[cfg(unix)]
    pub fn user(mut self, name: impl Into<String>) -> ListenConfig {
        self.owner.user = Some(name.into());
        self
    }

    /// Sets the group of a Unix socket's file: the name of a group, or a number if no group has that name. A group that
    /// the parent is not in takes privileges (chown(2)). Default: the group that the file gets when it is made. Unix
    /// only.
    #[cfg(unix)]
    pub fn group(mut self, name: impl Into<String>) -> ListenConfig {
        self.owner.group = Some(name.into());
        self
    }

    /// Names the listener, so that [`Worker::tcp`](crate::Worker::tcp) and its siblings find it by this name, and
    /// [`Prefork::socket_activation`](crate::Prefork::socket_activation) gives it the activated socket with this name.
    /// If two listeners have the same name, the first one is found. Default: none.
    pub fn name(mut self, name: impl Into<String>) -> ListenConfig {
        self.name = Some(name.into());
        self
    }

    pub(crate) fn own_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    #[cfg(unix)]
    pub(super) fn has_name(&self, name: Option<&str>) -> bool {
        self.name.as_deref() == name
    }

    /// Uses this socket instead of opening one.
    #[cfg(unix)]
    pub(super) fn replace(&mut self, listener: Listener) {
        self.source = Source::Bound(listener);
    }

    pub(super) fn open(self) -> Result<Opened> {
        let address = self.to_string();
        if self.per_worker {
            self.check_per_worker(&address)?;
        }
        self.try_open().map_err(|error| Error::listen(address, error))
    }

    fn check_per_worker(&self, address: &str) -> Result<()> {
        if !cfg!(target_os = "linux") {
            return Err(Error::unfit("per_worker", "a socket for each worker is supported on Linux only"));
        }
        match &self.source {
            Source::Name(_) | Source::Address(_) => Ok(()),
            _ => Err(Error::unfit(
                "per_worker",
                format!("{address} cannot have several sockets: only a TCP or UDP address can"),
            )),
        }
    }

    fn try_open(self) -> io::Result<Opened> {
        let ListenConfig { options, per_worker, by_cpu, .. } = self;
        let bind = |address, kind| options.bind(address, kind, per_worker.then_some(GroupPosition::First));
        let listener = match self.source {
            #[cfg(unix)]
            Source::Path(path) => {
                let (listener, file) = path::listen(&path, self.mode, &self.owner, options.backlog)?;
                return Ok(Opened { listener: Listener::Unix(listener), file: Some(file), group: None });
            }
            Source::Name(name) => match name.strip_prefix("udp:") {
                Some(name) => bind_first(name, |address| bind(address, Type::DGRAM))?,
                None => bind_first(&name, |address| bind(address, Type::STREAM))?,
            },
            Source::Address(address) => bind(address, Type::STREAM)?,
            Source::Bound(listener) => listener,
        };
        let kind = if listener.as_udp().is_some() { Type::DGRAM } else { Type::STREAM };
        let group = match per_worker {
            true => Some(SocketGroup { address: listener.address()?, kind, options, by_cpu }),
            false => None,
        };
        Ok(Opened { listener, file: None, group })
    }
}

impl SocketGroup {
    /// Opens one more socket at the address of the first one.
    pub fn open_next(&self) -> io::Result<Listener> {
        self.options.bind(self.address, self.kind, Some(GroupPosition::Next))
    }

    /// Returns whether the first socket gets everything until another program is attached.
    pub fn opens_with_program(&self) -> bool {
        self.kind == Type::DGRAM
    }
}

/// The position of a socket in its group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GroupPosition {
    /// The first socket. It binds the address only if no other socket has it, and lets others join after that.
    First,
    Next,
}

impl GroupPosition {
    /// Sets the options that must be set before bind(2).
    fn before_bind(self, socket: &Socket, kind: Type) -> std::result::Result<(), CallError> {
        let share = |yes| sys::share_port(borrow(socket), yes);
        match self {
            GroupPosition::Next => share(true),
            // Only a socket in a group can be steered. A UDP socket that binds without SO_REUSEPORT has no group. So a
            // group is made here: by attaching a program while SO_REUSEPORT is set. For TCP, listen(2) makes the group,
            // and SO_REUSEPORT is set by then.
            GroupPosition::First if kind == Type::DGRAM => {
                share(true)?;
                sys::steer(borrow(socket), &steering::first_socket())?;
                share(false)
            }
            GroupPosition::First => Ok(()),
        }
    }
}

impl SocketOptions {
    fn bind(self, address: SocketAddr, kind: Type, position: Option<GroupPosition>) -> io::Result<Listener> {
        let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(self.only_v6)?;
        }
        // Lets the next start bind the port at once. Windows allows this without the option. With it, Windows would let
        // any program bind the port.
        #[cfg(unix)]
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        position.map_or(Ok(()), |position| position.before_bind(&socket, kind)).map_err(|error| error.source)?;
        socket.bind(&address.into())?;
        position.map_or(Ok(()), |_| sys::share_port(borrow(&socket), true)).map_err(|error| error.source)?;
        if kind == Type::DGRAM {
            return Ok(Listener::Udp(socket.into()));
        }
        socket.listen(self.backlog)?;
        Ok(Listener::Tcp(socket.into()))
    }
}

/// Binds the first address of `name` that can be bound. Returns the last error if none can.
fn bind_first(name: &str, bind: impl Fn(SocketAddr) -> io::Result<Listener>) -> io::Result<Listener> {
    let mut last_error = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
    for address in name.to_socket_addrs()? {
        match bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

impl From<&str> for ListenConfig {
    fn from(address: &str) -> ListenConfig {
        ListenConfig::from(address.to_owned())
    }
}

impl From<String> for ListenConfig {
    fn from(address: String) -> ListenConfig {
        #[cfg(unix)]
        if let Some(path) = address.strip_prefix("unix:") {
            return ListenConfig::unix(path);
        }
        ListenConfig::new(Source::Name(address))
    }
}

impl From<SocketAddr> for ListenConfig {
    fn from(address: SocketAddr) -> ListenConfig {
        ListenConfig::new(Source::Address(address))
    }
}

impl From<TcpListener> for ListenConfig {
    fn from(listener: TcpListener) -> ListenConfig {
        ListenConfig::new(Source::Bound(Listener::Tcp(listener)))
    }
}

impl From<UdpSocket> for ListenConfig {
    fn from(socket: UdpSocket) -> ListenConfig {
        ListenConfig::new(Source::Bound(Listener::Udp(socket)))
    }
}

#[cfg(unix)]
impl From<UnixListener> for ListenConfig {
    fn from(listener: UnixListener) -> ListenConfig {
        ListenConfig::new(Source::Bound(Listener::Unix(listener)))
    }
}

/// Writes the address.
impl fmt::Display for ListenConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Name(name) => f.write_str(name),
            Source::Address(address) => write!(f, "{address}"),
            #[cfg(unix)]
            Source::Path(path) => write!(f, "unix:{}", path.display()),
            Source::Bound(listener) => write!(f, "{listener}"),
        }
    }
}
