//! Tests of the `http` example, as its operator and its clients see it. Each test runs the example as a program.

#![cfg(unix)]

mod daemon;

use std::collections::BTreeSet;
#[cfg(target_os = "linux")]
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use daemon::{Daemon, LIMIT, count};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// The same value as in the example: a stopping worker closes a connection on which it has received no request for this
/// long.
const LINGER: Duration = Duration::from_millis(200);

#[test]
fn answer_has_the_id_and_pid_of_a_worker() {
    let (mut daemon, workers) = Daemon::serving(2);
    assert_eq!(workers.iter().map(|worker| worker.id).collect::<Vec<_>>(), [0, 1]);
    assert!(workers.contains(&daemon.answering_worker()));
}

#[test]
fn term_finishes_open_requests_and_exits_0() {
    finishes_an_open_request(|daemon| daemon.kill(Signal::SIGTERM));
}

#[test]
fn ctrl_c_to_the_group_finishes_open_requests() {
    finishes_an_open_request(|daemon| signal::killpg(daemon.pid(), Signal::SIGINT).unwrap());
}

fn finishes_an_open_request(stop: fn(&Daemon)) {
    let (mut daemon, _) = Daemon::serving(2);
    let (_, mut client) = daemon.hold();
    stop(&daemon);
    daemon.wait_for(|log| (count(log, "is draining") == 2).then_some(()));
    client.send(" last").unwrap();
    let answer = client.answer().unwrap();
    assert!(answer.ends_with(" received 10 bytes\n"), "{answer:?}");
    daemon.assert_drains(2);
}

#[test]
fn graceful_timeout_cuts_off_an_open_request() {
    let mut daemon = Daemon::start(&["--workers", "1", "--graceful-timeout", "1"]);
    let (_, mut client) = daemon.hold();
    daemon.kill(Signal::SIGTERM);
    daemon.wait_for_next("did not stop in time, killing it");
    client.answer().unwrap_err();
    assert_eq!(daemon.wait(), Some(0));
}

