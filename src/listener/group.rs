//! The TCP and UDP sockets of a listener: their options, and the groups of per-worker listeners.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use super::config::ListenConfig;
use super::{BoundSocket, Listener, borrow, steering};
use crate::sys::{self, CallError};

/// The options of the TCP and UDP sockets of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketOptions {
    pub backlog: i32,
    pub only_v6: bool,
}

/// The settings that all sockets of a per-worker listener have in common. These sockets have the same address and form
/// a `SO_REUSEPORT` group (socket(7)).
#[derive(Debug)]
pub(super) struct SocketGroup {
    pub address: SocketAddr,
    pub kind: Type,
    pub options: SocketOptions,
    pub by_cpu: bool,
}

impl SocketGroup {
    /// Returns the settings of the group that begins with this socket.
    pub fn of(first: &Listener, listen: &ListenConfig) -> io::Result<SocketGroup> {
        let kind = if first.as_udp().is_some() { Type::DGRAM } else { Type::STREAM };
        Ok(SocketGroup { address: first.address()?, kind, options: listen.options, by_cpu: listen.by_cpu })
    }

    /// Opens another socket of this group, at the address of the first socket.
    pub fn open_next(&self) -> io::Result<Listener> {
        self.options.bind(self.address, self.kind, Some(GroupPosition::Next))
    }

    /// Returns whether a BPF program was attached when the first socket was opened. That program sends all datagrams to
    /// the first socket, until another program replaces it.
    pub fn opens_with_program(&self) -> bool {
        self.kind == Type::DGRAM
    }
}

/// The position of a socket in its `SO_REUSEPORT` group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupPosition {
    /// The first socket of the group. It can be bound only if no other socket has the address. After bind(2), other
    /// sockets can join the group.
    First,
    Next,
}

impl GroupPosition {
    /// Sets the socket options that must be set before bind(2).
    fn before_bind(self, socket: &Socket, kind: Type) -> std::result::Result<(), CallError> {
        let share = |yes| sys::share_port(borrow(socket), yes);
        match self {
            GroupPosition::Next => share(true),
            // A BPF program can be attached only to a socket that belongs to a group. The first socket binds without
            // SO_REUSEPORT, so that bind(2) fails if the address is in use. But without SO_REUSEPORT, bind(2) creates
            // no group for a UDP socket. So the group is created here, before bind(2): the kernel creates a group when
            // a program is attached while SO_REUSEPORT is set. For TCP, listen(2) creates the group, because
            // SO_REUSEPORT is set between bind(2) and listen(2).
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
    /// Opens a socket at this address, and begins to listen if it is a TCP socket. `position` is the position in the
    /// group of a per-worker listener.
    pub fn bind(self, address: SocketAddr, kind: Type, position: Option<GroupPosition>) -> io::Result<Listener> {
        let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(self.only_v6)?;
        }
        // This option (SO_REUSEADDR) lets a restarted service bind the port at once. Windows allows this without the
        // option. With the option, Windows would let any other program bind the port.
        #[cfg(unix)]
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        position.map_or(Ok(()), |position| position.before_bind(&socket, kind)).map_err(|error| error.source)?;
        socket.bind(&address.into())?;
        position.map_or(Ok(()), |_| sys::share_port(borrow(&socket), true)).map_err(|error| error.source)?;
        if kind == Type::DGRAM {
            return Ok(BoundSocket::Udp(socket.into()).into());
        }
        socket.listen(self.backlog)?;
        Ok(BoundSocket::Tcp(socket.into()).into())
    }
}
