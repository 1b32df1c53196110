//! What stays after an upgrade was aborted.

use std::net::UdpSocket;

use nix::sys::signal::Signal;

use super::Scenario;
use crate::build::{Build, Fate, Pool, Workers};
use crate::client;
use crate::daemon::{Daemon, kill, until};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("worker_restarted_in_the_trial_has_no_new_listener", restarted_in_trial),
        Scenario::new("old_program_gets_its_dropped_listener_back", dropped_listener),
    ]
}

/// A worker that the parent forks while it has the new listener must not keep the listener open.
fn restarted_in_trial(workers: Workers) {
    let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let mut daemon = Daemon::start(&Build::new("old", workers));
    let old = daemon.ready_workers("old", 2);
    let listens = vec!["127.0.0.1:0".into(), format!("udp:{port}")];
    let pool = Pool { listens, fate: Fate::WaitsAtGate, ..Pool::default() };
    daemon.begin_upgrade(&Build::new("new", workers).pool(pool));
    let trial = daemon.worker("new");
    kill(old[1].pid, Signal::SIGKILL);
    assert_eq!(daemon.worker("old").id, 1);
    kill(trial.pid, Signal::SIGKILL);
    daemon.wait_for("old log Upgrade aborted: ");
    assert!(until(|| UdpSocket::bind(port).is_ok()), "{port} is used:\n{}", daemon.transcript());
    daemon.wait_until_runs(&["old - 0", "old - 1"]);
    daemon.stop();
}

/// The new program does not have the listener of the old one. Its second worker fails, so a worker of the old program
/// stays. The old program then comes back.
fn dropped_listener(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let address = daemon.address(0);
    let listens = vec!["unix:SCRATCH/socket".into()];
    let fails = Pool { listens, fate: Fate::ExitsWith(7), fate_of: Some(1), ..Pool::default() };
    daemon.begin_upgrade(&Build::new("new", workers).pool(fails));
    daemon.wait_for("new log Upgrade aborted: ");
    daemon.wait_until_runs(&["new - 0", "old - 1"]);
    assert_eq!(client::ask(&address).build, "old");
    daemon.upgrade(&Build::new("third", workers));
    daemon.assert_runs(&["third - 0", "third - 1"]);
    assert_eq!(client::ask(&address).build, "third");
    daemon.stop();
}
