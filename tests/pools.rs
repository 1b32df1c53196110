//! Tests of the `pools` example, as its clients and its operator see it.

#![cfg(unix)]

#[allow(dead_code)] // Each test uses a part of it.
mod daemon;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use daemon::{Daemon, LIMIT, command, count};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// A worker process of the example, as the log and the answers name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Worker {
    pool: String,
    id: usize,
    pid: i32,
}

impl Worker {
    /// Parses a text that contains `web worker 1 (pid 72)`.
    fn parse(text: &str) -> Option<Worker> {
        let (before, after) = text.split_once(" worker ")?;
        let (id, after) = after.split_once(" (pid ")?;
        let pid = after.split_once(')')?.0.parse().ok()?;
        Some(Worker { pool: before.rsplit(' ').next()?.to_owned(), id: id.parse().ok()?, pid })
    }

    fn kill(&self) {
        signal::kill(Pid::from_raw(self.pid), Signal::SIGKILL).unwrap();
    }
}

/// The example, with the directory of its Unix socket.
struct Service {
    daemon: Daemon,
    address: SocketAddr,
    directory: PathBuf,
}

impl Service {
    /// Starts the example, and waits until both workers of both pools serve.
    fn start(test: &str) -> Service {
        let directory = std::env::temp_dir().join(format!("taskfork-pools-{}-{test}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut daemon = Daemon::spawn(command("pools").arg("127.0.0.1:0").arg(directory.join("jobs.sock")));
        let address = daemon.address();
        let mut service = Service { daemon, address, directory };
        service.wait_for_serving("web", 2);
        service.wait_for_serving("jobs", 2);
        service
    }

    /// Waits until this number of processes of the pool has begun to serve, counted from the start.
    fn wait_for_serving(&mut self, pool: &str, processes: usize) -> BTreeSet<Worker> {
        self.daemon.wait_for(|log| Some(serving(log, pool)).filter(|workers| workers.len() == processes))
    }

    fn wait_for_times(&mut self, text: &str, times: usize) {
        self.daemon.wait_for(|log| (count(log, text) == times).then_some(()));
    }

    /// Begins a job that takes `milliseconds`, and waits until a worker has taken it. Returns the worker, and the
    /// thread of the client, which returns the answer.
    fn begin_job(&mut self, milliseconds: u16) -> (Worker, JoinHandle<String>) {
        let address = self.address;
        let client = thread::spawn(move || post(address, "/jobs", &milliseconds.to_string()).unwrap());
        let line = self.daemon.wait_for_next(&format!("has taken the job \"{milliseconds}\""));
        (Worker::parse(&line).unwrap(), client)
    }

    /// Asserts that the service ends with status 0 and leaves no process behind.
    fn assert_stops(&mut self) {
        self.daemon.kill(Signal::SIGTERM);
        assert_eq!(self.daemon.wait(), Some(0));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Returns the processes of the pool that have begun to serve so far.
fn serving(log: &[String], pool: &str) -> BTreeSet<Worker> {
    let lines = log.iter().filter(|line| line.ends_with(" is serving"));
    lines.filter_map(|line| Worker::parse(line)).filter(|worker| worker.pool == pool).collect()
}

fn get(address: SocketAddr) -> io::Result<String> {
    exchange(address, "GET / HTTP/1.1\r\nhost: test\r\n\r\n")
}

fn post(address: SocketAddr, path: &str, body: &str) -> io::Result<String> {
    let length = body.len();
    exchange(address, &format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}"))
}

/// Sends a request, and returns the answer without its head. An answer with another status than 200 is an error.
fn exchange(address: SocketAddr, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other(answer)),
    }
}

/// Clients that send requests without a pause, until they are stopped.
struct Load {
    is_over: Arc<AtomicBool>,
    clients: [JoinHandle<usize>; 3],
}

impl Load {
    /// One client asks for the name of a web worker, and two clients send jobs of 2 ms.
    fn start(address: SocketAddr) -> Load {
        let is_over = Arc::new(AtomicBool::new(false));
        let clients = [0, 1, 2].map(|client| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                let mut answers = 0;
                while !is_over.load(Ordering::Relaxed) {
                    match client {
                        0 => assert!(get(address).unwrap().starts_with("web worker ")),
                        _ => assert!(post(address, "/jobs", "2").unwrap().ends_with(": 3\n")),
                    }
                    answers += 1;
                }
                answers
            })
        });
        Load { is_over, clients }
    }

    fn stop_without_loss(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for client in self.clients {
            assert_ne!(client.join().expect("no request is lost"), 0);
        }
    }
}

