//! [`Connection`], which [`Listener::accept`](super::Listener::accept) returns.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
#[cfg(unix)]
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(windows)]
use std::os::windows::io::{AsSocket, BorrowedSocket};
use std::time::Duration;

/// A connection that [`Listener::accept`](crate::Listener::accept) has accepted. It is blocking, although the listener
/// is not. Its descriptor is close-on-exec.
///
/// Reads and writes go to the stream. To call any other method of the stream, match on the variant:
///
/// ```no_run
/// use taskfork::Connection;
///
/// fn set_options(connection: &Connection) -> std::io::Result<()> {
///     match connection {
///         Connection::Tcp(stream) => stream.set_nodelay(true),
///         _ => Ok(()),
///     }
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Connection {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A connection to a Unix stream socket. Unix only.
    #[cfg(unix)]
    Unix(UnixStream),
}

/// Calls a method of the stream.
macro_rules! on_stream {
    ($connection:expr, $stream:ident => $call:expr) => {
        match $connection {
            Connection::Tcp($stream) => $call,
            #[cfg(unix)]
            Connection::Unix($stream) => $call,
        }
    };
}

impl Connection {
    /// Returns the TCP stream, or `None` if this is another kind of connection.
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match self {
            Connection::Tcp(stream) => Some(stream),
            #[cfg(unix)]
            Connection::Unix(_) => None,
        }
    }

    /// Returns the Unix stream, or `None` if this is another kind of connection. Unix only.
    #[cfg(unix)]
    pub fn as_unix(&self) -> Option<&UnixStream> {
        match self {
            Connection::Unix(stream) => Some(stream),
            Connection::Tcp(_) => None,
        }
    }

    /// Returns a second handle for the same connection, as [`TcpStream::try_clone`] does.
    ///
    /// # Errors
    ///
    /// Returns the system's error if the descriptor cannot be duplicated.
    pub fn try_clone(&self) -> io::Result<Connection> {
        Ok(match self {
            Connection::Tcp(stream) => Connection::Tcp(stream.try_clone()?),
            #[cfg(unix)]
            Connection::Unix(stream) => Connection::Unix(stream.try_clone()?),
        })
    }

    /// Shuts down the reading half, the writing half or both halves, as [`TcpStream::shutdown`] does.
    ///
    /// # Errors
    ///
    /// Returns the system's error, for example if the connection is closed already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        on_stream!(self, stream => stream.shutdown(how))
    }

    /// Limits the time of each read, as [`TcpStream::set_read_timeout`] does. Default: `None`, which means no limit.
    ///
    /// # Errors
    ///
    /// Returns `InvalidInput` for a timeout of zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        on_stream!(self, stream => stream.set_read_timeout(timeout))
    }

    /// Limits the time of each write, as [`TcpStream::set_write_timeout`] does. Default: `None`, which means no limit.
    ///
    /// # Errors
    ///
    /// Returns `InvalidInput` for a timeout of zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        on_stream!(self, stream => stream.set_write_timeout(timeout))
    }

    /// Makes the connection non-blocking or blocking. Only this connection changes, and not the listener. Default:
    /// blocking.
    ///
    /// # Errors
    ///
    /// Returns the system's error.
    pub fn set_nonblocking(&self, yes: bool) -> io::Result<()> {
        on_stream!(self, stream => stream.set_nonblocking(yes))
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(buffers)
    }
}

impl Read for &Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        on_stream!(self, stream => (&*stream).read(buffer))
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        on_stream!(self, stream => (&*stream).read_vectored(buffers))
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        (&*self).write(buffer)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self).flush()
    }
}

impl Write for &Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        on_stream!(self, stream => (&*stream).write(buffer))
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        on_stream!(self, stream => (&*stream).write_vectored(buffers))
    }

    fn flush(&mut self) -> io::Result<()> {
        on_stream!(self, stream => (&*stream).flush())
    }
}

#[cfg(unix)]
impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        on_stream!(self, stream => stream.as_fd())
    }
}

#[cfg(unix)]
impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        on_stream!(self, stream => stream.as_raw_fd())
    }
}

#[cfg(windows)]
impl AsSocket for Connection {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        on_stream!(self, stream => stream.as_socket())
    }
}
