//! Opens the socket of a listener, by its settings.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use socket2::Type;

#[cfg(unix)]
use super::BoundSocket;
use super::Listener;
#[cfg(unix)]
use super::abstract_name;
use super::config::{ListenConfig, Source};
use super::group::{GroupPosition, SocketGroup};
#[cfg(unix)]
use super::path::{self, Owner};
use super::retry::{Attempt, Retry};
use crate::error::{Error, Result};

/// The mode of a socket file: every user may connect.
#[cfg(unix)]
const DEFAULT_MODE: u32 = 0o666;

/// The result of [`ListenConfig::open`].
pub(super) struct Opened {
    /// The file of a Unix socket. The file is removed when this value is dropped, which must be before the socket is
    /// closed.
    pub file: Option<SocketFile>,
    pub listener: Listener,
    /// The group of a per-worker listener. `None` if all workers share the socket.
    pub group: Option<SocketGroup>,
}

#[cfg(unix)]
pub(crate) use super::path::SocketFile;

/// The file of a Unix socket. This type has no values, because this system has no socket files.
#[cfg(not(unix))]
#[derive(Debug)]
pub(crate) enum SocketFile {}

#[cfg(not(unix))]
impl SocketFile {
    pub fn adopt(_: &super::spec::FileSpec) -> Option<SocketFile> {
        None
    }

    pub fn release(&mut self) {
        match *self {}
    }
}

impl ListenConfig {
    /// Opens the socket. If the address is in use, tries again until `retry` ends.
    pub(super) fn open(self, retry: &mut Retry<'_>) -> Result<Opened> {
        let address = self.to_string();
        self.check(&address)?;
        if let Source::Bound(listener) = self.source {
            listener.set_nonblocking().map_err(|error| Error::listen(address, error))?;
            // The parent removes the file when it closes its copy of the socket, even if worker threads have others.
            let file = listener.shared.take_file();
            return Ok(Opened { listener, file, group: None });
        }
        let mut attempt = Attempt::default();
        retry.begin();
        loop {
            attempt.is_last = retry.has_ended();
            match self.try_open(&mut attempt) {
                Ok(opened) => {
                    retry.note_opened(address);
                    return Ok(opened);
                }
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(Error::listen(address, error)),
                Err(_) if retry.has_opened(&address) => return Err(Error::listen(address, own_address())),
                Err(_) if retry.wait(&address) => {}
                Err(error) => return Err(Error::listen(address, error)),
            }
        }
    }

    pub(super) fn check(&self, address: &str) -> Result<()> {
        if self.per_worker {
            self.check_per_worker(address)?;
        }
        #[cfg(unix)]
        if let Source::Abstract(_) = self.source {
            self.check_abstract(address)?;
        }
        Ok(())
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

    #[cfg(unix)]
    fn check_abstract(&self, address: &str) -> Result<()> {
        if !cfg!(target_os = "linux") {
            return Err(Error::unfit("listen", format!("{address} is an abstract name, which only Linux has")));
        }
        let Owner { user, group } = &self.owner;
        let settings = [("mode", self.mode.is_some()), ("user", user.is_some()), ("group", group.is_some())];
        match settings.into_iter().find(|(_, is_set)| *is_set) {
            Some((name, _)) => Err(Error::unfit(name, format!("{address} has no file whose {name} could be set"))),
            None => Ok(()),
        }
    }

    #[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix sockets need it"))]
    fn try_open(&self, attempt: &mut Attempt) -> io::Result<Opened> {
        let &ListenConfig { options, per_worker, .. } = self;
        let bind = |address, kind| options.bind(address, kind, per_worker.then_some(GroupPosition::First));
        let listener = match &self.source {
            #[cfg(unix)]
            Source::Path(path) => {
                let mode = self.mode.unwrap_or(DEFAULT_MODE);
                let (listener, file) = path::listen(path, mode, &self.owner, options.backlog, attempt)?;
                return Ok(Opened { listener: BoundSocket::Unix(listener).into(), file: Some(file), group: None });
            }
            #[cfg(unix)]
            Source::Abstract(name) => BoundSocket::Unix(abstract_name::listen(name, options.backlog)?).into(),
            Source::Name(name) => match name.strip_prefix("udp:") {
                Some(name) => bind_first(name, |address| bind(address, Type::DGRAM))?,
                None => bind_first(name, |address| bind(address, Type::STREAM))?,
            },
            Source::Address(address) => bind(*address, Type::STREAM)?,
            Source::Bound(listener) => listener.try_clone()?,
        };
        let group = per_worker.then(|| SocketGroup::of(&listener, self)).transpose()?;
        Ok(Opened { listener, file: None, group })
    }
}

fn own_address() -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, "another listener of this service has this address")
}

/// Binds the first address of `name` that can be bound. If no address can be bound, returns the error of the last
/// address.
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