#[test]
fn web_worker_answers_with_the_result_of_a_job() {
    let mut service = Service::start("answers");
    let web = Worker::parse(&get(service.address).unwrap()).unwrap();
    assert_eq!(web.pool, "web");
    let answer = post(service.address, "/jobs", "100").unwrap();
    assert!(answer.ends_with(": 5050\n"), "{answer}");
    assert_eq!(Worker::parse(&answer).unwrap().pool, "jobs");
    let answer = post(service.address, "/jobs", "many").unwrap();
    assert!(answer.contains(": not a job: "), "{answer}");
    service.assert_stops();
}

#[test]
fn killed_workers_are_replaced_in_their_own_pool() {
    let mut service = Service::start("kill");
    let web = service.wait_for_serving("web", 2);
    let jobs = service.wait_for_serving("jobs", 2);
    web.first().unwrap().kill();
    let newest = service.wait_for_serving("web", 3);
    assert_eq!(newest.difference(&web).next().unwrap().id, 0);
    jobs.last().unwrap().kill();
    let newest = service.wait_for_serving("jobs", 3);
    assert_eq!(newest.difference(&jobs).next().unwrap().id, 1);
    assert!(post(service.address, "/jobs", "3").unwrap().ends_with(": 6\n"));
    service.assert_stops();
    assert_eq!(count(&service.daemon.log, ", restarting"), 2);
    assert_eq!(serving(&service.daemon.log, "web").len(), 3);
    assert_eq!(serving(&service.daemon.log, "jobs").len(), 3);
}

#[test]
fn job_of_a_killed_worker_is_run_by_another() {
    let mut service = Service::start("again");
    let (killed, client) = service.begin_job(1000);
    killed.kill();
    let answer = client.join().unwrap();
    assert!(answer.ends_with(": 500500\n"), "{answer}");
    assert_ne!(Worker::parse(&answer).unwrap(), killed);
    service.assert_stops();
}

#[test]
fn hup_replaces_web_before_jobs_and_loses_no_request() {
    const ROLLS: usize = 5;
    let mut service = Service::start("roll");
    let load = Load::start(service.address);
    for roll in 1..=ROLLS {
        service.daemon.kill(Signal::SIGHUP);
        service.wait_for_times("jobs: Rolling restart done", roll);
    }
    load.stop_without_loss();
    service.assert_stops();
    for pool in ["web", "jobs"] {
        assert_eq!(serving(&service.daemon.log, pool).len(), 2 + 2 * ROLLS);
    }
    let rolls = service.daemon.log.iter().filter_map(|line| line.split_once("Rolling restart").map(|_| line));
    let lines: Vec<&str> = rolls.filter_map(|line| line.split_once("] ").map(|(_, text)| text)).collect();
    let one =
        ["web: Rolling restart", "web: Rolling restart done", "jobs: Rolling restart", "jobs: Rolling restart done"];
    assert_eq!(lines, one.repeat(ROLLS));
}

#[test]
fn ttin_adds_a_web_worker_only() {
    let mut service = Service::start("ttin");
    service.daemon.kill(Signal::SIGTTIN);
    let web = service.wait_for_serving("web", 3);
    assert_eq!(web.iter().map(|worker| worker.id).collect::<Vec<_>>(), [0, 1, 2]);
    service.assert_stops();
    assert_eq!(count(&service.daemon.log, "web: Scaled to 3 workers"), 1);
    assert_eq!(serving(&service.daemon.log, "jobs").len(), 2);
}

#[test]
fn web_goes_on_after_the_stop_of_jobs() {
    let mut service = Service::start("stop");
    let (_, client) = service.begin_job(500);
    let answer = post(service.address, "/stop-jobs", "").unwrap();
    assert!(answer.ends_with(": stopping this pool\n"), "{answer}");
    let answer = client.join().unwrap();
    assert!(answer.ends_with(": 125250\n"), "an open job is finished: {answer}");
    service.wait_for_times("jobs: The pool has ended: ", 1);
    let refused = post(service.address, "/jobs", "3").unwrap_err().to_string();
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(get(service.address).unwrap().starts_with("web worker "));
    service.assert_stops();
    assert_eq!(serving(&service.daemon.log, "web").len(), 2);
    assert_eq!(count(&service.daemon.log, "jobs: Stopping 2 processes"), 1);
}

#[test]
fn term_finishes_an_open_job_and_exits_0() {
    let mut service = Service::start("term");
    let (_, client) = service.begin_job(1000);
    service.assert_stops();
    assert!(client.join().unwrap().ends_with(": 500500\n"));
}

/// A process that outlived the parent would keep the log open.
#[test]
fn workers_of_both_pools_end_with_their_parent() {
    let mut service = Service::start("orphans");
    service.daemon.kill(Signal::SIGKILL);
    assert_eq!(service.daemon.wait(), None, "a signal has ended the parent");
}
