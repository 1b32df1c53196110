//! What is to be listened on, and how it comes about.

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

/// What is to be listened on, for [`Prefork::listen`](crate::Prefork::listen).
///
/// It is made from an address: `"127.0.0.1:8000"`, `"[::]:80"`, `"localhost:8000"` (of several addresses, the first that
/// works), `"udp:0.0.0.0:53"`, `"unix:/run/service.sock"` (Unix only), or a [`SocketAddr`] for TCP. Or from a `TcpListener`,
/// a `UdpSocket` or a `UnixListener` that exists already.
///
/// ```no_run
/// use taskfork::{ListenConfig, Prefork};
///
/// let service = Prefork::new().listen("127.0.0.1:0").listen(ListenConfig::from("[::]:80").backlog(4096).only_v6(true));
/// # #[cfg(unix)]
/// let service = service.listen(ListenConfig::from("unix:/run/service.sock").mode(0o660).group("www-data"));
/// ```
#[derive(Debug)]
#[must_use = "it is for Prefork::listen()"]
pub struct ListenConfig {
    on: On,
    name: Option<String>,
    choices: Choices,
    /// There is one socket for each worker.
    per_worker: bool,
    by_cpu: bool,
    #[cfg(unix)]
    mode: u32,
    #[cfg(unix)]
    owner: Owner,
}

