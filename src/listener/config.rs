//! The settings of a listener.

use std::fmt;
use std::net::{SocketAddr, TcpListener, UdpSocket};
#[cfg(unix)]
use std::os::unix::net::UnixListener;
#[cfg(unix)]
use std::path::PathBuf;

use super::group::SocketOptions;
#[cfg(unix)]
use super::path::Owner;
use super::spec::SocketKind;
use super::{BoundSocket, Listener};

/// The address and the settings of a listener, for [`Prefork::listen`](crate::Prefork::listen).
///
/// A `ListenConfig` can be created with `ListenConfig::from` from one of these values:
///
/// - `"127.0.0.1:8000"`, `"[::]:80"` or a [`SocketAddr`]: a TCP listener at this address.
/// - `"localhost:8000"`: a TCP listener. If the name has several addresses, the first address that can be bound is
///   used.
/// - `"udp:0.0.0.0:53"`: a UDP socket at this address.
/// - `"unix:/run/service.sock"`: a Unix stream socket at this path. Unix only.
/// - `"unix:@service"`: a Unix stream socket with this abstract name, which has no file (unix(7)). Every process in the
///   same network namespace can connect. Linux only.
/// - A [`Listener`] of [`bind`](crate::bind), a `TcpListener`, `UdpSocket` or `UnixListener`, which is bound already:
///   the service uses this socket.
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
    pub(super) source: Source,
    name: Option<String>,
    /// The address as the program has written it, if a socket of the service manager has replaced it.
    replaced: Option<String>,
    pub(super) options: SocketOptions,
    /// Whether each worker has its own socket. If not, all workers share one socket.
    pub(super) per_worker: bool,
    /// Whether the kernel chooses the worker by the CPU that handles the incoming packet.
    pub(super) by_cpu: bool,
    /// `None`: every user may connect.
    #[cfg(unix)]
    pub(super) mode: Option<u32>,
    #[cfg(unix)]
    pub(super) owner: Owner,
}

#[derive(Debug)]
pub(super) enum Source {
    Name(String),
    Address(SocketAddr),
    #[cfg(unix)]
    Path(PathBuf),
    /// An abstract name, without the `@` before it.
    #[cfg(unix)]
    Abstract(String),
    /// A socket that is bound already.
    Bound(Listener),
}

impl ListenConfig {
    fn new(source: Source) -> ListenConfig {
        ListenConfig {
            source,
            name: None,
            replaced: None,
            options: SocketOptions { backlog: 1024, only_v6: false },
            per_worker: false,
            by_cpu: false,
            #[cfg(unix)]
            mode: None,
            #[cfg(unix)]
            owner: Owner::default(),
        }
    }

    /// Creates the settings for a Unix stream socket at this path. Unix only.
    ///
    /// In the text form, `"unix:@name"` is an abstract name and not a path.
    ///
    /// # Files
    ///
    /// The parent sets the owner and the mode of the file before another user can connect. It removes the file when it
    /// stops the service, as soon as every worker has been asked to stop. From then on, no new client can connect, and
    /// another service can start at this path. The parent does not remove the file of another service. A worker never
    /// removes the file.
    ///
    /// The path may already have a file when the service starts:
    ///
    /// - If the file is not a socket, the start fails.
    /// - If no process has the socket open, the file is replaced. A killed parent leaves such a file.
    /// - If a process listens on the socket, the start tries again for 3 s, and then fails. Exception, on Linux: if the
    ///   process that called listen(2) has ended, and no other process accepts a connection in these 3 s, the file is
    ///   replaced. So a new service can start while the workers of a killed parent drain. If the queue of the socket is
    ///   full, the socket counts as used.
    ///
    /// While the parent opens or removes the socket, a lock file is in the same directory. Its name is `.NAME.taskfork`
    /// for a socket with the name `NAME`. So of two services that start at the same time, only one gets the path. If
    /// the parent is killed at this moment, the lock file stays, and the next start removes it. If the lock file
    /// belongs to another user, remove it by hand.
    ///
    /// # Directories of other users
    ///
    /// The user who owns the directory can replace the file at any time. On Linux with a mounted `/proc`, the parent
    /// changes the owner and the mode through a descriptor of the file, after it has checked that the file is its own
    /// socket. So no other file can get them. Other systems have no such descriptors. There the start fails if another
    /// user than root can replace files in the directory.
    #[cfg(unix)]
    pub fn unix(path: impl Into<PathBuf>) -> ListenConfig {
        ListenConfig::new(Source::Path(path.into()))
    }

