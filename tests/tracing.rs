//! Tests of the example `tracing`, as its operator sees it.

#![cfg(unix)]

#[allow(dead_code)] // Each test uses a part of it.
mod daemon;

use daemon::{Daemon, command};
use nix::sys::signal::Signal;

#[test]
fn every_line_names_its_process() {
    let mut daemon = Daemon::spawn(&mut command("tracing"));
    for id in 0..2 {
        let worker = format!(" worker {id}]  INFO job{{number=1}}: tracing: done");
        daemon.wait_for(|log| log.iter().any(|line| line.ends_with(&worker)).then_some(()));
    }
    daemon.kill(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0));
    let parent = format!("[{} parent]", daemon.pid());
    let of_taskfork: Vec<&String> = daemon.log.iter().filter(|line| line.contains(" taskfork: ")).collect();
    assert!(of_taskfork.len() > 2 && of_taskfork.iter().all(|line| line.contains(&parent)), "{:#?}", daemon.log);
    let of_workers = daemon.log.iter().filter(|line| line.contains(" worker "));
    assert!(of_workers.clone().count() >= 4 && of_workers.clone().all(|line| !line.contains(&parent)));
    // Each line is written once.
    assert_eq!(daemon.log.iter().filter(|line| line.ends_with(" tracing: stops")).count(), 2);
}