#[test]
fn idle_connection_does_not_delay_a_stop() {
    let mut daemon = Daemon::start(&["--workers", "1"]);
    let mut client = Client::connect(daemon.address()).unwrap();
    client.ask(GET).unwrap();
    daemon.kill(Signal::SIGTERM);
    daemon.assert_drains(1);
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

/// Without `connection: close`, a client may send its next request just when the worker closes the connection. This
/// request would be lost.
#[test]
fn stopping_worker_answers_with_connection_close() {
    let (mut daemon, _) = Daemon::serving(1);
    let (worker, mut client) = daemon.hold();
    assert!(!client.is_over);
    worker.kill(Signal::SIGTERM);
    client.send(" last").unwrap();
    client.answer().unwrap();
    assert!(client.is_over);
    // The parent replaces a worker that another process has stopped.
    daemon.wait_for(|log| serving(log).filter(|workers| workers.len() == 2));
    daemon.kill(Signal::SIGTERM);
    daemon.assert_drains(2);
}

/// There is only one worker, so that no other worker can answer the request instead.
#[test]
fn killed_worker_is_replaced_and_the_port_keeps_answering() {
    let mut daemon = Daemon::start(&["--workers", "1"]);
    let killed = daemon.answering_worker();
    killed.kill(Signal::SIGKILL);
    let exit_line = format!("child 0 (pid {}) killed by signal 9", killed.pid);
    daemon.wait_for(|log| (count(log, &exit_line) == 1).then_some(()));
    let successor = daemon.answering_worker();
    assert_eq!(successor.id, killed.id);
    assert_ne!(successor.pid, killed.pid);
    daemon.wait_for(|log| serving(log).filter(|workers| workers.contains(&successor)));
    for _ in 0..100 {
        assert_eq!(daemon.answering_worker(), successor);
    }
    daemon.kill(Signal::SIGTERM);
    daemon.assert_drains(1);
}

#[test]
fn daemon_exits_1_when_max_restarts_is_exceeded() {
    let mut daemon = Daemon::start(&["--workers", "2", "--max-restarts", "0"]);
    let workers = daemon.wait_for(|log| serving(log).filter(|workers| workers.len() == 2));
    workers.first().unwrap().kill(Signal::SIGKILL);
    assert_eq!(daemon.wait(), Some(1));
    assert_eq!(count(&daemon.log, "Too many child restarts (0), giving up"), 1);
    assert_eq!(count(&daemon.log, "has drained"), 1);
}

#[test]
fn web_concurrency_sets_the_worker_count() {
    let mut daemon = Daemon::spawn(command(&["--bind", "127.0.0.1:0"]).env("WEB_CONCURRENCY", "3"));
    let workers = daemon.wait_for(|log| serving(log).filter(|workers| workers.len() == 3));
    assert_eq!(workers.iter().map(|worker| worker.id).collect::<Vec<_>>(), [0, 1, 2]);
    daemon.kill(Signal::SIGTERM);
    daemon.assert_drains(3);
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut daemon = Daemon::spawn(&mut command(&["--workers", "2", "--bind", &address]));
    assert_eq!(daemon.wait(), Some(1));
    let [warning, line] = &daemon.log[..] else { panic!("more or less than two lines: {:#?}", daemon.log) };
    assert!(warning.ends_with(&format!("{address} is in use, trying again for up to 3.0 s")), "{warning}");
    assert!(line.starts_with(&format!("Error: cannot listen on {address}: Address already in use")), "{line}");
}

#[test]
fn repeated_hup_replaces_every_worker_without_losing_requests() {
    hup_under_load(Daemon::serving(2));
}

#[test]
#[cfg(target_os = "linux")]
fn repeated_hup_with_per_worker_sockets_loses_no_request() {
    hup_under_load(Daemon::serving_per_worker(2));
}

fn hup_under_load((mut daemon, old): (Daemon, BTreeSet<Worker>)) {
    const ROLLS: usize = 20;
    let load = Load::start(daemon.address());
    for _ in 0..ROLLS {
        daemon.kill(Signal::SIGHUP);
        daemon.wait_for_next("Rolling restart done");
    }
    load.stop_without_loss();
    let new = daemon.answering_worker();
    assert!(new.id < 2 && !old.contains(&new));
    daemon.kill(Signal::SIGTERM);
    daemon.assert_drains(2 + 2 * ROLLS);
}

#[test]
fn scaling_up_and_down_loses_no_request() {
    scale_under_load(Daemon::serving(2), 15);
}

/// A worker with its own socket drains for a second, so this test runs fewer rounds.
#[test]
#[cfg(target_os = "linux")]
fn scaling_with_per_worker_sockets_loses_no_request() {
    scale_under_load(Daemon::serving_per_worker(2), 5);
}

fn scale_under_load((mut daemon, _): (Daemon, BTreeSet<Worker>), times: usize) {
    let load = Load::start(daemon.address());
    for _ in 0..times {
        // This worker is removed after it has begun to serve.
        daemon.kill(Signal::SIGTTIN);
        daemon.wait_for_next("Scaled to 3 workers");
        daemon.wait_for_next("is serving");
        daemon.kill(Signal::SIGTTOU);
        daemon.wait_for_next("Scaled to 2 workers");
        daemon.wait_for_next("has drained");
        // This worker is removed while it starts. The next round begins after its exit, because the process may log
        // that it serves until then. If the worker is removed early enough, it has no process.
        daemon.kill(Signal::SIGTTIN);
        daemon.wait_for_next("Scaled to 3 workers");
        daemon.kill(Signal::SIGTTOU);
        daemon.wait_for_next("Scaled to 2 workers");
        daemon.wait_for(|log| (processes_of(log, 2) == 0).then_some(()));
    }
    load.stop_without_loss();
    daemon.kill(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0));
}

/// Returns how many processes of this worker are running, according to the log of the parent.
fn processes_of(log: &[String], id: usize) -> usize {
    let worker = format!("child {id} (pid ");
    let count = |ends: &[&str]| {
        let of_worker = log.iter().filter(|line| line.contains(&worker));
        of_worker.filter(|line| ends.iter().any(|end| line.contains(end))).count()
    };
    count(&[" started, "]) - count(&[" exited ", " killed by "])
}

/// The killed worker had not accepted the other requests, so the other workers answer them.
#[test]
#[cfg(target_os = "linux")]
fn killed_worker_loses_only_its_accepted_requests() {
    kill_under_load(Daemon::serving(4), 20);
}

/// There is only one worker, so the requests that it had not accepted wait in the listener's queue for its replacement.
#[test]
#[cfg(target_os = "linux")]
fn killed_only_worker_loses_only_its_accepted_requests() {
    kill_under_load(Daemon::serving(1), 8);
}

/// The requests that the killed worker had not accepted wait in the queue of its own socket for its replacement.
#[test]
#[cfg(target_os = "linux")]
fn killed_worker_with_own_socket_loses_only_accepted_requests() {
    kill_under_load(Daemon::serving_per_worker(4), 8);
}

/// Kills workers under load. Stops each worker by SIGSTOP before the kill, so that it accepts no more connections and
/// the test can list those that it has accepted.
#[cfg(target_os = "linux")]
fn kill_under_load((mut daemon, _): (Daemon, BTreeSet<Worker>), kills: usize) {
    let load = Load::start(daemon.address());
    let mut accepted_ports = BTreeSet::new();
    for _ in 0..kills {
        let (worker, mut accepted) = daemon.hold();
        worker.suspend();
        let ports = worker.accepted();
        assert!(ports.contains(&accepted.port));
        accepted_ports.extend(ports);
        let mut waiting = Client::connect(daemon.address()).unwrap();
        waiting.send(GET).unwrap();
        worker.kill(Signal::SIGKILL);
        accepted.answer().unwrap_err();
        assert_ne!(Worker::find(&waiting.answer().unwrap()), Some(worker));
        daemon.wait_for_next("is serving");
    }
    for Loss { port, error } in load.stop() {
        assert!(port.is_some_and(|port| accepted_ports.contains(&port)), "no killed worker had accepted it: {error}");
    }
}

