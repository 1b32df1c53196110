//! Tests of the examples with sockets, as their clients and their operator see them. The examples `echo` and
//! `tokio_tcp` implement the same service, so they share tests.

#![cfg(unix)]

use std::io::{BufRead, BufReader, Lines, Read, Write};
#[cfg(target_os = "linux")]
use std::net::UdpSocket;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, getuid};
use socket2::{Domain, Socket, Type};

const EXAMPLES: [&str; 2] = ["echo", "tokio_tcp"];

/// A step that takes longer than this fails the test.
const LIMIT: Duration = Duration::from_secs(60);

/// Arguments with timeouts so long that a stopping worker never closes the connection of a slow client.
const PATIENT: [&str; 4] = ["--idle-timeout", "600000", "--graceful-timeout", "600"];

struct Service {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    /// The lines read so far.
    log: Vec<String>,
    address: SocketAddr,
}

impl Service {
    /// Starts the example with two workers, and waits until both serve.
    fn start(example: &str, args: &[&str]) -> Service {
        let test = std::env::current_exe().unwrap();
        // target/debug/deps/examples-1234 to target/debug/examples/echo
        let example = test.ancestors().nth(2).unwrap().join("examples").join(example);
        assert!(example.exists(), "`cargo test` without a test target builds it, and so does `cargo build --examples`");
        let mut command = Command::new(example);
        command.args(["--workers", "2"]).args(args).env_remove("RUST_LOG");
        if !args.contains(&"--bind") {
            command.args(["--bind", "127.0.0.1:0"]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut service = Service { child, lines, log: Vec::new(), address: ([0; 4], 0).into() };
        let line = service.wait_for("Listening on ");
        let address = line.split_once("Listening on ").unwrap().1;
        service.address = address.trim_start_matches("udp:").parse().unwrap();
        service.wait_for(" is serving");
        service.wait_for(" is serving");
        service
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn wait_for(&mut self, text: &str) -> String {
        for line in self.lines.by_ref().map(Result::unwrap) {
            self.log.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
        panic!("no line contains '{text}': {:#?}", self.log)
    }

    fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Returns `clients` clients that are connected at the same time. Each has got one answer.
    fn connect_all(&self, clients: usize) -> Vec<Client> {
        let mut clients: Vec<Client> = (0..clients).map(|_| self.connect()).collect();
        echo_all(&mut clients, "hello");
        clients
    }

    /// Waits until every process has closed the log. Asserts that `workers` workers have drained in total, and that the
    /// exit status is 0.
    fn assert_drains(mut self, workers: usize) {
        self.log.extend(self.lines.by_ref().map(Result::unwrap));
        assert_eq!(self.log.iter().filter(|line| line.ends_with(" has drained")).count(), workers, "{:#?}", self.log);
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{:#?}", self.log);
    }
}

/// Kills the parent. The workers exit when their parent exits, so a failed test leaves no process behind.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client {
    stream: TcpStream,
}

impl Client {
    /// Connects with a small receive buffer, so that the server can write only little at a time.
    fn connect(address: SocketAddr) -> Client {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect_timeout(&address.into(), LIMIT).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_write_timeout(Some(LIMIT)).unwrap();
        Client { stream: socket.into() }
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn assert_receives(&mut self, text: &str) {
        let mut answer = vec![0; text.len()];
        self.stream.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), text);
    }

    /// Sends and receives at the same time, because the server cannot buffer `length` bytes.
    fn echo_much(&mut self, length: usize) {
        // The pattern's length is a prime number, so that the comparison detects lost or swapped blocks.
        let bytes: Vec<u8> = (0..251).cycle().take(length).collect();
        let mut answer = vec![0; length];
        thread::scope(|scope| {
            scope.spawn(|| (&self.stream).write_all(&bytes).unwrap());
            (&self.stream).read_exact(&mut answer).unwrap();
        });
        assert!(answer == bytes, "the answer differs from the request");
    }

    /// Sends `text` and closes the sending side. Asserts that the server still answers it, and then closes the
    /// connection.
    fn close(mut self, text: &str) {
        self.send(text);
        self.stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, text);
    }
}

/// Sends a text from every client before the first client reads its answer.
fn echo_all(clients: &mut [Client], text: &str) {
    let text = |n: usize| format!("{text} {n}\n");
    clients.iter_mut().enumerate().for_each(|(n, client)| client.send(&text(n)));
    clients.iter_mut().enumerate().for_each(|(n, client)| client.assert_receives(&text(n)));
}

#[test]
fn hundreds_of_clients_are_served_concurrently() {
    for example in EXAMPLES {
        let service = Service::start(example, &[]);
        let mut clients = service.connect_all(300);
        echo_all(&mut clients, "and");
        thread::scope(|scope| {
            for client in clients.iter_mut().step_by(10) {
                scope.spawn(|| client.echo_much(1 << 20));
            }
        });
        // This is more than the kernel's send buffer can hold (`net.ipv4.tcp_wmem`), so the server has to continue
        // partial writes.
        clients[0].echo_much(16 << 20);
        echo_all(&mut clients, "again");
        clients.into_iter().for_each(|client| client.close("bye"));
        service.signal(Signal::SIGTERM);
        service.assert_drains(2);
    }
}

#[test]
fn rolling_restart_serves_open_connections_until_they_close() {
    for example in EXAMPLES {
        let mut service = Service::start(example, &PATIENT);
        let mut old = service.connect_all(300);
        service.signal(Signal::SIGHUP);
        service.wait_for(" is draining");
        echo_all(&mut old, "still here");
        let mut new = service.connect_all(10);
        old[0].echo_much(1 << 20);
        old.into_iter().for_each(|client| client.close("bye"));
        // An old worker also keeps serving the new clients that it has accepted.
        echo_all(&mut new, "new here");
        new.into_iter().for_each(|client| client.close("bye"));
        service.wait_for("Rolling restart done");
        let mut client = service.connect();
        client.send("hello");
        client.assert_receives("hello");
        service.signal(Signal::SIGTERM);
        client.close("bye");
        service.assert_drains(4);
    }
}

#[test]
fn stop_lets_open_connections_finish() {
    for example in EXAMPLES {
        let mut service = Service::start(example, &PATIENT);
        let mut clients = service.connect_all(20);
        service.signal(Signal::SIGTERM);
        service.wait_for(" is draining");
        service.wait_for(" is draining");
        echo_all(&mut clients, "still here");
        clients[0].echo_much(1 << 20);
        clients.into_iter().for_each(|client| client.close("bye"));
        service.assert_drains(2);
    }
}

#[test]
fn silent_client_does_not_delay_a_stop() {
    for example in EXAMPLES {
        let service = Service::start(example, &[]);
        let mut client = service.connect();
        client.send("hello");
        client.assert_receives("hello");
        service.signal(Signal::SIGTERM);
        assert_eq!(client.stream.read_to_end(&mut Vec::new()).unwrap(), 0);
        service.assert_drains(2);
    }
}

/// If the test does not run as root, it uses any free port and the user that runs it.
#[test]
fn privileged_port_is_served_by_an_unprivileged_user() {
    let is_root = getuid().is_root();
    let user = if is_root { User::from_name("nobody") } else { User::from_uid(getuid()) };
    let user = user.unwrap().expect("a user");
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = if is_root { (600..1024).rev().find(is_free).expect("a port") } else { 0 };
    let mut service = Service::start("privileged", &["--bind", &format!("127.0.0.1:{port}"), "--user", &user.name]);
    let greeting = |service: &Service| {
        let mut greeting = String::new();
        service.connect().stream.read_to_string(&mut greeting).unwrap();
        assert!(greeting.ends_with(&format!(", user {}, group {}\n", user.uid, user.gid)), "{greeting:?}");
        greeting
    };
    let first = greeting(&service);
    let pid = first.split(['(', ')', ' ']).find_map(|word| word.parse().ok().filter(|&number| number > 1)).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    service.wait_for(" is serving");
    greeting(&service);
    service.signal(Signal::SIGHUP);
    service.wait_for("Rolling restart done");
    greeting(&service);
    service.signal(Signal::SIGTERM);
    service.assert_drains(0);
}

/// A client of the `udp` example. Each answer has the worker's name and the number of datagrams that the worker has
/// counted from this client.
#[cfg(target_os = "linux")]
struct Sender(UdpSocket);

#[cfg(target_os = "linux")]
impl Sender {
    fn new(service: &Service) -> Sender {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(service.address).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Sender(socket)
    }

    fn ask(&self) -> (String, u64) {
        self.0.send(b"?").unwrap();
        let mut answer = [0; 100];
        let len = loop {
            match self.0.recv(&mut answer) {
                // A receive with a timeout can fail with EINTR after this process was stopped and continued: signal(7).
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                received => break received.unwrap(),
            }
        };
        let answer = std::str::from_utf8(&answer[..len]).unwrap();
        let (worker, count) = answer.split_once(" has ").unwrap();
        (worker.to_owned(), count.trim_end().parse().unwrap())
    }
}

#[test]
#[cfg(target_os = "linux")]
fn udp_senders_stick_to_a_worker_and_all_serve() {
    for args in [&[][..], &["--by-cpu"]] {
        let service = Service::start("udp", args);
        let senders: Vec<Sender> = (0..50).map(|_| Sender::new(&service)).collect();
        let mut workers = std::collections::BTreeSet::new();
        for sender in &senders {
            let (worker, count) = sender.ask();
            assert_eq!(count, 1);
            if args.is_empty() {
                assert_eq!([sender.ask(), sender.ask()], [(worker.clone(), 2), (worker.clone(), 3)]);
            }
            workers.insert(worker);
        }
        assert!(workers.len() == 2 || !args.is_empty(), "{workers:?}");
        service.signal(Signal::SIGTERM);
        service.assert_drains(2);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn rolling_restart_and_scaling_lose_no_datagram() {
    let mut service = Service::start("udp", &[]);
    let is_over = AtomicBool::new(false);
    let senders: Vec<Sender> = (0..4).map(|_| Sender::new(&service)).collect();
    thread::scope(|scope| {
        for sender in &senders {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    sender.ask();
                }
            });
        }
        service.signal(Signal::SIGHUP);
        service.wait_for("Rolling restart done");
        for _ in 0..3 {
            service.signal(Signal::SIGTTIN);
            service.wait_for(" is serving");
            service.signal(Signal::SIGTTOU);
            service.wait_for(" has drained");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    service.signal(Signal::SIGTERM);
    service.assert_drains(2 + 2 + 3);
}
