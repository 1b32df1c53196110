//! What the operator of the HTTP example, and its clients, would notice. Each test runs the example as a program.

#![cfg(unix)]

use std::collections::BTreeSet;
#[cfg(target_os = "linux")]
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{self, SigHandler, Signal};
use nix::unistd::Pid;

/// What takes longer than this will never happen.
const LIMIT: Duration = Duration::from_secs(60);

/// Of the example: a connection on which nothing is asked for so long may be closed.
const LINGER: Duration = Duration::from_millis(200);

#[test]
fn answers_with_the_task_id_and_pid_of_a_worker() {
    let (mut daemon, workers) = Daemon::serving(2);
    assert_eq!(workers.iter().map(|worker| worker.id).collect::<Vec<_>>(), [0, 1]);
    assert!(workers.contains(&daemon.who()));
}

#[test]
fn a_request_in_hand_is_finished_on_term_and_the_daemon_exits_0() {
    finishes_the_request_in_hand(|daemon| daemon.kill(Signal::SIGTERM));
}

#[test]
fn a_request_in_hand_is_finished_on_ctrl_c_though_the_workers_get_it_too() {
    finishes_the_request_in_hand(|daemon| signal::killpg(daemon.pid(), Signal::SIGINT).unwrap());
}

fn finishes_the_request_in_hand(stop: fn(&Daemon)) {
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
fn a_request_in_hand_for_longer_than_the_graceful_timeout_is_cut_off() {
    let mut daemon = Daemon::start(&["--workers", "1", "--graceful-timeout", "1"]);
    let (_, mut client) = daemon.hold();
    daemon.kill(Signal::SIGTERM);
    daemon.wait_for_next("did not stop in time, killing it");
    client.answer().unwrap_err();
    assert_eq!(daemon.wait(), Some(0));
}

#[test]
fn an_idle_connection_is_closed_and_does_not_hold_up_a_stop() {
    let mut daemon = Daemon::start(&["--workers", "1"]);
    let mut client = Client::connect(daemon.address()).unwrap();
    client.ask(GET).unwrap();
    daemon.kill(Signal::SIGTERM);
    daemon.assert_drains(1);
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

/// Otherwise its next request would be lost if it came just when the connection is closed.
#[test]
fn a_client_that_keeps_its_connection_is_told_in_time_that_the_worker_goes() {
    let (mut daemon, _) = Daemon::serving(1);
    let (worker, mut client) = daemon.hold();
    assert!(!client.is_over);
    worker.kill(Signal::SIGTERM);
    client.send(" last").unwrap();
    client.answer().unwrap();
    assert!(client.is_over);
    daemon.assert_drains(1);
}

/// With a single worker, so that nobody else answers in its place.
#[test]
fn a_killed_worker_is_replaced_and_the_port_keeps_answering() {
    let mut daemon = Daemon::start(&["--workers", "1"]);
    let killed = daemon.who();
    killed.kill(Signal::SIGKILL);
    let told = format!("child 0 (pid {}) killed by signal 9", killed.pid);
    daemon.wait_for(|log| (count(log, &told) == 1).then_some(()));
    let heir = daemon.who();
    assert_eq!(heir.id, killed.id);
    assert_ne!(heir.pid, killed.pid);
    daemon.wait_for(|log| serving(log).filter(|workers| workers.contains(&heir)));
    for _ in 0..100 {
        assert_eq!(daemon.who(), heir);
    }
    daemon.kill(Signal::SIGTERM);
    daemon.assert_drains(1);
}

#[test]
fn the_daemon_exits_1_when_the_restarts_are_used_up() {
    let mut daemon = Daemon::start(&["--workers", "2", "--max-restarts", "0"]);
    let workers = daemon.wait_for(|log| serving(log).filter(|workers| workers.len() == 2));
    workers.first().unwrap().kill(Signal::SIGKILL);
    assert_eq!(daemon.wait(), Some(1));
    assert_eq!(count(&daemon.log, "Too many child restarts (0), giving up"), 1);
    assert_eq!(count(&daemon.log, "has drained"), 1);
}

#[test]
fn honours_web_concurrency() {
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
    let [line] = &daemon.log[..] else { panic!("one line was to be said") };
    assert!(line.starts_with(&format!("Error: cannot listen on {address}: Address already in use")), "{line}");
}

#[test]
fn hup_again_and_again_replaces_every_worker_and_no_request_fails() {
    roll_under_load(Daemon::serving(2));
}

#[test]
#[cfg(target_os = "linux")]
fn nor_with_a_socket_for_each_worker() {
    roll_under_load(Daemon::serving_per_worker(2));
}

fn roll_under_load((mut daemon, old): (Daemon, BTreeSet<Worker>)) {
    const ROLLS: usize = 20;
    let load = Load::start(daemon.address());
    for _ in 0..ROLLS {
        daemon.kill(Signal::SIGHUP);
        daemon.wait_for_next("Rolling restart done");
    }
    load.stop_without_loss();
    let new = daemon.who();
    assert!(new.id < 2 && !old.contains(&new));
    daemon.kill(Signal::SIGTERM);
    daemon.assert_drains(2 + 2 * ROLLS);
}

#[test]
fn workers_that_come_and_go_again_and_again_cost_no_request() {
    scale_under_load(Daemon::serving(2), 15);
}

/// Each that goes takes a second for it.
#[test]
#[cfg(target_os = "linux")]
fn nor_do_they_when_each_has_its_own_socket() {
    scale_under_load(Daemon::serving_per_worker(2), 5);
}

fn scale_under_load((mut daemon, _): (Daemon, BTreeSet<Worker>), times: usize) {
    let load = Load::start(daemon.address());
    for _ in 0..times {
        // One that has answered some of the requests.
        daemon.kill(Signal::SIGTTIN);
        daemon.wait_for_next("Scaled to 3 processes");
        daemon.wait_for_next("is serving");
        daemon.kill(Signal::SIGTTOU);
        daemon.wait_for_next("Scaled to 2 processes");
        daemon.wait_for_next("has drained");
        // One that is sent away while it starts.
        daemon.kill(Signal::SIGTTIN);
        daemon.wait_for_next("Scaled to 3 processes");
        daemon.kill(Signal::SIGTTOU);
        daemon.wait_for_next("Scaled to 2 processes");
    }
    load.stop_without_loss();
    daemon.kill(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0));
}

/// The other requests are answered by the other workers.
#[test]
#[cfg(target_os = "linux")]
fn a_killed_worker_takes_along_only_what_it_had_accepted() {
    kill_under_load(Daemon::serving(4), 20);
}

/// The other requests wait for its replacement.
#[test]
#[cfg(target_os = "linux")]
fn the_only_worker_when_it_is_killed_takes_along_only_what_it_had_accepted() {
    kill_under_load(Daemon::serving(1), 8);
}

/// What waited for it waits for its replacement.
#[test]
#[cfg(target_os = "linux")]
fn a_killed_worker_with_its_own_socket_takes_along_only_what_it_had_accepted() {
    kill_under_load(Daemon::serving_per_worker(4), 8);
}

/// A worker is stopped first: what it has accepted is certain then, and it accepts no more.
#[cfg(target_os = "linux")]
fn kill_under_load((mut daemon, _): (Daemon, BTreeSet<Worker>), kills: usize) {
    let load = Load::start(daemon.address());
    let mut taken_along = BTreeSet::new();
    for _ in 0..kills {
        let (worker, mut accepted) = daemon.hold();
        worker.suspend();
        let ports = worker.accepted();
        assert!(ports.contains(&accepted.port));
        taken_along.extend(ports);
        let mut waiting = Client::connect(daemon.address()).unwrap();
        waiting.send(GET).unwrap();
        worker.kill(Signal::SIGKILL);
        accepted.answer().unwrap_err();
        assert_ne!(Worker::find(&waiting.answer().unwrap()), Some(worker));
        daemon.wait_for_next("is serving");
    }
    for Loss { port, error } in load.stop() {
        assert!(port.is_some_and(|port| taken_along.contains(&port)), "nobody had accepted it: {error}");
    }
}

/// Clients that ask without a break, each on one connection at a time.
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
    /// The client's. None: it could not even connect.
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
    /// Small requests, the more the better to meet a worker just as it goes, and uploads, to be in hand when it does. On
    /// fresh connections, and on one that is kept for a while.
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
                // It was held up, and the server has not waited for it.
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
    /// The last answer has said that there will be no other one on this connection.
    is_over: bool,
    /// It began to send its last request, or if there was none, to connect. It may have had its answer at once.
    last_sent: Instant,
    /// At most so long the server had nothing to do for it before the last request was there.
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

    /// Without the empty line that ends it.
    fn head(&mut self) -> io::Result<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head)? == 0 {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("no answer but {head:?}")));
            }
        }
        Ok(head.trim_end().to_owned())
    }

    /// The body; everything but a 200 is an error.
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

    fn who(&mut self) -> Worker {
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
    /// From `.. worker 2 (pid 71) ..`.
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
        // Behind the name, which may be anything.
        while !self.read("stat").rsplit_once(") ").unwrap().1.starts_with('T') {
            assert!(Instant::now() < until, "it was to stop");
            thread::yield_now();
        }
    }

    /// The ports of those whose connections it has accepted, as the kernel knows them.
    fn accepted(self) -> BTreeSet<u16> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        let links: Vec<_> = files.map(|file| fs::read_link(file.unwrap().path()).unwrap()).collect();
        let sockets: Vec<&str> =
            links.iter().filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix("]")).collect();
        let table = self.read("net/tcp");
        table.lines().skip(1).filter_map(|line| port_of_the_peer(line, &sockets)).collect()
    }

    fn read(self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap()
    }
}

