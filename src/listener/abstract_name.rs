//! Unix sockets with an abstract name, which has no file (unix(7)). Linux only.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixListener;

use socket2::{Domain, SockAddr, Socket, Type};

/// Opens a listening socket with this name. The kernel frees the name when the last copy of the socket is closed.
pub(super) fn listen(name: &str, backlog: i32) -> io::Result<UnixListener> {
    if name.is_empty() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the abstract name is empty"));
    }
    // In the address of a socket, a zero byte marks an abstract name.
    let address = OsString::from_vec([b"\0", name.as_bytes()].concat());
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(address)?)?;
    socket.listen(backlog)?;
    Ok(socket.into())
}
