//! Sockets that were made before this program was started: sd_listen_fds(3).

use std::io;

use listenfd::ListenFd;

use super::Listener;
use super::config::ListenConfig;
use crate::error::{Error, Result};
use crate::sys;

/// What this program was started with takes the place of what was asked for: by name, where both have one, and otherwise in
/// order. What nothing was passed for stays as it is.
pub(crate) fn take_over(mut listens: Vec<ListenConfig>) -> Result<Vec<ListenConfig>> {
    // Both are removed from the environment, so that nobody else takes them for his; here by listenfd, which asks for no
    // threads, so that `Prefork::socket_activation` has to.
    let mut passed = ListenFd::from_env();
    let names = sys::take_env_var("LISTEN_FDNAMES").unwrap_or_default();
    if passed.len() > listens.len() {
        let asked = listens.len();
        return Err(Error::unfit("socket_activation", format!("{} sockets were passed for {asked}", passed.len())));
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
            Some(at) => free.remove(at).replace(socket),
            None => unnamed.push(socket),
        }
    }
    for (listen, socket) in free.into_iter().zip(unnamed) {
        listen.replace(socket);
    }
    Ok(listens)
}

/// What it is shows by what it can be taken for.
fn take(passed: &mut ListenFd, index: usize) -> io::Result<Listener> {
    if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
        return Ok(Listener::Tcp(listener));
    }
    if let Ok(Some(listener)) = passed.take_unix_listener(index) {
        return Ok(Listener::Unix(listener));
    }
    let socket = passed.take_udp_socket(index);
    let unknown = || io::Error::other("it is neither TCP, nor UDP, nor a Unix stream socket");
    socket.ok().flatten().map(Listener::Udp).ok_or_else(unknown)
}