/// From `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode`, if it is one of these sockets.
#[cfg(target_os = "linux")]
fn port_of_the_peer(line: &str, sockets: &[&str]) -> Option<u16> {
    let mut fields = line.split_whitespace();
    let peer = fields.nth(2)?;
    let inode = fields.nth(6)?;
    let port = u16::from_str_radix(peer.split_once(':')?.1, 16).unwrap();
    sockets.contains(&inode).then_some(port)
}

/// Everybody who ever said so.
fn serving(log: &[String]) -> Option<BTreeSet<Worker>> {
    log.iter().filter(|line| line.ends_with(" is serving")).map(|line| Worker::find(line)).collect()
}

fn count(log: &[String], text: &str) -> usize {
    log.iter().filter(|line| line.contains(text)).count()
}

/// The example, whose processes are a group of their own. None of them outlives this.
struct Daemon {
    child: Child,
    is_reaped: bool,
    lines: Receiver<String>,
    /// What has been read of `lines`.
    log: Vec<String>,
}

impl Daemon {
    fn start(args: &[&str]) -> Daemon {
        Daemon::spawn(command(&["--bind", "127.0.0.1:0"]).args(args))
    }

    /// With so many workers, all of whom serve.
    fn serving(workers: usize) -> (Daemon, BTreeSet<Worker>) {
        Daemon::serving_with(workers, &[])
    }

