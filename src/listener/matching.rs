//! Finds the existing sockets for the settings of a listener.

use std::mem;
use std::net::{SocketAddr, ToSocketAddrs};
#[cfg(unix)]
use std::path::PathBuf;

#[cfg(unix)]
use socket2::SockAddr;
use socket2::SockRef;

use super::bind;
use super::config::{ListenConfig, Source};
use super::spec::{Given, SocketKind, Spec, SpecOrigin};
use crate::error::{Error, Result};
use crate::sys::BorrowedSocket;

/// The position of a listener among those of the service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub pool: &'a str,
    /// The address as the program has written it.
    pub text: &'a str,
    /// The position among the listeners of the pool that have the same text.
    pub ordinal: usize,
}

/// Takes the sockets of a listener out of `given`, in the order of the workers if each worker has its own. Returns an
/// empty list if no socket belongs to the listener.
///
/// A socket belongs to the listener if it was opened for a listener of the same pool with the same text. Otherwise, a
/// socket of any pool belongs to it that has the listener's address.
pub(super) fn take(place: Place<'_>, listen: &ListenConfig, given: &mut Vec<Given>) -> Result<Vec<Given>> {
    let in_use = bind::passed_specs();
    let Some(found) = find(place, listen, given, &in_use) else { return Ok(Vec::new()) };
    let is_own = |given: &Given| given.spec.is_sibling(&found);
    let (mut own, rest): (Vec<Given>, Vec<Given>) = mem::take(given).into_iter().partition(is_own);
    *given = rest;
    if found.worker.is_some() != listen.per_worker {
        let problem = format!("{} is open already, and an upgrade cannot change this setting", place.text);
        return Err(Error::unfit("per_worker", problem));
    }
    own.sort_by_key(|given| given.spec.worker);
    let is_complete = own.iter().enumerate().all(|(at, given)| given.spec.worker.is_none_or(|worker| worker == at));
    if !is_complete || !listen.per_worker && own.len() > 1 {
        return Err(Error::unfit("listen", format!("the sockets of {} are incomplete", place.text)));
    }
    Ok(own)
}

/// Returns the specification of the first socket that belongs to the listener.
fn find(place: Place<'_>, listen: &ListenConfig, given: &[Given], in_use: &[Spec]) -> Option<Spec> {
    let free = || given.iter().filter(|given| !in_use.contains(&given.spec));
    let Place { pool, text, ordinal } = place;
    let is_same = |spec: &Spec| {
        spec.origin != SpecOrigin::Bind && spec.pool == pool && spec.text == text && spec.ordinal == ordinal
    };
    if let Some(same) = free().find(|given| is_same(&given.spec)) {
        return Some(same.spec.clone());
    }
    let addresses = fixed_addresses(listen);
    free().find(|given| addresses.has(given.spec.kind, given.borrowed())).map(|given| given.spec.clone())
}

/// The addresses at which the socket of a listener can be. An address whose port the system chooses is not among them,
/// because each call gets another port.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FixedAddresses {
    Tcp(Vec<SocketAddr>),
    Udp(Vec<SocketAddr>),
    #[cfg(unix)]
    Path(PathBuf),
    #[cfg(unix)]
    Abstract(String),
    None,
}

/// Returns the addresses of a listener. A name is looked up.
pub(super) fn fixed_addresses(listen: &ListenConfig) -> FixedAddresses {
    match &listen.source {
        Source::Name(name) => match name.strip_prefix("udp:") {
            Some(name) => FixedAddresses::Udp(look_up(name)),
            None => FixedAddresses::Tcp(look_up(name)),
        },
        Source::Address(address) => FixedAddresses::Tcp(unless_chosen(*address).into_iter().collect()),
        #[cfg(unix)]
        Source::Path(path) => FixedAddresses::Path(path.clone()),
        #[cfg(unix)]
        Source::Abstract(name) => FixedAddresses::Abstract(name.clone()),
        Source::Bound(_) => FixedAddresses::None,
    }
}

impl FixedAddresses {
    /// Returns whether the socket of this kind has one of these addresses.
    pub fn has(&self, kind: SocketKind, socket: BorrowedSocket<'_>) -> bool {
        let Ok(address) = SockRef::from(&socket).local_addr() else { return false };
        let is_among =
            |addresses: &[SocketAddr]| address.as_socket().is_some_and(|address| addresses.contains(&address));
        match (self, kind) {
            (FixedAddresses::Tcp(addresses), SocketKind::Tcp) => is_among(addresses),
            (FixedAddresses::Udp(addresses), SocketKind::Udp) => is_among(addresses),
            #[cfg(unix)]
            (FixedAddresses::Path(path), SocketKind::Unix) => address.as_pathname() == Some(path),
            #[cfg(unix)]
            (FixedAddresses::Abstract(name), SocketKind::Unix) => abstract_name(&address) == Some(name.as_bytes()),
            _ => false,
        }
    }
}

#[cfg(target_os = "linux")]
fn abstract_name(address: &SockAddr) -> Option<&[u8]> {
    address.as_abstract_namespace()
}

#[cfg(all(unix, not(target_os = "linux")))]
fn abstract_name(_: &SockAddr) -> Option<&[u8]> {
    None
}

fn look_up(name: &str) -> Vec<SocketAddr> {
    name.to_socket_addrs().map_or_else(|_| Vec::new(), |addresses| addresses.filter_map(unless_chosen).collect())
}

/// Returns the address, unless the system chooses the port.
fn unless_chosen(address: SocketAddr) -> Option<SocketAddr> {
    (address.port() != 0).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::super::Listener;
    use super::super::retry::Retry;
    use super::*;

    fn open(address: &str) -> Listener {
        ListenConfig::from(address).open(&mut Retry::never(&mut |_, _| {})).expect("a socket").listener
    }

    fn matches(on: impl Into<ListenConfig>, socket: &Listener) -> bool {
        fixed_addresses(&on.into()).has(socket.kind(), socket.as_passed())
    }

    #[test]
    fn another_spelling_of_an_address_matches() {
        let tcp = open("127.0.0.1:0");
        let port = tcp.address().expect("an address").port();
        assert!(matches(format!("127.0.0.1:{port}"), &tcp));
        assert!(matches(format!("localhost:{port}"), &tcp));
        assert!(matches(SocketAddr::from(([127, 0, 0, 1], port)), &tcp));
        for other in ["127.0.0.1:0", &format!("127.0.0.2:{port}"), &format!("udp:127.0.0.1:{port}"), "nonsense"] {
            assert!(!matches(other, &tcp), "{other}");
        }
        let udp = open("udp:127.0.0.1:0");
        let port = udp.address().expect("an address").port();
        assert!(matches(format!("udp:localhost:{port}"), &udp));
        assert!(!matches(format!("127.0.0.1:{port}"), &udp));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_unix_socket_matches_by_its_name() {
        let name = format!("unix:@taskfork-matching-{}", std::process::id());
        let socket = open(&name);
        assert!(matches(name.as_str(), &socket));
        assert!(!matches("unix:@taskfork", &socket));
        let path = std::env::temp_dir().join(format!("taskfork-matching-{}", std::process::id()));
        let opened = ListenConfig::unix(&path).open(&mut Retry::never(&mut |_, _| {})).expect("a socket");
        assert!(matches(ListenConfig::unix(&path), &opened.listener));
        assert!(!matches(ListenConfig::unix("/other"), &opened.listener));
    }
}
