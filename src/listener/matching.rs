//! Finds the existing socket for the settings of a listener.

use std::net::{SocketAddr, ToSocketAddrs};

use super::config::{ListenConfig, Source};
use super::{BoundSocket, Listener};

/// The addresses at which the socket of a listener can be. An address whose port the system chooses is not among them,
/// because each call gets another port.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FixedAddresses {
    Tcp(Vec<SocketAddr>),
    Udp(Vec<SocketAddr>),
    /// The text of a Unix address.
    #[cfg(unix)]
    Unix(String),
    None,
}

/// Returns the addresses of a listener. A name is looked up.
pub(super) fn fixed_addresses(listen: &ListenConfig) -> FixedAddresses {
    match &listen.source {
        Source::Name(name) => match name.strip_prefix("udp:") {
            Some(name) => FixedAddresses::Udp(look_up(name)),
            None => FixedAddresses::Tcp(look_up(name)),
        },
        Source::Address(address) => FixedAddresses::Tcp(with_port(*address).into_iter().collect()),
        #[cfg(unix)]
        Source::Path(_) | Source::Abstract(_) => FixedAddresses::Unix(listen.to_string()),
        Source::Bound(_) => FixedAddresses::None,
    }
}

impl FixedAddresses {
    /// Returns whether the socket has one of these addresses.
    pub fn has(&self, socket: &Listener) -> bool {
        let is_among = |addresses: &[SocketAddr]| socket.address().is_ok_and(|address| addresses.contains(&address));
        match (self, socket.socket()) {
            (FixedAddresses::Tcp(addresses), BoundSocket::Tcp(_)) => is_among(addresses),
            (FixedAddresses::Udp(addresses), BoundSocket::Udp(_)) => is_among(addresses),
            #[cfg(unix)]
            (FixedAddresses::Unix(text), BoundSocket::Unix(_)) => *text == socket.to_string(),
            _ => false,
        }
    }
}

fn look_up(name: &str) -> Vec<SocketAddr> {
    name.to_socket_addrs().map_or_else(|_| Vec::new(), |addresses| addresses.flat_map(with_port).collect())
}

fn with_port(address: SocketAddr) -> Option<SocketAddr> {
    (address.port() != 0).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::super::retry::Retry;
    use super::*;

    fn open(address: &str) -> Listener {
        ListenConfig::from(address).open(&mut Retry::never(&mut |_, _| {})).expect("a socket").listener
    }

    fn matches(address: &str, socket: &Listener) -> bool {
        fixed_addresses(&address.into()).has(socket)
    }

    #[test]
    fn another_spelling_of_an_address_matches() {
        let tcp = open("127.0.0.1:0");
        let port = tcp.address().expect("an address").port();
        assert!(matches(&format!("127.0.0.1:{port}"), &tcp));
        assert!(matches(&format!("localhost:{port}"), &tcp));
        assert!(fixed_addresses(&SocketAddr::from(([127, 0, 0, 1], port)).into()).has(&tcp));
        for other in ["127.0.0.1:0", &format!("127.0.0.2:{port}"), &format!("udp:127.0.0.1:{port}"), "nonsense"] {
            assert!(!matches(other, &tcp), "{other}");
        }
        let udp = open("udp:127.0.0.1:0");
        let port = udp.address().expect("an address").port();
        assert!(matches(&format!("udp:localhost:{port}"), &udp));
        assert!(!matches(&format!("127.0.0.1:{port}"), &udp));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_unix_socket_matches_by_its_name() {
        let name = format!("unix:@taskfork-matching-{}", std::process::id());
        let socket = open(&name);
        assert!(matches(&name, &socket));
        assert!(!matches("unix:@taskfork", &socket));
    }
}
