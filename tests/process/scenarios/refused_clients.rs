//! Clients that connect while the service stops: they are refused as soon as no worker listens any more.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};

use taskfork::{Prefork, Report, Worker};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::Signal;
#[cfg(unix)]
use crate::program::{fail, scratch};
use crate::program::{say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("the_last_listening_worker_still_gets_clients", one_listens_on, |daemon| {
            let address = address(daemon);
            daemon.workers(2);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("stopped listening 0");
            assert_eq!(talk(TcpStream::connect(address).expect("a listener")), "served\n");
            daemon.ends_with(0);
        }),
        #[cfg(unix)]
        Scenario::reporting("new_clients_are_refused_while_workers_drain", two_drain, |daemon| {
            let address = address(daemon);
            daemon.workers(2);
            let kept = keep(daemon, address);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for_times("stopped listening", 2);
            wait_until_refused(address);
            assert_eq!(talk(kept), "served\n");
            daemon.ends_with(0);
        }),
        #[cfg(unix)]
        Scenario::reporting("new_clients_are_refused_after_the_restart_limit", one_fails, |daemon| {
            let address = address(daemon);
            daemon.workers(2);
            let kept = keep(daemon, address);
            std::fs::write(daemon.scratch().join("fail"), "").expect("a file");
            daemon.wait_for("stopped listening");
            wait_until_refused(address);
            assert_eq!(talk(kept), "served\n");
            daemon.ends_with(1);
            assert!(daemon.said(&daemon.failed(3)), "{}", daemon.transcript());
        }),
        #[cfg(unix)]
        Scenario::reporting("a_new_service_gets_the_path_while_workers_drain", one_on_a_path, |daemon| {
            daemon.worker();
            let path = daemon.scratch().join("socket");
            let mut kept = UnixStream::connect(&path).expect("a listener");
            daemon.wait_for("accepted");
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("stopped listening");
            while let Err(error) =
                UnixListener::bind(&path).map(|listener| drop((listener, UnixStream::connect(&path))))
            {
                assert_eq!(error.kind(), ErrorKind::AddrInUse);
                std::thread::yield_now();
            }
            kept.write_all(b"!").expect("a worker");
            let mut line = String::new();
            kept.read_to_string(&mut line).expect("an answer");
            assert_eq!(line, "served\n");
            daemon.ends_with(0);
            assert!(path.exists(), "the file of the new service stays");
        }),
    ]
}

fn address(daemon: &mut Daemon) -> SocketAddr {
    let line = daemon.wait_for("log Listening on ");
    line.trim_start_matches("log Listening on ").parse().expect("an address")
}

#[cfg(unix)]
/// Connects to a worker, and waits until the worker has accepted the connection.
fn keep(daemon: &mut Daemon, address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("a listener");
    daemon.wait_for("accepted");
    client
}

#[cfg(unix)]
/// Connects again and again, because the parent may close its sockets later than the workers.
pub fn wait_until_refused(address: SocketAddr) {
    loop {
        match TcpStream::connect(address) {
            Ok(_) => std::thread::yield_now(),
            // A client whose handshake ends at the moment of the close is reset.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}"),
        }
    }
}

fn talk(mut client: TcpStream) -> String {
    client.write_all(b"!").expect("a worker");
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).expect("an answer");
    line
}

/// Accepts one connection or none, waits for a stop request, stops listening, and then answers the client.
fn drain_one(worker: &Worker) {
    let accepted = worker.listeners()[0].accept();
    if accepted.is_ok() {
        say("accepted");
    }
    assert!(worker.wait_for_stop(None));
    worker.stop_listening();
    say(&format!("stopped listening {}", worker.id()));
    if let Ok((mut client, _)) = accepted {
        client.read_exact(&mut [0]).expect("a client");
        client.write_all(b"served\n").expect("a client");
    }
}

#[cfg(unix)]
fn two_drain() -> Report {
    serve(Prefork::new().workers(2).listen("127.0.0.1:0"), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        drain_one(&worker);
    })
}

/// Worker 0 stops listening at once. Worker 1 accepts one more client.
fn one_listens_on() -> Report {
    serve(Prefork::new().workers(2).listen("127.0.0.1:0"), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        assert!(worker.wait_for_stop(None));
        if worker.id() == 0 {
            return drain_one(&worker);
        }
        let listener = worker.tcp(0).expect("a clone");
        let mut client = loop {
            match listener.accept() {
                Ok((client, _)) => break client,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            std::thread::yield_now();
        };
        client.set_nonblocking(false).expect("a client");
        client.read_exact(&mut [0]).expect("a client");
        client.write_all(b"served\n").expect("a client");
    })
}

#[cfg(unix)]
/// Worker 0 fails when worker 1 has accepted a client.
fn one_fails() -> Report {
    serve(Prefork::new().workers(2).max_restarts(0).listen("127.0.0.1:0"), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        if worker.id() == 1 {
            return drain_one(&worker);
        }
        while !scratch().join("fail").exists() {
            std::thread::yield_now();
        }
        fail(3);
    })
}

#[cfg(unix)]
fn one_on_a_path() -> Report {
    serve(Prefork::new().workers(1).listen(format!("unix:{}", scratch().join("socket").display())), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        drain_one(&worker);
    })
}