    /// Sets how many connections may wait to be accepted. The system may have a lower limit (`net.core.somaxconn` on
    /// Linux). Has no effect on UDP sockets, or on sockets that the program or systemd has bound already. Default:
    /// 1024.
    pub fn backlog(mut self, connections: u32) -> ListenConfig {
        self.options.backlog = connections.try_into().unwrap_or(i32::MAX);
        self
    }

    /// Sets whether an IPv6 socket accepts IPv6 only (`IPV6_V6ONLY`). Default: no. Then `[::]:80` accepts IPv4 as well,
    /// if the system supports this.
    pub fn only_v6(mut self, yes: bool) -> ListenConfig {
        self.options.only_v6 = yes;
        self
    }

    /// Opens a socket for each worker, instead of one socket that all workers share. The sockets have the same address,
    /// but each socket has its own queue of connections or datagrams. The listener must have a TCP or UDP address.
    /// Default: one shared socket. Linux only: on other systems the start fails.
    ///
    /// The kernel chooses a socket by a hash of the sender's address and port (`SO_REUSEPORT`, socket(7)). So all
    /// workers get equal shares, even if some workers are faster than others. All datagrams of one UDP sender go to the
    /// same worker. (Multicast and broadcast datagrams go to all workers.)
    ///
    /// The parent keeps the sockets open. If a worker exits, the connections in its queue are not reset: they wait for
    /// the next process with the same worker id. (In programs where each worker binds its own socket, as is usual with
    /// `SO_REUSEPORT`, these connections are lost.)
    ///
    /// # Limits
    ///
    /// - Only one worker accepts from each socket. So clients may wait for a busy worker while other workers are idle.
    /// - The start fails if the address is in use. After the start, the kernel allows other programs of the same user
    ///   to bind the address. Do not let a program do so: it would get a share of the connections. Also, the kernel's
    ///   numbers for the sockets might no longer match the worker ids.
    /// - A worker must not call shutdown(2) on its socket, because the parent and the next process with this worker id
    ///   use the same socket.
    /// - If any listener is per worker, the parent holds one descriptor per worker for every listener of the service.
    ///   This includes the listeners whose socket all workers share.
    ///
    /// # Changing the number of workers
    ///
    /// SIGTTOU removes a worker. The removed worker gets no new connections or datagrams, but still serves its queue.
    /// The parent checks the queue every second, and stops the worker when the queue is empty. If the queue is not
    /// empty after the [`graceful_timeout`](crate::Prefork::graceful_timeout), the parent stops the worker anyway. From
    /// the stop request on, the worker has another `graceful_timeout` to exit.
    ///
    /// If a removed worker fails while it serves its queue, a new process serves the queue and stops in the same way.
    /// This also happens if the worker has failed just before SIGTTOU. A TCP handshake that has begun before SIGTTOU
    /// may take longer than a second, for example because a segment was lost. If the worker has stopped by then, the
    /// client waits for the next worker with this id.
    ///
    /// SIGTTIN adds a worker. The added worker gets connections and datagrams once it is ready. If a worker exits with
    /// status 0 and is not restarted, new connections and datagrams go to the other workers. No process serves the
    /// queue of the exited worker. Whenever the number of workers changes, the datagrams of most UDP senders go to a
    /// different worker than before.
    pub fn per_worker(mut self) -> ListenConfig {
        self.per_worker = true;
        self
    }

    /// Opens [a socket for each worker](ListenConfig::per_worker), and makes the kernel choose the socket by the CPU
    /// that handles the incoming packet. Worker `i` gets the packets of the `i`-th CPU that the parent may use. With
    /// [`pin_cpus`](crate::Prefork::pin_cpus), the worker is pinned to the same CPU. If there are more workers than
    /// CPUs, several workers belong to one CPU and share its packets. If no worker belongs to a CPU, all workers share
    /// its packets. Default: no. Linux only: on other systems the start fails.
    ///
    /// Use this setting if the network card spreads incoming flows over the CPUs (receive side scaling). If the card
    /// interrupts only one CPU, the workers of this CPU get all packets.
    pub fn steer_by_cpu(mut self) -> ListenConfig {
        self.per_worker = true;
        self.by_cpu = true;
        self
    }

