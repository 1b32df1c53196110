//! Finds the listening sockets of this process that an upgrade cannot pass on.

use std::fs;
use std::os::fd::{BorrowedFd, RawFd};

use socket2::SockRef;

use super::super::descriptor::FdIdentity;
use super::super::passed_socket::is_listening;

/// Returns the listening sockets of this process that are not among these descriptors, for the operator. A copy of one
/// of these descriptors is no other socket.
pub(crate) fn foreign_listeners(own: &[RawFd]) -> Vec<String> {
    // SAFETY: a number is only compared. fstat(2) fails for a number that is no open descriptor.
    let identity = |fd: RawFd| FdIdentity::of(unsafe { BorrowedFd::borrow_raw(fd) });
    let own: Vec<FdIdentity> = own.iter().filter_map(|&fd| identity(fd)).collect();
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    let mut foreign: Vec<RawFd> = numbers
        .filter(|&fd| {
            // SAFETY: the number is only used for system calls, which fail if it is no open socket.
            let is_listener = is_listening(unsafe { BorrowedFd::borrow_raw(fd) }).unwrap_or(false);
            is_listener && identity(fd).is_some_and(|identity| !own.contains(&identity))
        })
        .collect();
    foreign.sort_unstable();
    foreign.into_iter().map(describe).collect()
}

fn describe(fd: RawFd) -> String {
    // SAFETY: the descriptor was open a moment ago, and getsockname(2) fails if it is no socket any more.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let address = SockRef::from(&socket).local_addr().ok();
    let address = address.and_then(|address| {
        let of_network = address.as_socket().map(|address| address.to_string());
        of_network.or_else(|| address.as_pathname().map(|path| path.display().to_string()))
    });
    match address {
        Some(address) => format!("descriptor {fd}, {address}"),
        None => format!("descriptor {fd}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn only_unknown_listening_sockets_are_foreign() {
        let known = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let copy = known.try_clone().expect("a copy");
        let unknown = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let line = |listener: &TcpListener| {
            format!("descriptor {}, {}", listener.as_raw_fd(), listener.local_addr().expect("an address"))
        };
        let found = foreign_listeners(&[known.as_raw_fd()]);
        assert!(found.contains(&line(&unknown)), "{found:?}");
        assert!(!found.contains(&line(&known)) && !found.contains(&line(&copy)), "{found:?}");
    }
}
