//! Socket activation: uses sockets that systemd has opened before it started this program (sd_listen_fds(3)).

use std::io;

use listenfd::ListenFd;

use super::Listener;
use super::config::ListenConfig;
use crate::error::{Error, Result};
use crate::sys;

/// Assigns the sockets from systemd to the listeners. If a listener has the same name as a socket, the listener gets
/// this socket. The remaining sockets go to the remaining listeners in order. A listener that gets no socket is not
/// changed.
pub(crate) fn take_over(mut listens: Vec<ListenConfig>) -> Result<Vec<ListenConfig>> {
    // Both calls remove variables from the environment, so that no child process mistakes the sockets for its own.
    // `take_env_var` removes a variable only if this process has one thread. listenfd removes its variables even if
    // other threads run. So the doc of `Prefork::socket_activation` restricts how these threads may read the
    // environment.
    let mut passed = ListenFd::from_env();
    let names = sys::take_env_var("LISTEN_FDNAMES").unwrap_or_default();
    if passed.len() > listens.len() {
        let problem = format!("{} sockets were passed for {} listeners", passed.len(), listens.len());
        return Err(Error::unfit("socket_activation", problem));
    }
    let mut free: Vec<&mut ListenConfig> = listens.iter_mut().collect();
    let names = names.split(':').map(Some).chain(std::iter::repeat(None));
    let mut unnamed = Vec::new();
    for (index, name) in (0..passed.len()).zip(names) {
        let socket = take(&mut passed, index).map_err(|error| {
            let name = name.unwrap_or_default();
            Error::listen(format!("the activated socket {index} ({name})"), error)
        })?;
        match free.iter().position(|listen| name.is_some() && listen.has_name(name)) {
            Some(position) => free.remove(position).replace(socket),
            None => unnamed.push(socket),
        }
    }
    for (listen, socket) in free.into_iter().zip(unnamed) {
        listen.replace(socket);
    }
    Ok(listens)
}

/// Takes the socket at `index` out of `passed`. Tries to take it as a TCP listener first, then as a Unix listener, then
/// as a UDP socket. listenfd refuses a kind that does not match the socket.
fn take(passed: &mut ListenFd, index: usize) -> io::Result<Listener> {
    if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
        return Ok(Listener::Tcp(listener));
    }
    if let Ok(Some(listener)) = passed.take_unix_listener(index) {
        return Ok(Listener::Unix(listener));
    }
    let socket = passed.take_udp_socket(index);
    let unknown = || io::Error::other("the socket is not TCP, UDP or a Unix stream socket");
    socket.ok().flatten().map(Listener::Udp).ok_or_else(unknown)
}
