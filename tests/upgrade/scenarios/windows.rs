//! The window: the time from exec until the new program makes its call.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Scenario;
use crate::build::{Before, Build, Fate, Pool, Workers};
use crate::client::{self, Client};
use crate::daemon::{Daemon, kill};
use crate::procfs;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("workers_serve_clients_in_the_window", serves),
        Scenario::new("term_in_the_window_is_handled_at_the_call", |workers| stops(workers, Signal::SIGTERM)),
        Scenario::new("int_in_the_window_is_handled_at_the_call", |workers| stops(workers, Signal::SIGINT)),
        Scenario::new("quit_in_the_window_is_handled_at_the_call", |workers| stops(workers, Signal::SIGQUIT)),
        Scenario::new("hup_in_the_window_follows_the_upgrade", hup),
        Scenario::new("ttin_in_the_window_follows_the_upgrade", ttin),
        Scenario::new("ttou_in_the_window_follows_the_upgrade", ttou),
        Scenario::new("usr1_in_the_window_is_forwarded", usr1),
        Scenario::new("usr2_in_the_window_upgrades_once_more", usr2),
        Scenario::new("worker_killed_in_the_window_is_counted_once", killed),
        Scenario::new("all_workers_killed_in_the_window_are_restarted", all_killed),
        Scenario::new("trial_worker_killed_in_the_window_is_restarted", trial_killed),
        Scenario::new("heartbeats_are_not_missed_in_the_window", heartbeats),
        Scenario::new("silent_worker_is_found_after_the_window", silent),
        Scenario::new("stop_of_the_terminal_in_the_window_stops_the_service", interrupted),
        Scenario::new("kill_in_the_window_ends_the_service", kill_9),
        Scenario::new("crash_in_the_window_ends_the_service", |workers| ends(workers, Before::Crashes)),
        Scenario::new("exit_in_the_window_ends_the_service", |workers| ends(workers, Before::Exits(5))),
        Scenario::new("hang_in_the_window_ends_after_upgrade_timeout", hangs),
        Scenario::new("long_window_is_logged", is_long),
    ]
}

/// Starts a service, and begins an upgrade whose new parent waits before its call.
fn in_window(old: &Build, new: &Build) -> Daemon {
    let mut daemon = Daemon::start(old);
    let workers = old.pools.iter().map(|pool| pool.workers).sum();
    daemon.ready_workers("old", workers);
    daemon.begin_upgrade(new);
    daemon.wait_for("new window ");
    daemon
}

fn waiting(workers: Workers) -> (Build, Build) {
    (Build::new("old", workers), Build::new("new", workers).window(Before::WaitsAtGate))
}

fn simply_in_window(workers: Workers) -> Daemon {
    let (old, new) = waiting(workers);
    in_window(&old, &new)
}

fn leave(daemon: &mut Daemon) {
    daemon.leave_gate_open("window");
}

fn serves(workers: Workers) {
    let mut daemon = simply_in_window(workers);
    let address = daemon.address(0);
    let mut kept = Client::connect(&address).expect("a connection");
    let first = kept.ask();
    (0..20).for_each(|_| assert_ne!(client::ask(&address).pid, 0));
    daemon.wait_until_runs(&["new - 0", "old - 0", "old - 1"]);
    leave(&mut daemon);
    daemon.wait_for("The new program supervises");
    assert_eq!(kept.ask(), first);
    drop(kept);
    daemon.wait_for("new log Upgrade done");
    daemon.stop();
}

fn stops(workers: Workers, signal: Signal) {
    let mut daemon = simply_in_window(workers);
    daemon.signal(signal);
    leave(&mut daemon);
    daemon.ends_with(0);
    assert_eq!(daemon.count("new up"), 1, "{}", daemon.transcript());
    assert!(!daemon.said("restarting"), "{}", daemon.transcript());
}

fn hup(workers: Workers) {
    let mut daemon = simply_in_window(workers);
    daemon.signal(Signal::SIGHUP);
    leave(&mut daemon);
    daemon.wait_for("new log Upgrade done");
    for id in 0..2 {
        daemon.wait_for_times(&format!("new up - {id} 2 "), 1);
    }
    daemon.stop();
    assert_eq!(daemon.count("new up"), 4, "{}", daemon.transcript());
}

fn ttin(workers: Workers) {
    let mut daemon = simply_in_window(workers);
    daemon.signal(Signal::SIGTTIN);
    leave(&mut daemon);
    daemon.wait_for_times("new log Upgrade done", 1);
    daemon.wait_for_times("new up - 2 ", 1);
    daemon.wait_until_runs(&["new - 0", "new - 1", "new - 2"]);
    daemon.stop();
}

fn ttou(workers: Workers) {
    let mut daemon = simply_in_window(workers);
    daemon.signal(Signal::SIGTTOU);
    leave(&mut daemon);
    daemon.wait_for_times("new log Upgrade done", 1);
    daemon.wait_until_runs(&["new - 0"]);
    daemon.stop();
}

/// The workers have no handler for SIGUSR1, so it kills them. Each is then restarted.
fn usr1(workers: Workers) {
    let mut daemon = simply_in_window(workers);
    daemon.signal(Signal::SIGUSR1);
    leave(&mut daemon);
    daemon.wait_for("killed by signal 10");
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    daemon.stop();
}

fn usr2(workers: Workers) {
    let mut daemon = simply_in_window(workers);
    daemon.begin_upgrade(&Build::new("third", workers));
    leave(&mut daemon);
    daemon.wait_for_times("third log Upgrade done", 1);
    assert!(daemon.said_before("new log Upgrade done", "new log Upgrading"), "{}", daemon.transcript());
    daemon.assert_runs(&["third - 0", "third - 1"]);
    daemon.stop();
}

