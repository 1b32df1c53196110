//! New programs with other settings.

use super::Scenario;
use crate::build::{Build, Call, Fate, Pool, Workers};
use crate::client::{self, Client};
use crate::daemon::{Daemon, until};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("new_program_has_more_workers", more_workers),
        Scenario::new("new_program_has_fewer_workers", fewer_workers),
        Scenario::new("failing_new_id_is_dropped", failing_new_id),
        Scenario::new("settings_of_the_new_program_apply", other_settings),
        Scenario::new("removed_pool_is_drained", removed_pool),
        Scenario::new("new_pool_starts_after_the_others_are_rolled", new_pool),
        Scenario::new("failing_new_pool_is_dropped", failing_new_pool),
        Scenario::new("renamed_pool_is_removed_and_added", renamed_pool),
        Scenario::new("prefork_becomes_a_supervisor_and_back", other_call),
        Scenario::forking("fork_processes_becomes_prefork_and_back", other_function),
        Scenario::new("backend_changes", other_backend),
        Scenario::new("name_of_the_service_changes", other_name),
    ]
}

fn more_workers(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let new = Build::new("new", workers).pool(Pool::of(4));
    daemon.begin_upgrade(&new);
    daemon.workers("new", 4);
    daemon.wait_until_runs(&["new - 0", "new - 1", "new - 2", "new - 3"]);
    daemon.stop();
    assert!(daemon.said("new up - 3 0 "), "{}", daemon.transcript());
}

fn fewer_workers(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(Pool::of(4)));
    daemon.ready_workers("old", 4);
    daemon.upgrade(&Build::new("new", workers).pool(Pool::of(1)));
    daemon.wait_until_runs(&["new - 0"]);
    daemon.stop();
    assert_eq!(daemon.count("new up"), 1, "{}", daemon.transcript());
    assert_eq!(daemon.count("old drained"), 4, "{}", daemon.transcript());
}

fn failing_new_id(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let pool = Pool { fate: Fate::ExitsWith(7), fate_of: Some(2), ..Pool::of(3) };
    daemon.begin_upgrade(&Build::new("new", workers).pool(pool));
    daemon.wait_for("Worker 2 could not start, removing it");
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    daemon.stop();
}

/// The new program has a readiness that the old one does not have, and replaces workers without surge.
fn other_settings(workers: Workers) {
    let old = Pool { ready_timeout_ms: None, ..Pool::default() };
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(old));
    daemon.workers("old", 2);
    let new = Pool { max_surge: Some(0), max_unavailable: Some(1), graceful_timeout_ms: 1000, ..Pool::default() };
    daemon.upgrade(&Build::new("new", workers).pool(new));
    daemon.assert_runs(&["new - 0", "new - 1"]);
    assert!(daemon.said_before("The new program supervises", "new up"), "{}", daemon.transcript());
    let _held = Client::connect(&daemon.address(0)).map(|mut client| (client.ask(), client));
    daemon.stop();
    assert!(daemon.said("new log") && daemon.said("did not stop in time"), "{}", daemon.transcript());
}

fn removed_pool(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers).supervisor([Pool::named("web"), Pool::named("jobs")]));
    daemon.ready_workers("old", 4);
    let mut client = Client::connect(&daemon.address(1)).expect("a connection");
    let answer = client.ask();
    assert_eq!(answer.pool, "jobs");
    daemon.begin_upgrade(&Build::new("new", workers).supervisor([Pool::named("web")]));
    daemon.workers("new", 2);
    let left = format!("old jobs {}", answer.id);
    daemon.wait_until_runs(&["new web 0", "new web 1", &left]);
    assert_eq!(client.ask(), answer);
    drop(client);
    daemon.wait_until_runs(&["new web 0", "new web 1"]);
    let address = daemon.address(1);
    assert!(until(|| Client::connect(&address).is_err()), "{}", daemon.transcript());
    daemon.stop();
    assert!(!daemon.said("new up jobs"), "{}", daemon.transcript());
}

fn new_pool(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers).supervisor([Pool::named("web")]));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers).supervisor([Pool::named("jobs"), Pool::named("web")]));
    daemon.workers("new", 4);
    daemon.wait_until_runs(&["new jobs 0", "new jobs 1", "new web 0", "new web 1"]);
    assert!(daemon.said_before("new up web 1", "new up jobs"), "{}", daemon.transcript());
    let line = daemon.lines_with("new log jobs: Listening on ").first().expect("an address").to_string();
    let address = line.rsplit(' ').next().expect("an address");
    assert_eq!(client::ask(address).pool, "jobs");
    daemon.stop();
}

fn failing_new_pool(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers).supervisor([Pool::named("web")]));
    daemon.ready_workers("old", 2);
    let fails = Pool::named("jobs").fate(Fate::ExitsWith(7));
    daemon.begin_upgrade(&Build::new("new", workers).supervisor([Pool::named("web"), fails]));
    daemon.wait_for("new up jobs");
    daemon.wait_until_runs(&["new web 0", "new web 1"]);
    assert_eq!(client::ask(&daemon.address(0)).build, "new");
    daemon.stop();
}

fn renamed_pool(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers).supervisor([Pool::named("web"), Pool::named("jobs")]));
    daemon.ready_workers("old", 4);
    daemon.begin_upgrade(&Build::new("new", workers).supervisor([Pool::named("web"), Pool::named("tasks")]));
    daemon.workers("new", 4);
    daemon.wait_until_runs(&["new tasks 0", "new tasks 1", "new web 0", "new web 1"]);
    daemon.stop();
}

/// A `Prefork` that is used alone is a pool without a name.
fn other_call(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers).supervisor([Pool::named("web")]));
    daemon.workers("new", 2);
    daemon.wait_until_runs(&["new web 0", "new web 1"]);
    daemon.begin_upgrade(&Build::new("third", workers));
    daemon.workers("third", 2);
    daemon.wait_until_runs(&["third - 0", "third - 1"]);
    daemon.stop();
}

fn other_function(workers: Workers) {
    let mut daemon = Daemon::start(&Build { call: Call::ForkProcesses, ..Build::new("old", workers) });
    daemon.workers("old", 2);
    daemon.upgrade(&Build::new("new", workers));
    daemon.assert_runs(&["new - 0", "new - 1"]);
    daemon.upgrade(&Build::fork_processes("third"));
    daemon.wait_until_runs(&["third - 0", "third - 1"]);
    daemon.stop();
}

fn other_backend(workers: Workers) {
    let other = if workers == Workers::Forked { Workers::Spawned } else { Workers::Forked };
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.upgrade(&Build::new("new", other));
    daemon.assert_runs(&["new - 0", "new - 1"]);
    daemon.upgrade(&Build::new("third", workers));
    daemon.assert_runs(&["third - 0", "third - 1"]);
    daemon.stop();
}

fn other_name(workers: Workers) {
    let named = |build: Build, name: &str| Build { service_name: Some(name.into()), ..build };
    let mut daemon = Daemon::start(&named(Build::new("old", workers), "first"));
    daemon.ready_workers("old", 2);
    daemon.upgrade(&named(Build::new("new", workers), "second"));
    daemon.assert_runs(&["new - 0", "new - 1"]);
    daemon.stop();
}