    /// The same, each on its own socket.
    #[cfg(target_os = "linux")]
    fn serving_per_worker(workers: usize) -> (Daemon, BTreeSet<Worker>) {
        Daemon::serving_with(workers, &["--per-task"])
    }

    fn serving_with(workers: usize, args: &[&str]) -> (Daemon, BTreeSet<Worker>) {
        let mut daemon = Daemon::start(&[&["--workers", &workers.to_string()], args].concat());
        let all = daemon.wait_for(|log| serving(log).filter(|all| all.len() == workers));
        (daemon, all)
    }

    fn spawn(command: &mut Command) -> Daemon {
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Daemon { child, is_reaped: false, lines, log: Vec::new() }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    fn kill(&self, signal: Signal) {
        signal::kill(self.pid(), signal).unwrap();
    }

    fn address(&mut self) -> SocketAddr {
        self.wait_for(|log| log.iter().find_map(|line| line.split_once("Listening on ")?.1.parse().ok()))
    }

    fn who(&mut self) -> Worker {
        Client::connect(self.address()).unwrap().who()
    }

    /// A request in hand, half of its body still to come, and who has it.
    fn hold(&mut self) -> (Worker, Client) {
        let mut client = Client::connect(self.address()).unwrap();
        let worker = client.who();
        client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n").unwrap();
        // It is sent when the handler asks for the body.
        assert_eq!(client.head().unwrap(), "HTTP/1.1 100 Continue");
        client.send("first").unwrap();
        (worker, client)
    }

    /// Until the whole log so far has it: in which order several processes write is nobody's promise.
    fn wait_for<T>(&mut self, find: impl Fn(&[String]) -> Option<T>) -> T {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(found) = find(&self.log) {
                return found;
            }
            self.read_line(until).expect("the log was to say more");
        }
    }