fn killed(workers: Workers) {
    let (old, new) = waiting(workers);
    let mut daemon = Daemon::start(&old);
    let old = daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build { takes_commands: true, ..new });
    daemon.wait_for("new window ");
    kill(old[1].pid, Signal::SIGKILL);
    leave(&mut daemon);
    daemon.wait_for_times("new log Upgrade done", 1);
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    assert_eq!(daemon.count(&format!("(pid {}) killed by signal 9", old[1].pid)), 1, "{}", daemon.transcript());
    daemon.command("status");
    daemon.wait_for("status end");
    let restarts: usize = daemon.lines_with(" restarts ").iter().map(|line| last_number(line)).sum();
    // The rolling restart may begin to replace the worker before its exit is found.
    assert!(restarts <= 1, "{}", daemon.transcript());
    daemon.stop();
}

fn last_number(line: &str) -> usize {
    line.rsplit(' ').next().expect("a word").parse().expect("a number")
}

fn all_killed(workers: Workers) {
    let mut daemon = simply_in_window(workers);
    let processes = procfs::children(daemon.pid());
    assert_eq!(processes.len(), 3, "{}", daemon.transcript());
    processes.into_iter().for_each(|pid| kill(pid, Signal::SIGKILL));
    leave(&mut daemon);
    daemon.wait_for_times("killed by signal 9", 3);
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    daemon.stop();
}

fn trial_killed(workers: Workers) {
    let (old, new) = waiting(workers);
    let mut daemon = Daemon::start(&old);
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&new);
    let trial = daemon.worker("new");
    daemon.wait_for("new window ");
    kill(trial.pid, Signal::SIGKILL);
    leave(&mut daemon);
    daemon.wait_for("killed by signal 9");
    // The replacement has failed after the exec, or its worker is restarted: in both cases each id is served.
    daemon.wait_for("new log Upgrade ");
    assert!(daemon.running().len() >= 2, "{}", daemon.transcript());
    daemon.stop();
}

/// The window is longer than the timeout.
fn heartbeats(workers: Workers) {
    let pool = Pool { heartbeat_timeout_ms: Some(1000), ..Pool::default() };
    let old = Build::new("old", workers).pool(pool.clone());
    let mut daemon = in_window(&old, &Build::new("new", workers).pool(pool).window(Before::WaitsAtGate));
    // This is the duration of the window, and not a wait for an event.
    thread::sleep(Duration::from_millis(2500));
    leave(&mut daemon);
    daemon.wait_for("new log Upgrade done");
    daemon.stop();
    assert!(!daemon.said("no heartbeat"), "{}", daemon.transcript());
}

/// A worker that is stopped in the window sends no heartbeats. Its replacement waits at the gate.
fn silent(workers: Workers) {
    let pool = Pool { heartbeat_timeout_ms: Some(1000), ..Pool::default() };
    let old = Build::new("old", workers).pool(pool.clone());
    // The replacement of worker 1 is not ready, so its old process is not stopped.
    let gated = Pool { fate: Fate::WaitsAtGate, fate_of: Some(1), ..pool };
    let new = Build::new("new", workers).pool(gated).window(Before::WaitsAtGate);
    let mut daemon = Daemon::start(&old);
    let workers = daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&new);
    daemon.wait_for("new window ");
    kill(workers[1].pid, Signal::SIGSTOP);
    leave(&mut daemon);
    daemon.wait_for(&format!("(pid {}) has sent no heartbeat in time", workers[1].pid));
    daemon.leave_gate_open("ready");
    daemon.wait_for(&format!("(pid {}) killed by signal", workers[1].pid));
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    daemon.stop();
}

fn interrupted(workers: Workers) {
    let mut daemon = simply_in_window(workers);
    for pid in procfs::children(daemon.pid()).into_iter().chain([daemon.pid()]) {
        kill(pid, Signal::SIGINT);
    }
    leave(&mut daemon);
    daemon.ends_with(0);
    assert!(!daemon.said("restarting"), "{}", daemon.transcript());
}

/// The workers get SIGTERM when the parent dies. The end of the output shows that no process is left.
fn kill_9(workers: Workers) {
    let mut daemon = simply_in_window(workers);
    daemon.signal(Signal::SIGKILL);
    daemon.end();
    assert_eq!(daemon.count("drained"), 3, "{}", daemon.transcript());
}

fn ends(workers: Workers, what: Before) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers).window(what));
    let status = daemon.end();
    assert!(!status.success());
    assert_eq!(daemon.count("drained"), 3, "{}", daemon.transcript());
}

/// The timer of the kernel ends the new parent, and the workers drain.
fn hangs(workers: Workers) {
    let within = Some(5000);
    let mut daemon = Daemon::start(&Build { upgrade_timeout_ms: within, ..Build::new("old", workers) });
    daemon.ready_workers("old", 2);
    let hangs = Build::new("new", workers).window(Before::Hangs);
    daemon.begin_upgrade(&Build { upgrade_timeout_ms: within, ..hangs });
    daemon.wait_for("new window ");
    let status = daemon.end();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{}", daemon.transcript());
    assert_eq!(daemon.count("drained"), 3, "{}", daemon.transcript());
}

/// The trial has measured how long the new program takes to its call.
fn is_long(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let slow = Build::new("new", workers).before(Before::Sleeps(1100)).window(Before::Sleeps(1100));
    daemon.upgrade(&slow);
    assert!(daemon.said("to reach its call"), "{}", daemon.transcript());
    assert!(daemon.said("has reached its call after"), "{}", daemon.transcript());
    daemon.stop();
}