/// Clients that send requests without a pause, each on one connection at a time.
struct Load {
    on: Arc<AtomicBool>,
    clients: [JoinHandle<Tally>; 4],
}

#[derive(Default)]
struct Tally {
    answers: usize,
    losses: Vec<Loss>,
}

/// A request that was not answered.
struct Loss {
    /// The client's port, or `None` if it could not connect.
    port: Option<u16>,
    error: io::Error,
}

impl Load {
    fn start(address: SocketAddr) -> Load {
        let on = Arc::new(AtomicBool::new(true));
        let clients = [(); 4].map(|()| {
            let on = Arc::clone(&on);
            thread::spawn(move || Tally::default().ask_while(&on, address))
        });
        Load { on, clients }
    }

    fn stop_without_loss(self) {
        let errors: Vec<io::Error> = self.stop().into_iter().map(|loss| loss.error).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }

    fn stop(self) -> Vec<Loss> {
        self.on.store(false, Ordering::Relaxed);
        let tallies = self.clients.map(|client| client.join().unwrap());
        assert!(tallies.iter().any(|tally| tally.answers > 0));
        tallies.into_iter().flat_map(|tally| tally.losses).collect()
    }
}

impl Tally {
    /// Sends requests while `on` is set. There are many small requests, so that a worker gets some just when it stops.
    /// Uploads take longer, so that some are under way when a worker stops. Some connections are used for one request,
    /// and some for several.
    fn ask_while(mut self, on: &AtomicBool, address: SocketAddr) -> Tally {
        let body = "x".repeat(1_000_000);
        let upload = format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let visits: [&[&str]; 3] = [&[GET], &[&upload], &[GET, &upload, GET, GET, &upload, GET]];
        for requests in visits.iter().cycle().take_while(|_| on.load(Ordering::Relaxed)) {
            if let Err(loss) = self.visit(address, requests) {
                self.losses.push(loss);
            }
            if self.losses.last().is_some_and(|loss| loss.port.is_none()) {
                break;
            }
        }
        self
    }

    fn visit(&mut self, address: SocketAddr, requests: &[&str]) -> Result<(), Loss> {
        let mut client = Client::connect(address).map_err(|error| Loss { port: None, error })?;
        for request in requests {
            let answer = match client.ask(request) {
                // The client itself was delayed so long that the server has closed the idle connection. This is no
                // loss.
                Err(_) if client.silence >= LINGER => break,
                answer => answer.map_err(|error| Loss { port: Some(client.port), error })?,
            };
            let end = if *request == GET { ")\n" } else { " received 1000000 bytes\n" };
            assert!(answer.ends_with(end), "{answer:?}");
            self.answers += 1;
            if client.is_over {
                break;
            }
        }
        Ok(())
    }
}

const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

