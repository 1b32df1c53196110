//! Tests of the example `reload`, as its operator and its clients see it.

#![cfg(unix)]

#[allow(dead_code)] // Each test uses a part of it.
mod daemon;

use std::io::Read;
use std::net::TcpStream;
use std::path::PathBuf;
use std::{env, fs, process};

use daemon::{Daemon, LIMIT, command, count};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// A service with a configuration file of its own.
struct Service {
    daemon: Daemon,
    file: PathBuf,
}

impl Service {
    fn start(test: &str, config: &str) -> Service {
        let file = env::temp_dir().join(format!("taskfork-reload-{}-{test}", process::id()));
        fs::write(&file, config).unwrap();
        let daemon = Daemon::spawn(command("reload").env("RUST_LOG", "debug").arg(&file).arg("127.0.0.1:0"));
        Service { daemon, file }
    }

    fn reload(&mut self, config: &str) {
        fs::write(&self.file, config).unwrap();
        self.daemon.kill(Signal::SIGHUP);
        self.daemon.wait_for_next("Rolling restart done");
    }

    fn answer(&mut self) -> String {
        let mut client = TcpStream::connect(self.daemon.address()).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Returns the pid of the newest process of worker 0.
    fn worker_0(&mut self) -> Pid {
        let find = |line: &String| line.split_once("child 0 (pid ")?.1.split_once(") started")?.0.parse().ok();
        Pid::from_raw(self.daemon.wait_for(|log| log.iter().rev().find_map(find)))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

#[test]
fn hup_reloads_the_greeting_and_the_number_of_workers() {
    let mut service = Service::start("good", r#"{"workers": 1, "greeting": "hello"}"#);
    assert_eq!(service.answer(), "hello from worker 0\n");
    service.reload(r#"{"workers": 2, "greeting": "good day"}"#);
    assert!(service.answer().starts_with("good day from worker "));
    service.daemon.wait_for_next("child 1 (pid");
    service.daemon.kill(Signal::SIGTERM);
    assert_eq!(service.daemon.wait(), Some(0));
}

#[test]
fn wrong_file_changes_nothing_even_after_a_crash() {
    let mut service = Service::start("wrong", r#"{"workers": 1, "greeting": "hello"}"#);
    assert_eq!(service.answer(), "hello from worker 0\n");
    service.reload(r#"{"workers": 1, "greting": "good day"}"#);
    assert_eq!(count(&service.daemon.log, "The configuration stays as it was"), 1);
    assert_eq!(service.answer(), "hello from worker 0\n");
    signal::kill(service.worker_0(), Signal::SIGKILL).unwrap();
    service.daemon.wait_for_next("killed by signal 9, restarting");
    assert_eq!(service.answer(), "hello from worker 0\n");
    service.daemon.kill(Signal::SIGTERM);
    assert_eq!(service.daemon.wait(), Some(0));
}

#[test]
fn wrong_file_ends_the_start() {
    let mut service = Service::start("start", r#"{"workers": 0, "greeting": "hello"}"#);
    assert_eq!(service.daemon.wait(), Some(1));
    assert_eq!(count(&service.daemon.log, "workers must be from 1 to 64"), 1);
}
