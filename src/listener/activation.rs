//! Socket activation: uses sockets that systemd has opened before it started this program (sd_listen_fds(3)).

use std::env;
use std::io;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, SockRef, Type};

use super::config::ListenConfig;
use super::{BoundSocket, Listener};
use crate::error::{Error, Result};
use crate::sys;

const SETTING: &str = "socket_activation";

/// Whether this process has taken over its sockets. The variables may still be there, because they stay if the process
/// has several threads.
static ARE_TAKEN: AtomicBool = AtomicBool::new(false);

/// Assigns the sockets from systemd to the listeners of all pools. If a listener has the same name as a socket, the
/// listener gets this socket. If several listeners have the name, for example in different pools, the first one that
/// has no socket yet gets it. The remaining sockets go to the remaining listeners in order. A listener that gets no
/// socket is not changed.
pub(crate) fn take_over(listens: Vec<&mut ListenConfig>) -> Result<()> {
    // Each variable is removed only if this process has one thread, because other threads may read the environment. A
    // program that this process starts ignores variables that stay, because they have another process's pid.
    let count = take_variable("LISTEN_FDS")?;
    let pid = take_variable("LISTEN_PID")?;
    let names = take_variable("LISTEN_FDNAMES")?.unwrap_or_default();
    let _ = sys::take_env_var("LISTEN_PIDFDID");
    let is_for_this = pid.is_none_or(|pid| pid.is_empty() || pid.parse() == Ok(process::id()));
    let Some(count) = count.filter(|_| is_for_this) else { return Ok(()) };
    if ARE_TAKEN.load(Ordering::Relaxed) {
        return Ok(());
    }
    let count = parse_count(&count)?;
    // No memory depends on the count before this check.
    if count > listens.len() {
        let problem = format!("{count} sockets were passed for {} listeners", listens.len());
        return Err(Error::unfit(SETTING, problem));
    }
    let names: Vec<Option<&str>> = names.split(':').map(Some).chain(std::iter::repeat(None)).take(count).collect();
    let sockets = take_sockets(&names)?;
    ARE_TAKEN.store(true, Ordering::Relaxed);
    assign(sockets, &names, listens);
    Ok(())
}

/// Takes a variable out of the environment. An error: its value is no text.
fn take_variable(name: &'static str) -> Result<Option<String>> {
    match sys::take_env_var(name) {
        None if env::var_os(name).is_some() => Err(Error::unfit(SETTING, format!("{name} is no valid text"))),
        value => Ok(value),
    }
}

/// Parses the value of LISTEN_FDS: digits only, because systemd writes nothing else.
fn parse_count(text: &str) -> Result<usize> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // Every descriptor is an `int`, and the first one has the number 3.
    let count = text.parse().ok().filter(|&count: &i32| is_number && count <= i32::MAX - 3);
    let count = count.and_then(|count| count.try_into().ok());
    count.ok_or_else(|| Error::unfit(SETTING, format!("LISTEN_FDS is {text:?}, which is not a number of sockets")))
}

/// Takes over the sockets with these names. An error leaves all of them open, as they were before.
fn take_sockets(names: &[Option<&str>]) -> Result<Vec<Listener>> {
    let mut passed = Vec::new();
    match check_all(names, &mut passed) {
        Ok(kinds) => Ok(passed.into_iter().zip(kinds).map(|(fd, kind)| kind.listener(fd)).collect()),
        Err(error) => {
            passed.into_iter().map(IntoRawFd::into_raw_fd).for_each(drop);
            Err(error)
        }
    }
}

fn check_all(names: &[Option<&str>], passed: &mut Vec<OwnedFd>) -> Result<Vec<Kind>> {
    let check = |(index, name): (usize, &Option<&str>)| {
        let refused =
            |error| Error::listen(format!("the activated socket {index} ({})", name.unwrap_or_default()), error);
        // The index is less than the number of listeners.
        let fd = sys::take_passed(index as i32).map_err(|error| refused(error.source))?;
        let kind = kind_of(&fd).map_err(refused);
        passed.push(fd);
        kind
    };
    names.iter().enumerate().map(check).collect()
}

/// The kind of a passed socket.
enum Kind {
    Tcp,
    Udp,
    Unix,
}

impl Kind {
    fn listener(self, fd: OwnedFd) -> Listener {
        Listener::from(match self {
            Kind::Tcp => BoundSocket::Tcp(fd.into()),
            Kind::Udp => BoundSocket::Udp(fd.into()),
            Kind::Unix => BoundSocket::Unix(fd.into()),
        })
    }
}

/// Returns the kind of a socket. Refuses a stream socket that does not listen, because every accept(2) on it fails.
fn kind_of(fd: &OwnedFd) -> io::Result<Kind> {
    let socket = SockRef::from(fd);
    let address = socket.local_addr()?;
    let is_ip = address.is_ipv4() || address.is_ipv6();
    let kind = match socket.r#type()? {
        Type::DGRAM if is_ip => return Ok(Kind::Udp),
        Type::STREAM if is_ip => Kind::Tcp,
        Type::STREAM if address.domain() == Domain::UNIX => Kind::Unix,
        _ => return Err(io::Error::other("the socket is not TCP, UDP or a Unix stream socket")),
    };
    if sys::is_listening(fd.as_fd()).map_err(|error| error.source)? {
        Ok(kind)
    } else if socket.peer_addr().is_ok() {
        Err(io::Error::other("the socket is a connection, as with Accept=yes: set Accept=no in the socket unit"))
    } else {
        Err(io::Error::other("the socket does not listen"))
    }
}

fn assign(sockets: Vec<Listener>, names: &[Option<&str>], mut free: Vec<&mut ListenConfig>) {
    let mut unnamed = Vec::new();
    for (socket, &name) in sockets.into_iter().zip(names) {
        match free.iter().position(|listen| name.is_some() && listen.has_name(name)) {
            Some(position) => free.remove(position).replace(socket),
            None => unnamed.push(socket),
        }
    }
    for (listen, socket) in free.into_iter().zip(unnamed) {
        listen.replace(socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_of_descriptors_is_a_count() {
        assert_eq!(parse_count("0").expect("a count"), 0);
        assert_eq!(parse_count("2147483644").expect("a count"), 2_147_483_644);
        for wrong in ["", "abc", "-1", "+1", " 1", "1.0", "2147483645", "4294967295", "99999999999999999999"] {
            let error = parse_count(wrong).expect_err(wrong);
            assert_eq!(error.setting(), Some("socket_activation"));
        }
    }
}
