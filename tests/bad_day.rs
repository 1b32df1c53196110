//! Tests of the examples that listen, when things go wrong: killed workers, a killed parent, stops and rolling restarts
//! while a client waits for its answer.

#![cfg(unix)]

mod daemon;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
#[cfg(target_os = "linux")]
use std::net::{TcpListener, UdpSocket};
use std::thread;
use std::time::Instant;

use daemon::{Daemon, LIMIT, count};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// An example with TCP clients.
#[derive(Clone, Copy)]
struct Example {
    name: &'static str,
    args: &'static [&'static str],
    protocol: Protocol,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    Echo,
}

const SERVICE: Example = Example { name: "service", args: &["127.0.0.1:0"], protocol: Protocol::Http };
const HTTP: Example =
    Example { name: "http", args: &["--workers", "2", "--bind", "127.0.0.1:0"], protocol: Protocol::Http };
/// The arguments prevent that a stopping worker closes the connection of a silent client.
const PATIENT: &[&str] = &["--workers", "2", "--bind", "127.0.0.1:0", "--idle-timeout", "600000"];
const ECHO: Example = Example { name: "echo", args: PATIENT, protocol: Protocol::Echo };
const TOKIO_TCP: Example = Example { name: "tokio_tcp", args: PATIENT, protocol: Protocol::Echo };
const ALL: [Example; 4] = [SERVICE, HTTP, ECHO, TOKIO_TCP];

impl Example {
    /// Starts the example, and waits until all workers are ready. Returns the pids of the workers too.
    fn start(self, more: &[&str]) -> (Daemon, BTreeSet<i32>) {
        let mut command = daemon::command(self.name);
        command.env("RUST_LOG", "info,taskfork=debug").args(self.args).args(more);
        let mut daemon = Daemon::spawn(&mut command);
        let workers = daemon.wait_for(|log| log.iter().find_map(|line| number_after(line, "Starting ")));
        let pids = daemon.wait_for(|log| Some(ready(log)).filter(|pids| pids.len() == workers as usize));
        (daemon, pids)
    }
}

/// Returns the pids of all workers that were ready, even if they have exited since.
fn ready(log: &[String]) -> BTreeSet<i32> {
    let lines = log.iter().filter(|line| line.ends_with(" is ready"));
    lines.map(|line| number_after(line, "(pid ").expect("the pid of a worker")).collect()
}

/// Returns the pids of all workers of the example `udp` that have served, even if they have exited since.
#[cfg(target_os = "linux")]
fn serving(log: &[String]) -> BTreeSet<i32> {
    log.iter().filter(|line| line.ends_with(" is serving")).filter_map(|line| number_after(line, "(pid ")).collect()
}

