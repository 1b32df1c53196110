//! What the clients and the operator of the examples with sockets would notice. Two of them are the same service.

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

/// What takes longer than this will never happen.
const LIMIT: Duration = Duration::from_secs(60);

/// So that a client is never too slow for a worker that stops.
const PATIENT: [&str; 4] = ["--idle-timeout", "600000", "--graceful-timeout", "600"];

struct Service {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    /// What has been read of `lines`.
    log: Vec<String>,
    address: SocketAddr,
}

impl Service {
    /// With two workers, both of whom serve.
    fn start(example: &str, args: &[&str]) -> Service {
        let test = std::env::current_exe().unwrap();
        // target/debug/deps/examples-1234 to target/debug/examples/echo
        let example = test.ancestors().nth(2).unwrap().join("examples").join(example);
        assert!(example.exists(), "a plain `cargo test` builds it, and so does `cargo build --examples`");
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

    fn ask(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn wait_for(&mut self, text: &str) -> String {
        for line in self.lines.by_ref().map(Result::unwrap) {
            self.log.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
        panic!("nobody said '{text}': {:#?}", self.log)
    }

    fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// All at the same time, and each has been answered once.
    fn connect_all(&self, clients: usize) -> Vec<Client> {
        let mut clients: Vec<Client> = (0..clients).map(|_| self.connect()).collect();
        echo_all(&mut clients, "hello");
        clients
    }

    /// It exits 0, after so many workers in all have gone by themselves, and the last process has let go of the log.
    fn assert_drains(mut self, workers: usize) {
        self.log.extend(self.lines.by_ref().map(Result::unwrap));
        assert_eq!(self.log.iter().filter(|line| line.ends_with(" has drained")).count(), workers, "{:#?}", self.log);
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{:#?}", self.log);
    }
}

/// A test that failed leaves nobody behind: the workers end with their parent.
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
    /// With a small buffer, so that the server cannot write much at a time.
    fn connect(address: SocketAddr) -> Client {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect_timeout(&address.into(), LIMIT).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_write_timeout(Some(LIMIT)).unwrap();
        Client { stream: socket.into() }
    }

    fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn assert_hears(&mut self, text: &str) {
        let mut heard = vec![0; text.len()];
        self.stream.read_exact(&mut heard).unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), text);
    }

    /// More than the server has room for, so that it has to be taken back meanwhile.
    fn echo_much(&mut self, length: usize) {
        // A prime, so that what is lost or swapped in blocks does not go unnoticed.
        let bytes: Vec<u8> = (0..251).cycle().take(length).collect();
        let mut heard = vec![0; length];
        thread::scope(|scope| {
            scope.spawn(|| (&self.stream).write_all(&bytes).unwrap());
            (&self.stream).read_exact(&mut heard).unwrap();
        });
        assert!(heard == bytes, "it was to be the same");
    }

    /// What it has said is answered though it says no more, and nothing else is.
    fn close(mut self, text: &str) {
        self.say(text);
        self.stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        self.stream.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, text);
    }
}

/// All have said it before the first one hears it.
fn echo_all(clients: &mut [Client], text: &str) {
    let text = |n: usize| format!("{text} {n}\n");
    clients.iter_mut().enumerate().for_each(|(n, client)| client.say(&text(n)));
    clients.iter_mut().enumerate().for_each(|(n, client)| client.assert_hears(&text(n)));
}

#[test]
fn hundreds_of_clients_are_answered_at_once() {
    for example in EXAMPLES {
        let service = Service::start(example, &[]);
        let mut clients = service.connect_all(300);
        echo_all(&mut clients, "and");
        thread::scope(|scope| {
            for client in clients.iter_mut().step_by(10) {
                scope.spawn(|| client.echo_much(1 << 20));
            }
        });
        // More than Linux has room for on the way (`net.ipv4.tcp_wmem`), so that the server writes a part of what it could.
        clients[0].echo_much(16 << 20);
        echo_all(&mut clients, "again");
        clients.into_iter().for_each(|client| client.close("bye"));
        service.ask(Signal::SIGTERM);
        service.assert_drains(2);
    }
}

#[test]
fn who_is_connected_when_the_workers_are_replaced_is_served_until_he_goes() {
    for example in EXAMPLES {
        let mut service = Service::start(example, &PATIENT);
        let mut old = service.connect_all(300);
        service.ask(Signal::SIGHUP);
        service.wait_for(" is draining");
        echo_all(&mut old, "still here");
        let mut new = service.connect_all(10);
        old[0].echo_much(1 << 20);
        old.into_iter().for_each(|client| client.close("bye"));
        // Those of them whom an old worker had accepted keep it, too.
        echo_all(&mut new, "new here");
        new.into_iter().for_each(|client| client.close("bye"));
        service.wait_for("Rolling restart done");
        let mut client = service.connect();
        client.say("hello");
        client.assert_hears("hello");
        service.ask(Signal::SIGTERM);
        client.close("bye");
        service.assert_drains(4);
    }
}

#[test]
fn who_is_connected_when_all_is_to_stop_may_finish() {
    for example in EXAMPLES {
        let mut service = Service::start(example, &PATIENT);
        let mut clients = service.connect_all(20);
        service.ask(Signal::SIGTERM);
        service.wait_for(" is draining");
        service.wait_for(" is draining");
        echo_all(&mut clients, "still here");
        clients[0].echo_much(1 << 20);
        clients.into_iter().for_each(|client| client.close("bye"));
        service.assert_drains(2);
    }
}

#[test]
fn who_says_nothing_does_not_hold_up_a_stop() {
    for example in EXAMPLES {
        let service = Service::start(example, &[]);
        let mut client = service.connect();
        client.say("hello");
        client.assert_hears("hello");
        service.ask(Signal::SIGTERM);
        assert_eq!(client.stream.read_to_end(&mut Vec::new()).unwrap(), 0);
        service.assert_drains(2);
    }
}

/// As far as there is a root to begin with: otherwise the port is any, and who serves it is who has started it.
#[test]
fn a_port_that_takes_root_is_served_by_somebody_else() {
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
    service.ask(Signal::SIGHUP);
    service.wait_for("Rolling restart done");
    greeting(&service);
    service.ask(Signal::SIGTERM);
    service.assert_drains(0);
}

/// Of the example `udp`. It is answered by whom, and what he has counted.
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
                // A wait that has a timeout ends so when this process has been frozen.
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
fn a_sender_of_datagrams_is_counted_by_one_worker_and_each_worker_has_some() {
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
        service.ask(Signal::SIGTERM);
        service.assert_drains(2);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn no_datagram_is_lost_when_workers_are_replaced_added_and_retired() {
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
        service.ask(Signal::SIGHUP);
        service.wait_for("Rolling restart done");
        for _ in 0..3 {
            service.ask(Signal::SIGTTIN);
            service.wait_for(" is serving");
            service.ask(Signal::SIGTTOU);
            service.wait_for(" has drained");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    service.ask(Signal::SIGTERM);
    service.assert_drains(2 + 2 + 3);
}
