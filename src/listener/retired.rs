//! Sockets of the program before an upgrade that this program does not use.

use super::bind;
use super::open::SocketFile;
use super::spec::Given;
use crate::sys::OwnedSocket;

/// Sockets that only workers of the program before an upgrade use. Dropping this value closes the parent's copies, and
/// removes the files of Unix sockets. The parent keeps it until none of these workers is left.
#[derive(Debug, Default)]
pub(crate) struct Retired {
    _sockets: Vec<RetiredSocket>,
}

#[derive(Debug)]
struct RetiredSocket {
    /// Comes before the socket, because a [`SocketFile`] must be dropped first.
    _file: Option<SocketFile>,
    _fd: OwnedSocket,
}

impl Retired {
    /// Keeps the sockets that no listener has taken. A socket that the program has got from [`bind`](super::bind) is not
    /// kept, because the program has a copy of it.
    pub fn new(given: Vec<Given>) -> Retired {
        let in_use = bind::passed_specs();
        let unused = given.into_iter().filter(|given| !in_use.contains(&given.spec));
        let retire = |Given { spec, fd }: Given| RetiredSocket {
            _file: spec.file.as_ref().and_then(SocketFile::adopt),
            _fd: fd,
        };
        Retired { _sockets: unused.map(retire).collect() }
    }
}

/// Closes new sockets of an upgrade that was aborted, and removes their files.
pub(crate) fn discard(given: Vec<Given>) {
    drop(Retired::new(given));
}
