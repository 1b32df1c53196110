//! Stops and other requests during the trial. Windows between exec and the call are in [`super::windows`].

use nix::sys::signal::Signal;

use super::Scenario;
use crate::build::{Before, Build, Fate, Pool, Workers};
use crate::client::{self, Client};
use crate::daemon::{Daemon, kill};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("term_during_the_checks_stops_the_service", |workers| stops_in_checks(workers, Signal::SIGTERM)),
        Scenario::new("int_during_the_checks_stops_the_service", |workers| stops_in_checks(workers, Signal::SIGINT)),
        Scenario::new("quit_during_the_checks_stops_the_service", |workers| stops_in_checks(workers, Signal::SIGQUIT)),
        Scenario::new("term_during_the_trial_stops_the_service", |workers| stops_in_trial(workers, Signal::SIGTERM)),
        Scenario::new("quit_during_the_trial_stops_the_service", |workers| stops_in_trial(workers, Signal::SIGQUIT)),
        Scenario::new("term_during_the_rolling_restart_stops_the_service", stops_in_roll),
        Scenario::new("hup_during_the_trial_follows_the_upgrade", hup),
        Scenario::new("ttin_during_the_trial_follows_the_upgrade", ttin),
        Scenario::new("ttou_during_the_trial_follows_the_upgrade", ttou),
        Scenario::new("requests_during_a_failed_trial_are_carried_out", after_failed_trial),
        Scenario::new("usr2_during_the_checks_tries_the_newest_program", usr2_in_checks),
        Scenario::new("usr2_during_the_trial_tries_the_newest_program", usr2_in_trial),
        Scenario::new("usr2_during_the_rolling_restart_upgrades_once_more", usr2_in_roll),
        Scenario::new("usr2_during_a_rolling_restart_waits_for_replacements", usr2_during_hup),
    ]
}

/// Starts a service, and begins an upgrade whose checker waits before the call.
pub(super) fn in_checks(workers: Workers) -> Daemon {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers).before(Before::WaitsAtGate));
    daemon.wait_for("new before ");
    daemon
}

/// Starts a service, and begins an upgrade whose trial worker waits before it is ready.
fn in_trial(workers: Workers) -> Daemon {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&waiting(workers));
    daemon.worker("new");
    daemon
}

fn waiting(workers: Workers) -> Build {
    Build::new("new", workers).pool(Pool::default().fate(Fate::WaitsAtGate))
}

/// The end of the output shows that the candidate is gone, too.
fn stops_in_checks(workers: Workers, signal: Signal) {
    let mut daemon = in_checks(workers);
    daemon.signal(signal);
    daemon.end();
    assert_eq!(daemon.count("old log Upgrade aborted: "), 1, "{}", daemon.transcript());
    assert!(!daemon.said("restarting") && !daemon.said("new log"), "{}", daemon.transcript());
    assert_eq!(daemon.count("old report"), 1, "{}", daemon.transcript());
}

fn stops_in_trial(workers: Workers, signal: Signal) {
    let mut daemon = in_trial(workers);
    daemon.signal(signal);
    if signal == Signal::SIGTERM {
        // The worker waits at the gate, although it is asked to stop.
        daemon.wait_for("log Stopping ");
        daemon.leave_gate_open("ready");
    }
    daemon.end();
    assert_eq!(daemon.count("old log Upgrade aborted: "), 1, "{}", daemon.transcript());
    assert!(!daemon.said("restarting") && !daemon.said("The new program supervises"), "{}", daemon.transcript());
    assert_eq!(daemon.count("old report"), 1, "{}", daemon.transcript());
}

/// The new parent waits for the replacement of worker 1.
fn stops_in_roll(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let gated = Pool { fate: Fate::WaitsAtGate, fate_of: Some(1), ..Pool::default() };
    daemon.begin_upgrade(&Build::new("new", workers).pool(gated));
    daemon.workers("new", 2);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("new log Stopping ");
    daemon.leave_gate_open("ready");
    daemon.ends_with(0);
    assert!(!daemon.said("restarting"), "{}", daemon.transcript());
}