#[derive(Clone, Copy, Debug)]
struct Choices {
    backlog: i32,
    only_v6: bool,
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
pub(super) struct Opened {
    pub listener: Listener,
    pub file: Option<SocketFile>,
    /// How more of it are made, if it is only the first.
    pub series: Option<Series>,
}

/// Of sockets with one address.
#[derive(Debug)]
pub(super) struct Series {
    address: SocketAddr,
    kind: Type,
    choices: Choices,
    pub by_cpu: bool,
}

#[cfg(unix)]
pub(crate) use super::path::SocketFile;

/// There is nothing like it.
#[cfg(not(unix))]
#[derive(Debug)]
pub(crate) enum SocketFile {}

impl ListenConfig {
    fn new(on: On) -> ListenConfig {
        ListenConfig {
            on,
            name: None,
            choices: Choices { backlog: 1024, only_v6: false },
            per_worker: false,
            by_cpu: false,
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
    pub fn unix(path: impl Into<PathBuf>) -> ListenConfig {
        ListenConfig::new(On::Path(path.into()))
    }

    /// How many connections may wait to be accepted; the system may have a lower limit (`net.core.somaxconn`, on Linux).
    /// Default: 1024. None of UDP's.
    pub fn backlog(mut self, connections: u32) -> ListenConfig {
        self.choices.backlog = connections.try_into().unwrap_or(i32::MAX);
        self
    }

    /// Whether a socket for IPv6 is for that alone (`IPV6_V6ONLY`). Default: no, so that `[::]:80` is for IPv4 as well, where
    /// the system can do that.
    pub fn only_v6(mut self, yes: bool) -> ListenConfig {
        self.choices.only_v6 = yes;
        self
    }

    /// A socket for each worker instead of one for all, with the same address and a queue of its own: worker `i` gets the
    /// `i`-th, and the system divides what comes among them, by the sender's address and port (`SO_REUSEPORT`, socket(7)).
    /// So the workers have equal shares, whoever of them is faster, and UDP (but for multicast and broadcast, which all get)
    /// goes to one worker as long as the sender stays the same. For TCP and UDP. Linux only: elsewhere it is refused. Default:
    /// one for all.
    ///
    /// They are the parent's, which keeps them: what is in the queue of a worker that ends, waits there for the next one of
    /// its id, and nothing is reset. (Where each worker binds its own, as is usual, it takes its queue along.) Nobody but the
    /// worker accepts from it, though, so that clients wait for one that is busy while others are idle. An address that
    /// somebody has already is an error. Once the parent has it, other programs of the same user can join it, and must not:
    /// they get a share, and the order of the sockets, by which they are told apart, may not be that of the ids any more.
    /// (Nor must a worker call shutdown(2) on its own.) The parent has a descriptor for each worker then, for every listener of
    /// the service.
    ///
    /// When there is to be one worker fewer, nothing new goes to that worker's socket any more, but it is still served: the
    /// worker is asked to stop a second later, or, as long as something is left in its queue, when that is empty, or after
    /// the [`graceful_timeout`](crate::Prefork::graceful_timeout), and from then on has that time. If it fails meanwhile, or had
    /// just failed, another one comes, does the same, and goes. (A client whose handshake takes longer than that second, of
    /// which a segment was lost for example, waits for the next worker of the id.) One that is added gets nothing before it
    /// is ready. The socket of a worker that exits with status 0, for good, is left out in the same way, but nobody serves
    /// what is in its queue. Whenever the number changes, most senders of UDP are given another worker.
    pub fn per_worker(mut self) -> ListenConfig {
        self.per_worker = true;
        self
    }

    /// [A socket for each worker](ListenConfig::per_worker), and who gets a connection is said by the CPU on which it comes in: worker
    /// `i` gets that of the `i`-th CPU that the parent may use, which is the CPU that
    /// [`pin_cpus`](crate::Prefork::pin_cpus) ties it to. If there are several workers to a CPU, they share it; if there are
    /// none, all do. It is for network cards that spread what comes in over the CPUs by flow (RSS): where a card interrupts one
    /// CPU only, that one's worker gets everything. Linux only: elsewhere it is refused. Default: no.
    pub fn steer_by_cpu(mut self) -> ListenConfig {
        (self.per_worker, self.by_cpu) = (true, true);
        self
    }

    /// Who may connect to a Unix socket, as in chmod(1). Default: `0o666`, all. Unix only.
    #[cfg(unix)]
    pub fn mode(mut self, mode: u32) -> ListenConfig {
        self.mode = mode;
        self
    }

    /// Whose a Unix socket is, by the name of the user, or its number where nobody has that name; to give it away takes
    /// privileges. Default: the program's own. Unix only.
    #[cfg(unix)]
    pub fn user(mut self, name: impl Into<String>) -> ListenConfig {
        self.owner.user = Some(name.into());
        self
    }

    /// The same for the group.
    #[cfg(unix)]
    pub fn group(mut self, name: impl Into<String>) -> ListenConfig {
        self.owner.group = Some(name.into());
        self
    }

    /// Names the listener, so that [`Worker::tcp`](crate::Worker::tcp) and its siblings find it by this name, and
    /// [`Prefork::socket_activation`](crate::Prefork::socket_activation) gives it the activated socket with this name. If two
    /// listeners have the same name, the first one is found. Default: none.
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

    /// By one that is there already.
    #[cfg(unix)]
    pub(super) fn replace(&mut self, listener: Listener) {
        self.on = On::Made(listener);
    }

    pub(super) fn open(self) -> Result<Opened> {
        let address = self.to_string();
        if self.per_worker {
            self.check_series(&address)?;
        }
        self.try_open().map_err(|error| Error::listen(address, error))
    }

    fn check_series(&self, address: &str) -> Result<()> {
        if !cfg!(target_os = "linux") {
            return Err(Error::unfit("per_worker", "this system does not divide what comes among several sockets"));
        }
        match &self.on {
            On::Name(_) | On::Address(_) => Ok(()),
            _ => Err(Error::unfit(
                "per_worker",
                format!("of {address} there is one, and it is not for TCP or UDP to be made"),
            )),
        }
    }

    fn try_open(self) -> io::Result<Opened> {
        let ListenConfig { choices, per_worker, by_cpu, .. } = self;
        let bind = |address, kind| choices.bind(address, kind, per_worker.then_some(GroupPosition::First));
        let listener = match self.on {
            #[cfg(unix)]
            On::Path(path) => {
                let (listener, file) = path::listen(&path, self.mode, &self.owner, choices.backlog)?;
                return Ok(Opened { listener: Listener::Unix(listener), file: Some(file), series: None });
            }
            On::Name(name) => match name.strip_prefix("udp:") {
                Some(name) => first_that_works(name, |address| bind(address, Type::DGRAM))?,
                None => first_that_works(&name, |address| bind(address, Type::STREAM))?,
            },
            On::Address(address) => bind(address, Type::STREAM)?,
            On::Made(listener) => listener,
        };
        let kind = if listener.as_udp().is_some() { Type::DGRAM } else { Type::STREAM };
        let series = match per_worker {
            true => Some(Series { address: listener.address()?, kind, choices, by_cpu }),
            false => None,
        };
        Ok(Opened { listener, file: None, series })
    }
}

impl Series {
    /// One more, where the first one is.
    pub fn next(&self) -> io::Result<Listener> {
        self.choices.bind(self.address, self.kind, Some(GroupPosition::Next))
    }

    /// Whether the first one gets everything, until somebody says otherwise.
    pub fn goes_to_the_first(&self) -> bool {
        self.kind == Type::DGRAM
    }
}

/// Of a socket that shares its port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GroupPosition {
    /// It comes to an address that nobody has, and lets others join it only then.
    First,
    Next,
}

impl GroupPosition {
    /// What is to be done before the bind.
    fn before(self, socket: &Socket, kind: Type) -> std::result::Result<(), CallError> {
        let share = |yes| sys::share_port(borrow(socket), yes);
        match self {
            GroupPosition::Next => share(true),
            // It is a group of one, which can be steered, only if it becomes one now. (Of TCP's listen(2) makes one.)
            GroupPosition::First if kind == Type::DGRAM => {
                share(true)?;
                sys::steer(borrow(socket), &steering::to_the_first())?;
                share(false)
            }
            GroupPosition::First => Ok(()),
        }
    }
}

impl Choices {
    fn bind(self, address: SocketAddr, kind: Type, place: Option<GroupPosition>) -> io::Result<Listener> {
        let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(self.only_v6)?;
        }
        // So that the port is free again at once after an end. On Windows it is so, and this would let anybody have it.
        #[cfg(unix)]
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        place.map_or(Ok(()), |place| place.before(&socket, kind)).map_err(|error| error.source)?;
        socket.bind(&address.into())?;
        place.map_or(Ok(()), |_| sys::share_port(borrow(&socket), true)).map_err(|error| error.source)?;
        if kind == Type::DGRAM {
            return Ok(Listener::Udp(socket.into()));
        }
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
        ListenConfig::new(On::Name(address))
    }
}

impl From<SocketAddr> for ListenConfig {
    fn from(address: SocketAddr) -> ListenConfig {
        ListenConfig::new(On::Address(address))
    }
}

impl From<TcpListener> for ListenConfig {
    fn from(listener: TcpListener) -> ListenConfig {
        ListenConfig::new(On::Made(Listener::Tcp(listener)))
    }
}

impl From<UdpSocket> for ListenConfig {
    fn from(socket: UdpSocket) -> ListenConfig {
        ListenConfig::new(On::Made(Listener::Udp(socket)))
    }
}

#[cfg(unix)]
impl From<UnixListener> for ListenConfig {
    fn from(listener: UnixListener) -> ListenConfig {
        ListenConfig::new(On::Made(Listener::Unix(listener)))
    }
}

/// The address.
impl fmt::Display for ListenConfig {
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
