//! What the operator of the HTTP example, and its clients, would notice. Each test runs the example as a program.

#![cfg(unix)]

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{self, SigHandler, Signal};
use nix::unistd::Pid;

/// What takes longer than this will never happen.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn answers_with_the_task_id_and_pid_of_a_worker() {
    let mut daemon = Daemon::start(&["--workers", "2"]);
    let workers = daemon.wait_for(|log| serving(log).filter(|workers| workers.len() == 2));
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
    let mut daemon = Daemon::start(&["--workers", "2"]);
    daemon.wait_for(|log| serving(log).filter(|workers| workers.len() == 2));
    let mut client = Client::connect(daemon.address()).unwrap();
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n").unwrap();
    // It is sent when the handler asks for the body: from here on the request is in hand.
    assert_eq!(client.head().unwrap(), "HTTP/1.1 100 Continue");
    client.send("first").unwrap();
    stop(&daemon);
    daemon.wait_for(|log| (count(log, "is draining") == 2).then_some(()));
    client.send(" last").unwrap();
    let answer = client.answer().unwrap();
    assert!(answer.ends_with(" received 10 bytes\n"), "{answer:?}");
    daemon.assert_drains(2);
}

#[test]
fn an_idle_connection_is_closed_and_does_not_hold_up_a_stop() {
    let mut daemon = Daemon::start(&["--workers", "1"]);
    let mut client = Client::connect(daemon.address()).unwrap();
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    client.answer().unwrap();
    daemon.kill(Signal::SIGTERM);
    daemon.assert_drains(1);
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
}

/// With a single worker, so that nobody else answers in its place.
#[test]
fn a_killed_worker_is_replaced_and_the_port_keeps_answering() {
    let mut daemon = Daemon::start(&["--workers", "1"]);
    let killed = daemon.who();
    signal::kill(Pid::from_raw(killed.pid), Signal::SIGKILL).unwrap();
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
fn a_hup_replaces_every_worker_and_no_request_fails() {
    let mut daemon = Daemon::start(&["--workers", "2"]);
    let old = daemon.wait_for(|log| serving(log).filter(|workers| workers.len() == 2));
    let address = daemon.address();
    let rolling = Arc::new(AtomicBool::new(true));
    let clients = [(); 4].map(|()| {
        let rolling = Arc::clone(&rolling);
        thread::spawn(move || ask_while(&rolling, address))
    });
    daemon.kill(Signal::SIGHUP);
    daemon.wait_for(|log| (count(log, "Rolling restart done") == 1).then_some(()));
    daemon.wait_for(|log| (count(log, "has drained") == 2).then_some(()));
    rolling.store(false, Ordering::Relaxed);
    for client in clients {
        let answers = client.join().unwrap().unwrap();
        assert!(answers > 0);
    }
    let all = daemon.wait_for(|log| serving(log).filter(|workers| workers.len() == 4));
    let new: BTreeSet<Worker> = all.difference(&old).copied().collect();
    assert_eq!(new.iter().map(|worker| worker.id).collect::<Vec<_>>(), [0, 1]);
    assert!(new.contains(&daemon.who()));
    daemon.kill(Signal::SIGTERM);
    daemon.assert_drains(4);
}

/// Small requests, the more the better to meet a worker just as it goes, and uploads, to be in hand when it does.
fn ask_while(rolling: &AtomicBool, address: SocketAddr) -> io::Result<usize> {
    let body = "x".repeat(1_000_000);
    let upload = format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut answers = 0;
    while rolling.load(Ordering::Relaxed) {
        ask(address, "GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
        let answer = ask(address, &upload)?;
        assert!(answer.ends_with(" received 1000000 bytes\n"), "{answer:?}");
        answers += 2;
    }
    Ok(answers)
}

fn ask(address: SocketAddr, request: &str) -> io::Result<String> {
    let mut client = Client::connect(address)?;
    client.send(request)?;
    client.answer()
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Client(BufReader::new(stream)))
    }

    fn send(&mut self, text: &str) -> io::Result<()> {
        self.0.get_mut().write_all(text.as_bytes())
    }

    /// Without the empty line that ends it.
    fn head(&mut self) -> io::Result<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head)? == 0 {
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
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        String::from_utf8(body).map_err(io::Error::other)
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
        self.wait_for(|log| log.iter().find_map(|line| line.split_once("http://")?.1.parse().ok()))
    }

    fn who(&mut self) -> Worker {
        let answer = ask(self.address(), "GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        let worker = Worker::find(&answer).unwrap_or_else(|| panic!("{answer:?}"));
        assert_eq!(answer, format!("worker {} (pid {})\n", worker.id, worker.pid));
        worker
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
