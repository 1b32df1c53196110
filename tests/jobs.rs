//! Tests of the `jobs` example, as the owner of the jobs and its operator see it.

#![cfg(unix)]

#[allow(dead_code)] // Each test uses a part of it.
mod daemon;

use std::fs;
use std::path::PathBuf;

use daemon::{Daemon, command, count};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The example, and the directory from which its workers take the jobs.
struct Service {
    daemon: Daemon,
    spool: PathBuf,
}

impl Service {
    /// Starts the example with the files in `jobs`.
    fn start(test: &str, jobs: &[(&str, &str)]) -> Service {
        let spool = std::env::temp_dir().join(format!("taskfork-jobs-{}-{test}", std::process::id()));
        for directory in ["jobs", "tries", "results", "failed"] {
            fs::create_dir_all(spool.join(directory)).unwrap();
        }
        for (name, numbers) in jobs {
            fs::write(spool.join("jobs").join(name), numbers).unwrap();
        }
        Service { daemon: Daemon::spawn(command("jobs").arg(&spool)), spool }
    }

    /// Adds a job that takes about `seconds`. Its numbers are all 1.
    fn add_job(&self, name: &str, seconds: usize) {
        let path = self.spool.join(name);
        fs::write(&path, "1\n".repeat(1000 * seconds)).unwrap();
        fs::rename(path, self.spool.join("jobs").join(name)).unwrap();
    }

    /// Waits until a worker has taken the job, and returns the worker's pid.
    fn wait_for_taker(&mut self, name: &str) -> Pid {
        let line = self.daemon.wait_for_next(&format!("has taken {name}"));
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
        count(&self.daemon.log, text)
    }

    /// Waits until every process has closed the log. Asserts that the exit status is 0 and that no job is left.
    fn assert_ends(&mut self) {
        assert_eq!(self.daemon.wait(), Some(0));
        assert!(self.names("jobs").is_empty() && self.names("tries").is_empty());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.spool);
    }
}

#[test]
fn every_job_is_run_and_bad_jobs_fail() {
    let mut service = Service::start("all", &[("one", "1\n"), ("six", "1\n2\n3\n"), ("bad", "1\nx\n")]);
    service.daemon.wait_for_next("cannot do bad");
    while service.count("has finished") < 2 {
        service.daemon.wait_for_next("has finished");
    }
    service.daemon.kill(Signal::SIGTERM);
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
    service.daemon.kill(Signal::SIGHUP);
    service.add_job("other", 1);
    service.daemon.wait_for_next("has finished long");
    while service.count("has finished other") == 0 || service.count("Rolling restart done") == 0 {
        service.daemon.wait_for_next("");
    }
    service.daemon.kill(Signal::SIGTERM);
    service.assert_ends();
    assert_eq!(service.count("has taken long"), 1);
    assert_eq!(service.count("has taken other"), 1);
    assert_eq!(service.read("results/long"), "2000\n");
}

#[test]
fn stop_waits_for_the_open_job() {
    let mut service = Service::start("stop", &[]);
    service.add_job("long", 2);
    service.wait_for_taker("long");
    service.daemon.kill(Signal::SIGTERM);
    service.assert_ends();
    assert_eq!(service.read("results/long"), "2000\n");
}

#[test]
fn jobs_of_killed_workers_are_run_again_until_the_limit() {
    let mut service = Service::start("kill", &[]);
    service.add_job("first", 3);
    kill(service.wait_for_taker("first"), Signal::SIGKILL).unwrap();
    service.daemon.wait_for_next("has finished first");
    service.add_job("deadly", 600);
    for _ in 0..3 {
        kill(service.wait_for_taker("deadly"), Signal::SIGKILL).unwrap();
    }
    service.daemon.wait_for_next("cannot do deadly: too many tries");
    service.daemon.kill(Signal::SIGTERM);
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
    service.daemon.kill(Signal::SIGKILL);
    assert_eq!(service.daemon.wait(), None, "a signal has ended the parent");
    assert_eq!(service.count("has finished long"), 1);
    assert_eq!(service.read("results/long"), "2000\n");
}

#[test]
fn second_stop_request_leaves_the_open_job_for_the_next_start() {
    let mut service = Service::start("again", &[]);
    service.add_job("long", 600);
    service.wait_for_taker("long");
    service.daemon.kill(Signal::SIGTERM);
    service.daemon.wait_for_next("Stopping ");
    service.daemon.kill(Signal::SIGTERM);
    assert_eq!(service.daemon.wait(), Some(0));
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
    service.daemon.wait_for_next("has finished third");
    service.daemon.wait_for_next("after a stop request from another process");
    service.daemon.kill(Signal::SIGTERM);
    service.assert_ends();
    assert_eq!(service.count("has taken"), 3);
}
