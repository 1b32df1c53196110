//! The pid file through an upgrade, and the executable of spawned workers.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::Scenario;
use crate::build::{Before, Build, Fate, Pool, Workers};
use crate::daemon::{Daemon, kill};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("pid_file_stays_locked_through_upgrades", pid_file_stays),
        Scenario::new("candidate_leaves_the_pid_file_alone", pid_file_in_trial),
        Scenario::new("changed_pid_file_is_moved", pid_file_moves),
        Scenario::new("pid_file_of_a_parent_killed_in_the_window_is_stale", pid_file_is_stale),
        Scenario::new("replaced_file_does_not_stop_restarts", replaced_program),
        Scenario::new("deleted_file_does_not_stop_restarts", deleted_program),
    ]
}

fn with_pid_file(name: &str, workers: Workers, path: &str) -> Build {
    Build { pid_file: Some(PathBuf::from("SCRATCH").join(path)), ..Build::new(name, workers) }
}

/// Returns the pid of the process that holds a record lock on the whole file (fcntl(2)).
fn holder(path: &Path) -> Option<u32> {
    let file = File::open(path).expect("a pid file");
    let mut lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: fcntl(2) with F_GETLK reads and writes one flock.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) };
    assert_eq!(result, 0);
    (i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid as u32)
}

fn assert_is_held(daemon: &Daemon, path: &str) {
    let path = daemon.scratch().join(path);
    assert_eq!(std::fs::read_to_string(&path).expect("a pid file"), format!("{}\n", daemon.pid()));
    assert_eq!(holder(&path), Some(daemon.pid()));
}

fn pid_file_stays(workers: Workers) {
    let mut daemon = Daemon::start(&with_pid_file("old", workers, "pid"));
    daemon.ready_workers("old", 2);
    assert_is_held(&daemon, "pid");
    for name in ["new", "third"] {
        daemon.begin_upgrade(&with_pid_file(name, workers, "pid").window(Before::WaitsAtGate));
        daemon.wait_for(&format!("{name} window "));
        assert_is_held(&daemon, "pid");
        daemon.open_gate("window", 1);
        daemon.wait_for(&format!("{name} log Upgrade done"));
        assert_is_held(&daemon, "pid");
    }
    daemon.stop();
    assert!(!daemon.scratch().join("pid").exists());
}

fn pid_file_in_trial(workers: Workers) {
    let mut daemon = Daemon::start(&with_pid_file("old", workers, "pid"));
    daemon.ready_workers("old", 2);
    let fails = with_pid_file("new", workers, "pid").pool(Pool::default().fate(Fate::ExitsWith(7)));
    daemon.begin_upgrade(&fails);
    daemon.wait_for("log Upgrade aborted: ");
    assert_is_held(&daemon, "pid");
    daemon.stop();
    assert!(!daemon.scratch().join("pid").exists());
}

fn pid_file_moves(workers: Workers) {
    let mut daemon = Daemon::start(&with_pid_file("old", workers, "first"));
    daemon.ready_workers("old", 2);
    daemon.upgrade(&with_pid_file("new", workers, "second"));
    assert_is_held(&daemon, "second");
    assert!(!daemon.scratch().join("first").exists());
    daemon.upgrade(&Build::new("third", workers));
    assert!(!daemon.scratch().join("second").exists());
    daemon.upgrade(&with_pid_file("fourth", workers, "fourth"));
    assert_is_held(&daemon, "fourth");
    daemon.stop();
    assert!(!daemon.scratch().join("fourth").exists());
}

fn pid_file_is_stale(workers: Workers) {
    let mut daemon = Daemon::start(&with_pid_file("old", workers, "pid"));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&with_pid_file("new", workers, "pid").window(Before::WaitsAtGate));
    daemon.wait_for("new window ");
    daemon.signal(Signal::SIGKILL);
    daemon.end();
    assert_eq!(holder(&daemon.scratch().join("pid")), None);
}

/// The workers that the old parent restarts after a failed trial run the old program.
fn replaced_program(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    let old = daemon.ready_workers("old", 2);
    daemon.deploy(&Build::new("new", workers));
    kill(old[0].pid, Signal::SIGKILL);
    assert_eq!(daemon.worker("old").id, 0);
    daemon.stop();
    assert!(!daemon.said("new up"), "{}", daemon.transcript());
}

/// After an upgrade, the deleted file is that of the new program.
fn deleted_program(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers));
    let new = daemon.workers("new", 2);
    daemon.wait_for("new log Upgrade done");
    std::fs::remove_file(daemon.program()).expect("a program");
    kill(new[0].pid, Signal::SIGKILL);
    assert_eq!(daemon.worker("new").id, 0);
    daemon.signal(Signal::SIGUSR2);
    daemon.wait_for("log Upgrade aborted: ");
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    daemon.upgrade(&Build::new("third", workers));
    daemon.assert_runs(&["third - 0", "third - 1"]);
    daemon.stop();
}