fn number_after(line: &str, text: &str) -> Option<i32> {
    line.split_once(text)?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn kill(pid: i32, signal: Signal) {
    signal::kill(Pid::from_raw(pid), signal).unwrap();
}

/// A client that has sent half of its request, on a connection that a worker has accepted.
struct OpenRequest {
    stream: TcpStream,
    protocol: Protocol,
}

impl OpenRequest {
    fn new(example: Example, daemon: &mut Daemon) -> OpenRequest {
        let stream = connect(daemon.address()).unwrap();
        let mut request = OpenRequest { stream, protocol: example.protocol };
        match request.protocol {
            Protocol::Http => {
                let head = "POST / HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 10\r\n";
                request.send(&format!("{head}expect: 100-continue\r\n\r\n"));
                // The server sends this line when its handler begins to read the body.
                request.receive("HTTP/1.1 100 Continue\r\n\r\n");
                request.send("first");
            }
            Protocol::Echo => {
                request.send("first");
                request.receive("first");
            }
        }
        request
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn receive(&mut self, text: &str) {
        let mut received = vec![0; text.len()];
        self.stream.read_exact(&mut received).unwrap();
        assert_eq!(String::from_utf8(received).unwrap(), text);
    }

    /// Sends the rest of the request.
    fn complete(&mut self) -> io::Result<()> {
        self.stream.write_all(b" last")?;
        if self.protocol == Protocol::Echo { self.stream.shutdown(Shutdown::Write) } else { Ok(()) }
    }

    /// Reads the answer until the server closes the connection. Returns whether the answer is right.
    fn is_answered(&mut self) -> io::Result<bool> {
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer)?;
        Ok(match self.protocol {
            Protocol::Http => answer.ends_with("\r\n\r\nfirst last") || answer.ends_with(" received 10 bytes\n"),
            Protocol::Echo => answer == " last",
        })
    }

    fn assert_answered(mut self) {
        self.complete().unwrap();
        assert!(self.is_answered().unwrap());
    }

    fn assert_lost(mut self) {
        let answered = self.complete().and_then(|()| self.is_answered());
        assert!(!matches!(answered, Ok(true)));
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn assert_exits_0(mut daemon: Daemon) {
    assert_eq!(daemon.wait(), Some(0));
    assert_eq!(count(&daemon.log, "did not stop in time"), 0);
}

#[test]
fn killed_workers_are_replaced() {
    for example in ALL {
        let (mut daemon, old) = example.start(&[]);
        let lost = OpenRequest::new(example, &mut daemon);
        old.iter().for_each(|&pid| kill(pid, Signal::SIGKILL));
        // No worker is left, so this client's connection waits in the queue of the listener.
        OpenRequest::new(example, &mut daemon).assert_answered();
        daemon.wait_for(|log| (ready(log).len() == 2 * old.len()).then_some(()));
        lost.assert_lost();
        OpenRequest::new(example, &mut daemon).assert_answered();
        daemon.kill(Signal::SIGTERM);
        assert_exits_0(daemon);
    }
}

#[test]
fn stop_answers_an_open_request() {
    for example in ALL {
        let (mut daemon, _) = example.start(&[]);
        let request = OpenRequest::new(example, &mut daemon);
        daemon.kill(Signal::SIGTERM);
        daemon.wait_for_next("Stopping ");
        request.assert_answered();
        assert_exits_0(daemon);
    }
}

#[test]
fn stopping_service_refuses_new_clients() {
    for example in ALL {
        let (mut daemon, _) = example.start(&[]);
        let request = OpenRequest::new(example, &mut daemon);
        daemon.kill(Signal::SIGTERM);
        wait_until_refused(daemon.address());
        request.assert_answered();
        assert_exits_0(daemon);
    }
}

/// Polls, because a client may still connect until the last process has closed its listener.
fn wait_until_refused(address: SocketAddr) {
    let until = Instant::now() + LIMIT;
    loop {
        match connect(address) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
            _ => assert!(Instant::now() < until, "{address} still accepts clients"),
        }
        thread::yield_now();
    }
}

#[test]
fn pause_of_all_processes_cuts_off_no_request() {
    thread::scope(|scope| {
        for example in [HTTP, ECHO, TOKIO_TCP] {
            scope.spawn(move || pause_during_a_drain(example));
        }
    });
}

/// The deadline of the paused service has passed when the deadline of another service has, which began later and is
/// longer by a second.
fn pause_during_a_drain(example: Example) {
    let (mut daemon, _) = example.start(&["--graceful-timeout", "4"]);
    let (mut later, _) = example.start(&["--graceful-timeout", "5"]);
    let mut request = OpenRequest::new(example, &mut daemon);
    let _unanswered = OpenRequest::new(example, &mut later);
    daemon.kill(Signal::SIGTERM);
    daemon.wait_for_next("Stopping ");
    signal::killpg(daemon.pid(), Signal::SIGSTOP).unwrap();
    later.kill(Signal::SIGTERM);
    later.wait_for_next("did not stop in time, killing it");
    request.complete().unwrap();
    signal::killpg(daemon.pid(), Signal::SIGCONT).unwrap();
    assert!(request.is_answered().unwrap());
    assert_exits_0(daemon);
}

/// The worker with the open request exits only when it has answered, the others exit at once.
#[test]
fn terminated_workers_answer_and_are_replaced_at_no_cost() {
    for example in ALL {
        let (mut daemon, first) = example.start(&[]);
        let mut workers = first.clone();
        let mut all = first.clone();
        for _ in 0..2 {
            let request = OpenRequest::new(example, &mut daemon);
            workers.iter().for_each(|&pid| kill(pid, Signal::SIGTERM));
            request.assert_answered();
            let now_all = daemon.wait_for(|log| Some(ready(log)).filter(|now| now.len() == all.len() + first.len()));
            workers = now_all.difference(&all).copied().collect();
            all = now_all;
        }
        OpenRequest::new(example, &mut daemon).assert_answered();
        assert_eq!(count(&daemon.log, "after a stop request from another process"), 2 * first.len());
        daemon.kill(Signal::SIGTERM);
        assert_exits_0(daemon);
    }
}

#[test]
fn rolling_restart_does_not_wait_for_open_requests() {
    for example in ALL {
        let (mut daemon, old) = example.start(&[]);
        // Several requests, so that more than one worker has some. (The kernel distributes them.)
        let requests: Vec<OpenRequest> = (0..16).map(|_| OpenRequest::new(example, &mut daemon)).collect();
        daemon.kill(Signal::SIGHUP);
        daemon.wait_for(|log| (ready(log).len() == 2 * old.len()).then_some(()));
        OpenRequest::new(example, &mut daemon).assert_answered();
        requests.into_iter().for_each(OpenRequest::assert_answered);
        daemon.wait_for_next("Rolling restart done");
        daemon.kill(Signal::SIGTERM);
        assert_exits_0(daemon);
    }
}

#[test]
fn second_stop_request_cuts_off_an_open_request() {
    for example in ALL {
        let (mut daemon, _) = example.start(&[]);
        let request = OpenRequest::new(example, &mut daemon);
        daemon.kill(Signal::SIGTERM);
        daemon.wait_for_next("Stopping ");
        daemon.kill(Signal::SIGTERM);
        assert_exits_0(daemon);
        request.assert_lost();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn workers_of_a_killed_parent_answer_and_free_the_port() {
    for example in ALL {
        let (mut daemon, _) = example.start(&[]);
        let address = daemon.address();
        let request = OpenRequest::new(example, &mut daemon);
        daemon.kill(Signal::SIGKILL);
        request.assert_answered();
        wait_until_free(address, TcpListener::bind);
        assert_eq!(daemon.wait(), None);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn udp_service_survives_killed_workers_and_frees_its_port() {
    let mut command = daemon::command("udp");
    let mut daemon = Daemon::spawn(command.args(["--workers", "2", "--bind", "127.0.0.1:0"]));
    let address = daemon.address();
    let workers = daemon.wait_for(|log| Some(serving(log)).filter(|pids| pids.len() == 2));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.connect(address).unwrap();
    workers.iter().for_each(|&pid| kill(pid, Signal::SIGKILL));
    let mut answer = [0; 100];
    client.send(b"?").unwrap();
    client.recv(&mut answer).unwrap();
    daemon.wait_for(|log| (serving(log).len() == 4).then_some(()));
    client.send(b"?").unwrap();
    client.recv(&mut answer).unwrap();
    daemon.kill(Signal::SIGKILL);
    wait_until_free(address, UdpSocket::bind);
    assert_eq!(daemon.wait(), None);
}

#[test]
#[cfg(target_os = "linux")]
fn hung_workers_of_a_killed_parent_free_the_port() {
    for example in [HTTP, ECHO, TOKIO_TCP] {
        let (mut daemon, _) = example.start(&["--graceful-timeout", "1"]);
        let address = daemon.address();
        let request = OpenRequest::new(example, &mut daemon);
        daemon.kill(Signal::SIGKILL);
        wait_until_free(address, TcpListener::bind);
        assert_eq!(daemon.wait(), None);
        request.assert_lost();
    }
}

/// Polls, because the system reports in no other way that the last process has closed a listener.
#[cfg(target_os = "linux")]
fn wait_until_free<T>(address: SocketAddr, bind: fn(SocketAddr) -> io::Result<T>) {
    let until = Instant::now() + LIMIT;
    while let Err(error) = bind(address) {
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(Instant::now() < until, "{address} is still in use");
        thread::yield_now();
    }
}