struct Client {
    stream: BufReader<TcpStream>,
    port: u16,
    /// Whether the last answer had `connection: close`, so that no further request may follow.
    is_over: bool,
    /// The time when the client began to send its last request, or to connect if it has sent no request yet. This is
    /// the earliest time at which the server can have answered.
    last_sent: Instant,
    /// The longest time for which the server can have seen the client idle before its last request.
    silence: Duration,
}

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Client> {
        let last_sent = Instant::now();
        let stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let port = stream.local_addr()?.port();
        Ok(Client { stream: BufReader::new(stream), port, is_over: false, last_sent, silence: Duration::ZERO })
    }

    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.send(request)?;
        self.answer()
    }

    fn send(&mut self, text: &str) -> io::Result<()> {
        let began = Instant::now();
        let begun = self.stream.get_mut().write(text.as_bytes());
        self.silence = self.last_sent.elapsed();
        self.last_sent = began;
        let written = begun.or_else(|error| if error.kind() == ErrorKind::Interrupted { Ok(0) } else { Err(error) })?;
        self.stream.get_mut().write_all(&text.as_bytes()[written..])
    }

    /// Reads the head of an answer, and returns it without the empty line at its end.
    fn head(&mut self) -> io::Result<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head)? == 0 {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("no answer but {head:?}")));
            }
        }
        Ok(head.trim_end().to_owned())
    }

    /// Reads an answer, and returns its body. Every status but 200 is an error.
    fn answer(&mut self) -> io::Result<String> {
        let head = self.head()?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let (true, Some(length)) = (head.starts_with("HTTP/1.1 200 "), length) else {
            return Err(io::Error::other(head));
        };
        self.is_over = head.lines().any(|line| line == "connection: close");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        String::from_utf8(body).map_err(io::Error::other)
    }

    fn answering_worker(&mut self) -> Worker {
        let answer = self.ask(GET).unwrap();
        let worker = Worker::find(&answer).unwrap_or_else(|| panic!("{answer:?}"));
        assert_eq!(answer, format!("worker {} (pid {})\n", worker.id, worker.pid));
        worker
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Worker {
    id: usize,
    pid: i32,
}

impl Worker {
    /// Finds the worker in `.. worker 2 (pid 71) ..`.
    fn find(text: &str) -> Option<Worker> {
        let (id, rest) = text.split_once("worker ")?.1.split_once(" (pid ")?;
        let (pid, _) = rest.split_once(')')?;
        Some(Worker { id: id.parse().ok()?, pid: pid.parse().ok()? })
    }

    fn kill(self, signal: Signal) {
        signal::kill(Pid::from_raw(self.pid), signal).unwrap();
    }
}

#[cfg(target_os = "linux")]
impl Worker {
    fn suspend(self) {
        self.kill(Signal::SIGSTOP);
        let until = Instant::now() + LIMIT;
        // The state follows the process name, which is in parentheses and may contain anything.
        while !self.read("stat").rsplit_once(") ").unwrap().1.starts_with('T') {
            assert!(Instant::now() < until, "the worker does not stop");
            thread::yield_now();
        }
    }

    /// Returns the clients' ports of the connections that this worker has accepted, from /proc.
    fn accepted(self) -> BTreeSet<u16> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        let links: Vec<_> = files.map(|file| fs::read_link(file.unwrap().path()).unwrap()).collect();
        let sockets: Vec<&str> =
            links.iter().filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix("]")).collect();
        let table = self.read("net/tcp");
        table.lines().skip(1).filter_map(|line| peer_port(line, &sockets)).collect()
    }

    fn read(self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap()
    }
}

/// Returns the peer's port from a line `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode` of
/// /proc/net/tcp, if the inode is one of `sockets`.
#[cfg(target_os = "linux")]
fn peer_port(line: &str, sockets: &[&str]) -> Option<u16> {
    let mut fields = line.split_whitespace();
    let peer = fields.nth(2)?;
    let inode = fields.nth(6)?;
    let port = u16::from_str_radix(peer.split_once(':')?.1, 16).unwrap();
    sockets.contains(&inode).then_some(port)
}

/// Returns every worker that has logged that it serves, even if it has exited since.
fn serving(log: &[String]) -> Option<BTreeSet<Worker>> {
    log.iter().filter(|line| line.ends_with(" is serving")).map(|line| Worker::find(line)).collect()
}

impl Daemon {
    fn start(args: &[&str]) -> Daemon {
        Daemon::spawn(command(&["--bind", "127.0.0.1:0"]).args(args))
    }

    /// Starts the example, and waits until all workers serve.
    fn serving(workers: usize) -> (Daemon, BTreeSet<Worker>) {
        Daemon::serving_with(workers, &[])
    }

    /// Starts the example with a socket for each worker, and waits until all workers serve.
    #[cfg(target_os = "linux")]
    fn serving_per_worker(workers: usize) -> (Daemon, BTreeSet<Worker>) {
        Daemon::serving_with(workers, &["--per-worker"])
    }

    fn serving_with(workers: usize, args: &[&str]) -> (Daemon, BTreeSet<Worker>) {
        let mut daemon = Daemon::start(&[&["--workers", &workers.to_string()], args].concat());
        let all = daemon.wait_for(|log| serving(log).filter(|all| all.len() == workers));
        (daemon, all)
    }

    fn answering_worker(&mut self) -> Worker {
        Client::connect(self.address()).unwrap().answering_worker()
    }

    /// Sends a request with half of its body. Returns the worker that has accepted it, and the client.
    fn hold(&mut self) -> (Worker, Client) {
        let mut client = Client::connect(self.address()).unwrap();
        let worker = client.answering_worker();
        client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n").unwrap();
        // The server sends this line when its handler begins to read the body.
        assert_eq!(client.head().unwrap(), "HTTP/1.1 100 Continue");
        client.send("first").unwrap();
        (worker, client)
    }

    /// Asserts that the daemon exits with status 0, that `workers` workers have drained in total, and that none of them
    /// was too late.
    fn assert_drains(&mut self, workers: usize) {
        assert_eq!(self.wait(), Some(0));
        assert_eq!(count(&self.log, "has drained"), workers);
        assert_eq!(count(&self.log, "did not stop in time"), 0);
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = daemon::command("http");
    command.args(args);
    command
}
