//! Activated sockets: systemd opened them before it started this program (sd_listen_fds(3)).

use std::io;

use listenfd::ListenFd;

use super::Listener;
use super::config::ListenConfig;
use crate::error::{Error, Result};
use crate::sys;

/// Gives the activated sockets to the listeners: a named socket to the listener with its name, the remaining sockets to
/// the remaining listeners in order. A listener that gets none stays as it is.
pub(crate) fn take_over(mut listens: Vec<ListenConfig>) -> Result<Vec<ListenConfig>> {
    // Both calls remove variables from the environment, so that no child process takes the sockets for its own.
    // listenfd does so even if other threads run, so the doc of `Prefork::socket_activation` restricts these.
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

/// Takes a socket out of `passed` as the first kind that listenfd accepts for it.
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
