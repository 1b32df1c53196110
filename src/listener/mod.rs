//! The listeners: sockets that the parent opens before it starts workers. The parent keeps the sockets open, so they
//! outlive each worker.

#[cfg(unix)]
mod abstract_name;
mod accept;
#[cfg(unix)]
mod activation;
mod bind;
mod column;
mod config;
mod connection;
mod group;
mod index;
mod matching;
mod open;
#[cfg(unix)]
mod path;
mod retired;
mod retry;
mod sockets;
mod spec;
mod steering;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
#[cfg(unix)]
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use accept::stopped_listening;
#[cfg(unix)]
pub(crate) use activation::take_over;
pub(crate) use bind::{BoundListener, bind, bound, remove_files};
pub use config::ListenConfig;
pub use connection::Connection;
pub use index::ListenerIndex;
use open::SocketFile;
#[cfg_attr(
    not(all(target_os = "linux", not(taskfork_portable))),
    allow(unused_imports, reason = "only an upgrade needs it")
)]
pub(crate) use retired::{Retired, discard};
pub(crate) use retry::Retry;
pub(crate) use sockets::{ShutDown, Sockets};
#[cfg(all(test, target_os = "linux", not(taskfork_portable)))]
pub(crate) use spec::Spec;
pub(crate) use spec::{Given, Passed, SocketKind, SocketLine};

use socket2::SockRef;

use crate::sys::{self, BorrowedSocket, CallError, Gate, OwnedSocket};

/// A socket on which workers accept connections or receive datagrams. [`Worker::listeners`](crate::Worker::listeners)
/// returns the listeners of a worker.
///
/// `Display` writes the address, for example `127.0.0.1:8000`, `unix:/run/service.sock`,
/// `unix:@service` or `udp:[::]:53`.
///
/// # The socket is non-blocking
///
/// The parent, all workers and later processes of each worker share the socket. Its non-blocking mode (`O_NONBLOCK`) is
/// a property of the shared socket (open(2), "open file description"), and not of one process. So taskfork makes each
/// socket non-blocking when it opens the socket, and the socket stays so:
///
/// - [`accept`](Listener::accept) and [`recv_from`](Listener::recv_from) wait for a connection or a datagram.
/// - A clone ([`Worker::tcp`](crate::Worker::tcp)) can be passed to mio or tokio without a call of `set_nonblocking`.
/// - An accept or a receive on the socket itself returns `WouldBlock` if nothing waits.
///
/// Do not make the socket or a clone blocking, because that reaches every worker and every clone: the next accept in
/// another worker may then block. A call of `set_nonblocking(true)` has no effect. The parent makes the socket
/// non-blocking again before it restarts a worker.
///
/// A socket that the program passes to [`Prefork::listen`](crate::Prefork::listen) becomes non-blocking as well. So
/// does a socket that systemd has passed, and systemd's own copy of it.
///
/// On Windows, each process has its own mode for a socket that all processes share. There, too, the socket is
/// non-blocking in each worker.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<SharedSocket>,
    /// Whether the worker has stopped listening on this socket.
    is_closed: AtomicBool,
    /// The gate of a worker thread. `None` in a process, which has only one gate.
    gate: Option<Arc<Gate>>,
}

/// A socket that all worker threads of this process share.
#[derive(Debug)]
struct SharedSocket {
    /// The file of a Unix socket of [`bind`]. Comes before the socket, because a [`SocketFile`] must be dropped first.
    file: Mutex<Option<SocketFile>>,
    socket: BoundSocket,
    /// The number of listeners with this socket that are not closed.
    users: AtomicUsize,
}

#[derive(Debug)]
enum BoundSocket {
    Tcp(TcpListener),
    Udp(UdpSocket),
    #[cfg(unix)]
    Unix(UnixListener),
}

/// The listeners of a worker. `None` if the service has no listeners: unlike an empty list, `None` needs no allocation.
pub(crate) type Listeners = Option<Arc<[Listener]>>;

/// The name of each listener, in the order of the listeners. `None` if there are no listeners.
pub(crate) type ListenerNames = Option<Arc<[Option<String>]>>;

/// Returns the listeners of a worker thread, which shares the sockets with the other threads.
pub(crate) fn for_thread(listeners: &Listeners, gate: &Arc<Gate>) -> Listeners {
    listeners.as_ref().map(|listeners| listeners.iter().map(|listener| listener.for_thread(gate)).collect())
}

impl Listener {
    fn new(socket: BoundSocket, gate: Option<Arc<Gate>>) -> Listener {
        let shared = Arc::new(SharedSocket { file: Mutex::new(None), socket, users: AtomicUsize::new(1) });
        Listener { shared, is_closed: AtomicBool::new(false), gate }
    }

