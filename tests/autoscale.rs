//! Tests of the example `autoscale`, as its operator and its clients see it.

#![cfg(unix)]

#[allow(dead_code)] // Each test uses a part of it.
mod daemon;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use daemon::{Daemon, LIMIT, command};
use nix::sys::signal::Signal;

struct Client(TcpStream);

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Client(stream)
    }

    fn send(&mut self) {
        self.0.write_all(b"hello").unwrap();
    }

    fn assert_gets_answer(&mut self) {
        let mut answer = [0; 5];
        self.0.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
    }
}

/// Each worker serves one client at a time, so five clients that are connected at the same time get an answer only if
/// there are five workers. On Linux, the queue shows the waiting clients. Elsewhere, the workers are added one by one.
#[test]
fn workers_follow_a_load_that_rises_and_falls() {
    let mut service = Daemon::spawn(command("autoscale").env("RUST_LOG", "info").args(["127.0.0.1:0", "20"]));
    let address = service.address();
    let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(address)).collect();
    clients.iter_mut().for_each(Client::send);
    clients.iter_mut().for_each(Client::assert_gets_answer);
    service.wait_for(|log| log.iter().any(|line| line.contains("Scaled to 6 workers")).then_some(()));
    let mut last = clients.pop().unwrap();
    drop(clients);
    service.wait_for_next("Scaled to 2 workers");
    // The client's worker may have been removed. It serves the client until the end.
    last.send();
    last.assert_gets_answer();
    drop(last);
    service.wait_for_next("Scaled to 1 workers");
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(address)).collect();
    clients.iter_mut().for_each(Client::send);
    clients.iter_mut().for_each(Client::assert_gets_answer);
    drop(clients);
    service.kill(Signal::SIGTERM);
    assert_eq!(service.wait(), Some(0));
}
