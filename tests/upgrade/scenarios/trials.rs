//! Workers that die during the trial, and pools that have no trial worker.

use nix::sys::signal::Signal;

use super::Scenario;
use crate::build::{Before, Build, Fate, Pool, Workers};
use crate::client;
use crate::daemon::{Daemon, kill};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("worker_killed_during_the_checks_is_restarted", killed_in_checks),
        Scenario::new("worker_killed_during_the_trial_is_restarted", killed_in_trial),
        Scenario::new("trial_worker_serves_for_a_killed_old_process", trial_takes_over),
        Scenario::new("killed_trial_worker_aborts_the_upgrade", killed_trial_worker),
        Scenario::new("killed_checker_aborts_the_upgrade", killed_checker),
        Scenario::new("without_surge_no_worker_is_tried", without_surge),
        Scenario::new("optional_pool_has_no_trial_worker", optional_pool),
        Scenario::new("upgrade_repairs_a_crash_loop", crash_loop),
        Scenario::new("connection_of_a_trial_worker_does_not_delay_the_exec", trial_with_client),
    ]
}

fn killed_in_checks(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    let old = daemon.ready_workers("old", 2);
    let new = Build::new("new", workers).before(Before::WaitsAtGate);
    daemon.begin_upgrade(&new);
    daemon.wait_for("new before ");
    for old in old {
        kill(old.pid, Signal::SIGKILL);
        assert_eq!(daemon.worker("old").id, old.id);
    }
    daemon.leave_gate_open("before");
    daemon.wait_for_end_of_upgrade(&new);
    daemon.assert_runs(&["new - 0", "new - 1"]);
    daemon.stop();
    assert_eq!(daemon.count("killed by signal 9, restarting"), 2, "{}", daemon.transcript());
}

fn killed_in_trial(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    let old = daemon.ready_workers("old", 2);
    let new = Build::new("new", workers).pool(Pool::default().fate(Fate::WaitsAtGate));
    daemon.begin_upgrade(&new);
    daemon.worker("new");
    kill(old[1].pid, Signal::SIGKILL);
    assert_eq!(daemon.worker("old").id, 1);
    daemon.leave_gate_open("ready");
    daemon.wait_for_end_of_upgrade(&new);
    daemon.assert_runs(&["new - 0", "new - 1"]);
    daemon.stop();
}

/// The old process of worker 0 dies while its trial process is not ready. It is not restarted, because its id has
/// another process already.
fn trial_takes_over(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    let old = daemon.ready_workers("old", 2);
    let new = Build::new("new", workers).pool(Pool::default().fate(Fate::WaitsAtGate));
    daemon.begin_upgrade(&new);
    assert_eq!(daemon.worker("new").id, 0);
    kill(old[0].pid, Signal::SIGKILL);
    daemon.wait_for("killed by signal 9");
    daemon.leave_gate_open("ready");
    daemon.wait_for_end_of_upgrade(&new);
    daemon.assert_runs(&["new - 0", "new - 1"]);
    daemon.stop();
    assert_eq!(daemon.count("old up"), 2, "{}", daemon.transcript());
    assert_eq!(daemon.count("new up"), 2, "{}", daemon.transcript());
}

fn killed_trial_worker(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers).pool(Pool::default().fate(Fate::WaitsAtGate)));
    let trial = daemon.worker("new");
    kill(trial.pid, Signal::SIGKILL);
    daemon.wait_for("old log Upgrade aborted: ");
    daemon.wait_until_runs(&["old - 0", "old - 1"]);
    daemon.stop();
    assert!(!daemon.said("restarting"), "{}", daemon.transcript());
}

fn killed_checker(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers).before(Before::WaitsAtGate));
    let line = daemon.wait_for("new before ");
    let checker = line.rsplit(' ').next().expect("a pid").parse().expect("a pid");
    kill(checker, Signal::SIGKILL);
    let aborted = daemon.wait_for("old log Upgrade aborted: ");
    assert!(aborted.contains("killed by signal 9"), "{aborted}");
    daemon.wait_until_runs(&["old - 0", "old - 1"]);
    daemon.stop();
}

fn without_surge(workers: Workers) {
    let pool = Pool { max_surge: Some(0), max_unavailable: Some(1), ..Pool::default() };
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(pool.clone()));
    daemon.ready_workers("old", 2);
    daemon.upgrade(&Build::new("new", workers).pool(pool));
    daemon.assert_runs(&["new - 0", "new - 1"]);
    assert!(daemon.said_before("The new program supervises", "new up"), "{}", daemon.transcript());
    assert!(daemon.said_before("old drained - 0", "new up - 0"), "{}", daemon.transcript());
    daemon.stop();
}

/// Workers of the optional pool crash, which does not abort the upgrade of the service.
fn optional_pool(workers: Workers) {
    let extra = Pool { is_optional: true, ..Pool::named("extra") };
    let mut daemon = Daemon::start(&Build::new("old", workers).supervisor([Pool::named("web"), extra.clone()]));
    daemon.ready_workers("old", 4);
    let new = Build::new("new", workers).supervisor([Pool::named("web"), extra.fate(Fate::ExitsWith(7))]);
    daemon.begin_upgrade(&new);
    daemon.wait_for("The new program supervises");
    assert!(!daemon.said("new up extra"), "{}", daemon.transcript());
    daemon.wait_until_runs(&["new web 0", "new web 1", "old extra 0", "old extra 1"]);
    daemon.stop();
}

/// All workers of the old program exit again and again, so the service can only be repaired by another program.
fn crash_loop(workers: Workers) {
    let crashes = Pool { ready_timeout_ms: None, fate: Fate::ExitsWith(7), ..Pool::default() };
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(crashes));
    daemon.wait_for_times("restarting", 2);
    daemon.upgrade(&Build::new("new", workers));
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    assert_eq!(client::ask(&daemon.address(0)).build, "new");
    daemon.stop();
}

/// The trial's worker waits before it is ready. It has accepted a connection before the rest of the trial has ended.
fn trial_with_client(workers: Workers) {
    let pools = || [Pool::named("web"), Pool::named("jobs")];
    let mut daemon = Daemon::start(&Build::new("old", workers).supervisor(pools()));
    daemon.ready_workers("old", 4);
    let [web, jobs] = pools();
    let new = Build::new("new", workers).supervisor([web, jobs.fate(Fate::WaitsAtGate)]);
    daemon.begin_upgrade(&new);
    daemon.workers("new", 2);
    let address = daemon.address(0);
    let mut client = loop {
        let mut client = client::Client::connect(&address).expect("a connection");
        if client.ask().build == "new" {
            break client;
        }
    };
    daemon.leave_gate_open("ready");
    daemon.wait_for_end_of_upgrade(&new);
    assert_eq!(client.ask().build, "new");
    drop(client);
    daemon.stop();
}