    fn for_thread(&self, gate: &Arc<Gate>) -> Listener {
        self.shared.users.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&self.shared);
        Listener { shared, is_closed: AtomicBool::new(false), gate: Some(Arc::clone(gate)) }
    }

    fn socket(&self) -> &BoundSocket {
        &self.shared.socket
    }

    fn gate(&self) -> &Gate {
        self.gate.as_deref().unwrap_or(Gate::of_process())
    }

    /// Returns the TCP listener, or `None` if this is another kind of socket.
    pub fn as_tcp(&self) -> Option<&TcpListener> {
        match self.socket() {
            BoundSocket::Tcp(listener) => Some(listener),
            _ => None,
        }
    }

    /// Returns the UDP socket, or `None` if this is another kind of socket.
    pub fn as_udp(&self) -> Option<&UdpSocket> {
        match self.socket() {
            BoundSocket::Udp(socket) => Some(socket),
            _ => None,
        }
    }

    /// Returns the Unix listener, or `None` if this is another kind of socket. Unix only.
    #[cfg(unix)]
    pub fn as_unix(&self) -> Option<&UnixListener> {
        match self.socket() {
            BoundSocket::Unix(listener) => Some(listener),
            _ => None,
        }
    }

    /// Returns the IP address and port of this socket. Returns an error for a Unix listener.
    fn address(&self) -> io::Result<SocketAddr> {
        match self.socket() {
            BoundSocket::Tcp(listener) => listener.local_addr(),
            BoundSocket::Udp(socket) => socket.local_addr(),
            #[cfg(unix)]
            BoundSocket::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn try_clone(&self) -> io::Result<Listener> {
        let socket = match self.socket() {
            BoundSocket::Tcp(listener) => BoundSocket::Tcp(listener.try_clone()?),
            BoundSocket::Udp(socket) => BoundSocket::Udp(socket.try_clone()?),
            #[cfg(unix)]
            BoundSocket::Unix(listener) => BoundSocket::Unix(listener.try_clone()?),
        };
        Ok(Listener::from(socket))
    }

    /// Sets how many connections may wait. Does nothing for a UDP socket.
    fn set_backlog(&self, backlog: i32) -> io::Result<()> {
        match self.socket() {
            BoundSocket::Tcp(listener) => SockRef::from(listener).listen(backlog),
            BoundSocket::Udp(_) => Ok(()),
            #[cfg(unix)]
            BoundSocket::Unix(listener) => SockRef::from(listener).listen(backlog),
        }
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self.socket() {
            BoundSocket::Tcp(listener) => listener.set_nonblocking(true),
            BoundSocket::Udp(socket) => socket.set_nonblocking(true),
            #[cfg(unix)]
            BoundSocket::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    /// Closes the worker's copy of the socket. If other worker threads share the socket, the last of them closes it. If
    /// the system refuses the close, a later call tries it again.
    pub(crate) fn close(&self) -> Result<(), CallError> {
        if !self.is_last_user() {
            return Ok(());
        }
        sys::close_in_place(self.as_passed()).inspect_err(|_| {
            self.shared.users.fetch_add(1, Ordering::AcqRel);
            self.is_closed.store(false, Ordering::Release);
        })
    }

    /// Marks this listener as closed. Returns whether it was open, and no other listener uses the socket.
    fn is_last_user(&self) -> bool {
        !self.is_closed.swap(true, Ordering::AcqRel) && self.shared.users.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Returns the descriptor (on Windows, the socket handle) that the parent passes to a spawned worker.
    pub(crate) fn as_passed(&self) -> BorrowedSocket<'_> {
        self.shared.as_passed()
    }

    /// Returns the kind of this socket.
    pub(crate) fn kind(&self) -> SocketKind {
        match self.socket() {
            BoundSocket::Tcp(_) => SocketKind::Tcp,
            BoundSocket::Udp(_) => SocketKind::Udp,
            #[cfg(unix)]
            BoundSocket::Unix(_) => SocketKind::Unix,
        }
    }

    /// Makes the listener remove this file when it is dropped.
    fn with_file(self, file: Option<SocketFile>) -> Listener {
        *self.shared.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        self
    }

    /// Creates a listener from a socket that a spawned worker has inherited. Returns `None` if this system does not
    /// have this kind of sockets.
    pub(crate) fn given(kind: SocketKind, socket: OwnedSocket) -> Option<Listener> {
        let listener = Listener::from(match kind {
            SocketKind::Tcp => BoundSocket::Tcp(socket.into()),
            SocketKind::Udp => BoundSocket::Udp(socket.into()),
            #[cfg(unix)]
            SocketKind::Unix => BoundSocket::Unix(socket.into()),
            #[cfg(not(unix))]
            SocketKind::Unix => return None,
        });
        // On Windows, the socket is non-blocking only in the process that has made it so.
        if cfg!(windows) {
            listener.set_nonblocking().ok()?;
        }
        Some(listener)
    }
}

impl SharedSocket {
    fn as_passed(&self) -> BorrowedSocket<'_> {
        match &self.socket {
            BoundSocket::Tcp(listener) => borrow(listener),
            BoundSocket::Udp(socket) => borrow(socket),
            #[cfg(unix)]
            BoundSocket::Unix(listener) => borrow(listener),
        }
    }

    fn take_file(&self) -> Option<SocketFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl From<BoundSocket> for Listener {
    fn from(socket: BoundSocket) -> Listener {
        Listener::new(socket, None)
    }
}

/// Closes the socket if the other worker threads have stopped listening, but still have their listeners.
impl Drop for Listener {
    fn drop(&mut self) {
        if self.is_last_user() && Arc::strong_count(&self.shared) > 1 {
            // Without a placeholder, the socket stays open until those listeners are dropped.
            let _ = sys::close_in_place(self.as_passed());
        }
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_passed()
    }
}

#[cfg(unix)]
impl std::os::fd::AsRawFd for Listener {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.as_passed().as_raw_fd()
    }
}

#[cfg(windows)]
impl std::os::windows::io::AsSocket for Listener {
    fn as_socket(&self) -> std::os::windows::io::BorrowedSocket<'_> {
        self.as_passed()
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
        match self.socket() {
            BoundSocket::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(error) => write!(f, "an unknown address ({error})"),
            },
            BoundSocket::Udp(socket) => match socket.local_addr() {
                Ok(address) => write!(f, "udp:{address}"),
                Err(error) => write!(f, "udp:an unknown address ({error})"),
            },
            #[cfg(unix)]
            BoundSocket::Unix(listener) => match listener.local_addr() {
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