    /// One that has not been read yet.
    fn wait_for_next(&mut self, text: &str) {
        let read = self.log.len();
        self.wait_for(|log| log[read..].iter().any(|line| line.contains(text)).then_some(()));
    }

    fn read_line(&mut self, until: Instant) -> Result<(), RecvTimeoutError> {
        let line = self.lines.recv_timeout(until.saturating_duration_since(Instant::now()))?;
        self.log.push(line);
        Ok(())
    }

    /// The exit status, once the last process has let go of the log.
    fn wait(&mut self) -> Option<i32> {
        assert_eq!(self.read_to_end(LIMIT), RecvTimeoutError::Disconnected, "somebody still lives");
        self.reap()
    }

    fn read_to_end(&mut self, limit: Duration) -> RecvTimeoutError {
        let until = Instant::now() + limit;
        loop {
            if let Err(end) = self.read_line(until) {
                return end;
            }
        }
    }

    fn reap(&mut self) -> Option<i32> {
        let status = self.child.wait().unwrap();
        self.is_reaped = true;
        status.code()
    }

    /// It exits 0, after so many workers in all have gone by themselves.
    fn assert_drains(&mut self, workers: usize) {
        assert_eq!(self.wait(), Some(0));
        assert_eq!(count(&self.log, "has drained"), workers);
        assert_eq!(count(&self.log, "did not stop in time"), 0);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _ = signal::kill(self.pid(), Signal::SIGTERM);
            self.read_to_end(Duration::from_secs(5));
            // Not yet reaped, the pid is still its own, and that of its group.
            let _ = signal::killpg(self.pid(), Signal::SIGKILL);
            self.reap();
        }
        if thread::panicking() {
            eprintln!("{}", self.log.join("\n"));
        }
    }
}

fn command(args: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    // target/debug/deps/http-1234 to target/debug/examples/http
    let example = test.ancestors().nth(2).unwrap().join("examples/http");
    assert!(
        example.exists(),
        "no {}: a plain `cargo test` builds it, and so does `cargo build --examples`",
        example.display()
    );
    let mut command = Command::new(example);
    command.args(args).env_remove("WEB_CONCURRENCY").env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: between fork and exec it only calls signal(2), which is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(answer_signals()?)) };
    command
}

/// What was ignored when the daemon started stays ignored, and under nohup or in the background of a shell something is.
fn answer_signals() -> Result<(), Errno> {
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().try_for_each(|signal| {
        // SAFETY: the default is no handler, so there is nothing that could be called.
        unsafe { signal::signal(signal, SigHandler::SigDfl) }.map(|_| ())
    })
}