fn hup(workers: Workers) {
    let mut daemon = in_trial(workers);
    daemon.signal(Signal::SIGHUP);
    daemon.leave_gate_open("ready");
    daemon.wait_for("new log Upgrade done");
    for id in 0..2 {
        daemon.wait_for_times(&format!("new up - {id} 2 "), 1);
    }
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    daemon.stop();
    assert_eq!(daemon.count("new up"), 4, "{}", daemon.transcript());
}

fn ttin(workers: Workers) {
    let mut daemon = in_trial(workers);
    daemon.signal(Signal::SIGTTIN);
    daemon.leave_gate_open("ready");
    daemon.wait_for_times("new log Upgrade done", 1);
    daemon.wait_for_times("new up - 2 ", 1);
    daemon.wait_until_runs(&["new - 0", "new - 1", "new - 2"]);
    assert!(!daemon.said("old up - 2"), "{}", daemon.transcript());
    daemon.stop();
}

fn ttou(workers: Workers) {
    let mut daemon = in_trial(workers);
    daemon.signal(Signal::SIGTTOU);
    daemon.leave_gate_open("ready");
    daemon.wait_for_times("new log Upgrade done", 1);
    daemon.wait_until_runs(&["new - 0"]);
    daemon.stop();
}

fn after_failed_trial(workers: Workers) {
    let mut daemon = in_trial(workers);
    daemon.signal(Signal::SIGTTIN);
    // Deletes the program, so that the next upgrade fails at once.
    std::fs::remove_file(daemon.program()).expect("a program");
    daemon.signal(Signal::SIGUSR2);
    daemon.wait_for_times("old log Upgrade aborted: ", 2);
    daemon.leave_gate_open("ready");
    daemon.wait_for_times("old up - 2 ", 1);
    daemon.wait_until_runs(&["old - 0", "old - 1", "old - 2"]);
    daemon.stop();
}

fn usr2_in_checks(workers: Workers) {
    let mut daemon = in_checks(workers);
    daemon.upgrade_despite_aborts(&Build::new("third", workers));
    daemon.wait_until_runs(&["third - 0", "third - 1"]);
    daemon.stop();
    assert_eq!(daemon.count("log Upgrade aborted: "), 1, "{}", daemon.transcript());
    assert!(!daemon.said("new up"), "{}", daemon.transcript());
}

fn usr2_in_trial(workers: Workers) {
    let mut daemon = in_trial(workers);
    // The worker of the second build gets a stop request, which it handles only when the gate has opened.
    daemon.leave_gate_open("ready");
    daemon.upgrade_despite_aborts(&Build::new("third", workers));
    daemon.wait_until_runs(&["third - 0", "third - 1"]);
    daemon.stop();
    assert!(!daemon.said("restarting"), "{}", daemon.transcript());
}

/// A client delays the end of the first upgrade, because it keeps its connection to an old worker.
fn usr2_in_roll(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let mut client = Client::connect(&daemon.address(0)).expect("a connection");
    assert_eq!(client.ask().build, "old");
    daemon.begin_upgrade(&Build::new("new", workers));
    daemon.workers("new", 2);
    daemon.begin_upgrade(&Build::new("third", workers));
    assert_eq!(client.ask().build, "old");
    drop(client);
    daemon.wait_for_times("log Upgrade done", 2);
    assert!(daemon.said_before("new log Upgrade done", "third log Upgrade done"), "{}", daemon.transcript());
    daemon.assert_runs(&["third - 0", "third - 1"]);
    daemon.stop();
}

/// The replacement of worker 0 by the old program is in progress when the upgrade is requested.
fn usr2_during_hup(workers: Workers) {
    let gated = Pool::default().fate(Fate::WaitsAtGate);
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(gated));
    daemon.open_gate("ready", 2);
    daemon.ready_workers("old", 2);
    daemon.signal(Signal::SIGHUP);
    let replacement = daemon.worker("old");
    let new = Build::new("new", workers);
    daemon.begin_upgrade(&new);
    daemon.leave_gate_open("ready");
    daemon.wait_for_end_of_upgrade(&new);
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    assert!(daemon.said(&format!("old drained - {} {}", replacement.id, replacement.pid)), "{}", daemon.transcript());
    assert_eq!(client::ask(&daemon.address(0)).build, "new");
    kill(daemon.pid(), Signal::SIGTERM);
    daemon.ends_with(0);
}