    /// Sets the mode of a Unix socket's file, as for chmod(1). The mode decides which users may connect. Default:
    /// `0o666`, which allows all users to connect. Unix only.
    #[cfg(unix)]
    pub fn mode(mut self, mode: u32) -> ListenConfig {
        self.mode = Some(mode);
        self
    }

    /// Sets the owner of a Unix socket's file: the name of a user, or a number if no user has that name. An owner other
    /// than the parent's user requires privileges (chown(2)). Default: the parent's user. Unix only.
    #[cfg(unix)]
    pub fn user(mut self, name: impl Into<String>) -> ListenConfig {
        self.owner.user = Some(name.into());
        self
    }

    /// Sets the group of a Unix socket's file: the name of a group, or a number if no group has that name. A group that
    /// the parent does not belong to requires privileges (chown(2)). Default: the group that the system gives to a new
    /// file. Unix only.
    #[cfg(unix)]
    pub fn group(mut self, name: impl Into<String>) -> ListenConfig {
        self.owner.group = Some(name.into());
        self
    }

    /// Sets the name of the listener. [`Worker::tcp`](crate::Worker::tcp), [`Worker::udp`](crate::Worker::udp) and
    /// `Worker::unix` find the listener by its name. If two listeners have the same name, these methods find the first
    /// one. With [`Prefork::socket_activation`](crate::Prefork::socket_activation), the listener gets the socket to
    /// which systemd has given this name. Default: no name.
    pub fn name(mut self, name: impl Into<String>) -> ListenConfig {
        self.name = Some(name.into());
        self
    }

    pub(super) fn backlog_len(&self) -> i32 {
        self.options.backlog
    }

    pub(crate) fn own_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns the address as the program has written it. `None` if the program has passed a socket.
    pub(super) fn written(&self) -> Option<String> {
        match self.source {
            Source::Bound(_) => self.replaced.clone(),
            _ => Some(self.to_string()),
        }
    }

    /// Returns the kind of the socket.
    pub(super) fn kind(&self) -> SocketKind {
        match &self.source {
            Source::Name(name) if name.starts_with("udp:") => SocketKind::Udp,
            Source::Name(_) | Source::Address(_) => SocketKind::Tcp,
            #[cfg(unix)]
            Source::Path(_) | Source::Abstract(_) => SocketKind::Unix,
            Source::Bound(listener) => listener.kind(),
        }
    }

    /// Returns whether the service manager has opened the socket.
    pub(super) fn is_activated(&self) -> bool {
        self.replaced.is_some()
    }

    #[cfg(unix)]
    pub(super) fn has_name(&self, name: Option<&str>) -> bool {
        self.name.as_deref() == name
    }

    /// Makes [`ListenConfig::open`] use this socket, instead of opening a new socket.
    #[cfg(unix)]
    pub(super) fn replace(&mut self, listener: Listener) {
        self.replaced = Some(self.to_string());
        self.source = Source::Bound(listener);
    }
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
            return match path.strip_prefix('@') {
                Some(name) => ListenConfig::new(Source::Abstract(name.to_owned())),
                None => ListenConfig::unix(path),
            };
        }
        ListenConfig::new(Source::Name(address))
    }
}

impl From<SocketAddr> for ListenConfig {
    fn from(address: SocketAddr) -> ListenConfig {
        ListenConfig::new(Source::Address(address))
    }
}

/// A socket of [`bind`](crate::bind), for example.
impl From<Listener> for ListenConfig {
    fn from(listener: Listener) -> ListenConfig {
        ListenConfig::new(Source::Bound(listener))
    }
}

impl From<TcpListener> for ListenConfig {
    fn from(listener: TcpListener) -> ListenConfig {
        ListenConfig::new(Source::Bound(BoundSocket::Tcp(listener).into()))
    }
}

impl From<UdpSocket> for ListenConfig {
    fn from(socket: UdpSocket) -> ListenConfig {
        ListenConfig::new(Source::Bound(BoundSocket::Udp(socket).into()))
    }
}

#[cfg(unix)]
impl From<UnixListener> for ListenConfig {
    fn from(listener: UnixListener) -> ListenConfig {
        ListenConfig::new(Source::Bound(BoundSocket::Unix(listener).into()))
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
            #[cfg(unix)]
            Source::Abstract(name) => write!(f, "unix:@{name}"),
            Source::Bound(listener) => write!(f, "{listener}"),
        }
    }
}
