//! Tests of the `jobs` example, as the owner of the jobs and its operator see it.

#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Service {
    spool: PathBuf,
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    /// The lines read so far.
    log: Vec<String>,
}

impl Service {
    /// Starts the example with the files in `jobs`.
    fn start(test: &str, jobs: &[(&str, &str)]) -> Service {
        let program = std::env::current_exe().unwrap();
        // target/debug/deps/jobs-1234 to target/debug/examples/jobs
        let example = program.ancestors().nth(2).unwrap().join("examples/jobs");
        assert!(example.exists(), "`cargo test` without a test target builds it, and so does `cargo build --examples`");
        let spool = std::env::temp_dir().join(format!("taskfork-jobs-{}-{test}", std::process::id()));
        for directory in ["jobs", "tries", "results", "failed"] {
            fs::create_dir_all(spool.join(directory)).unwrap();
        }
        for (name, numbers) in jobs {
            fs::write(spool.join("jobs").join(name), numbers).unwrap();
        }
        let mut command = Command::new(example);
        let mut child = command.arg(&spool).env_remove("RUST_LOG").stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Service { spool, child, lines, log: Vec::new() }
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

    /// Adds a job that takes about `seconds`. Its numbers are all 1.
    fn add_job(&self, name: &str, seconds: usize) {
        let path = self.spool.join(name);
        fs::write(&path, "1\n".repeat(1000 * seconds)).unwrap();
        fs::rename(path, self.spool.join("jobs").join(name)).unwrap();
    }

    /// Waits until a worker has taken the job, and returns the worker's pid.
    fn wait_for_taker(&mut self, name: &str) -> Pid {
        let line = self.wait_for(&format!("has taken {name}"));
        let pid = line.split_once("(pid ").unwrap().1.split_once(')').unwrap().0;
        Pid::from_raw(pid.parse().unwrap())
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.spool.join(file)).unwrap()
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.spool.join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn count(&self, text: &str) -> usize {
        self.log.iter().filter(|line| line.contains(text)).count()
    }

    /// Waits until every process has closed the log. Asserts that the exit status is 0 and that no job is left.
    fn assert_ends(&mut self) {
        self.log.extend(self.lines.by_ref().map(Result::unwrap));
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{:#?}", self.log);
        assert!(self.names("jobs").is_empty() && self.names("tries").is_empty(), "{:#?}", self.log);
    }
}

/// Kills the parent. The workers exit when their parent exits, so a failed test leaves no process behind.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.spool);
    }
}

#[test]
fn every_job_is_run_and_bad_jobs_fail() {
    let mut service = Service::start("all", &[("one", "1\n"), ("six", "1\n2\n3\n"), ("bad", "1\nx\n")]);
    service.wait_for("cannot do bad");
    while service.count("has finished") < 2 {
        service.wait_for("has finished");
    }
    service.signal(Signal::SIGTERM);
    service.assert_ends();
    assert_eq!(service.read("results/one"), "1\n");
    assert_eq!(service.read("results/six"), "6\n");
    assert_eq!(service.names("failed"), ["bad"]);
}

#[test]
fn rolling_restart_runs_an_open_job_once() {
    let mut service = Service::start("roll", &[]);
    service.add_job("long", 2);
    service.wait_for_taker("long");
    service.signal(Signal::SIGHUP);
    service.add_job("other", 1);
    service.wait_for("has finished long");
    while service.count("has finished other") == 0 || service.count("Rolling restart done") == 0 {
        service.wait_for("");
    }
    service.signal(Signal::SIGTERM);
    service.assert_ends();
    assert_eq!(service.count("has taken long"), 1, "{:#?}", service.log);
    assert_eq!(service.count("has taken other"), 1, "{:#?}", service.log);
    assert_eq!(service.read("results/long"), "2000\n");
}

#[test]
fn stop_waits_for_the_open_job() {
    let mut service = Service::start("stop", &[]);
    service.add_job("long", 2);
    service.wait_for_taker("long");
    service.signal(Signal::SIGTERM);
    service.assert_ends();
    assert_eq!(service.read("results/long"), "2000\n");
}

#[test]
fn jobs_of_killed_workers_are_run_again_until_the_limit() {
    let mut service = Service::start("kill", &[]);
    service.add_job("first", 3);
    kill(service.wait_for_taker("first"), Signal::SIGKILL).unwrap();
    service.wait_for("has finished first");
    service.add_job("deadly", 600);
    for _ in 0..3 {
        kill(service.wait_for_taker("deadly"), Signal::SIGKILL).unwrap();
    }
    service.wait_for("cannot do deadly: too many tries");
    service.signal(Signal::SIGTERM);
    service.assert_ends();
    assert_eq!(service.read("results/first"), "3000\n");
    assert_eq!(service.names("failed"), ["deadly"]);
}

#[test]
#[cfg(target_os = "linux")]
fn worker_of_a_killed_parent_finishes_its_job() {
    let mut service = Service::start("orphan", &[]);
    service.add_job("long", 2);
    service.wait_for_taker("long");
    service.signal(Signal::SIGKILL);
    service.log.extend(service.lines.by_ref().map(Result::unwrap));
    assert_eq!(service.count("has finished long"), 1, "{:#?}", service.log);
    assert_eq!(service.read("results/long"), "2000\n");
}

#[test]
fn second_stop_request_leaves_the_open_job_for_the_next_start() {
    let mut service = Service::start("again", &[]);
    service.add_job("long", 600);
    service.wait_for_taker("long");
    service.signal(Signal::SIGTERM);
    service.wait_for("Stopping ");
    service.signal(Signal::SIGTERM);
    service.log.extend(service.lines.by_ref().map(Result::unwrap));
    assert_eq!(service.child.wait().unwrap().code(), Some(0), "{:#?}", service.log);
    assert_eq!(service.names("jobs"), ["long"]);
    assert!(service.names("results").is_empty());
}

/// The worker with the open job exits only when it has finished the job, the other one exits at once.
#[test]
fn terminated_workers_finish_their_jobs_and_are_replaced() {
    let mut service = Service::start("terminated", &[]);
    for name in ["first", "second", "third"] {
        service.add_job(name, 1);
        kill(service.wait_for_taker(name), Signal::SIGTERM).unwrap();
    }
    service.wait_for("has finished third");
    service.wait_for("after a stop request from another process");
    service.signal(Signal::SIGTERM);
    service.assert_ends();
    assert_eq!(service.count("has taken"), 3, "{:#?}", service.log);
}
