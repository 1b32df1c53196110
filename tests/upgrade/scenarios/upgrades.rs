//! Upgrades that succeed, in each way to start workers.

use nix::sys::signal::Signal;

use super::Scenario;
use crate::build::{Build, Fate, Pool, Workers};
use crate::client;
use crate::daemon::{Daemon, kill};
use crate::procfs;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("usr2_runs_the_new_program_under_the_same_pid", runs_new_program),
        Scenario::new("handle_upgrade_runs_the_new_program", by_handle),
        Scenario::forking("fork_processes_is_upgraded", fork_processes),
        Scenario::new("without_readiness_a_trial_worker_lives_a_second", without_readiness),
        Scenario::new("supervisor_upgrades_its_pools_in_order", two_pools),
        Scenario::new("generations_continue_through_upgrades", generations),
        Scenario::new("trial_worker_serves_clients_before_the_exec", trial_serves),
        Scenario::forking("worker_threads_cannot_be_upgraded", threads),
        Scenario::new("upgraded_service_restarts_killed_workers", restarts),
        Scenario::new("old_program_rolls_back_the_new_one", rolls_back),
        Scenario::new("failed_replacement_keeps_the_old_workers", failed_replacement),
        Scenario::new("usr2_ignored_before_the_call_stays_ignored", own_handler),
    ]
}

fn runs_new_program(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    let old = daemon.ready_workers("old", 2);
    let name = procfs::name(daemon.pid());
    daemon.upgrade(&Build::new("new", workers));
    daemon.assert_runs(&["new - 0", "new - 1"]);
    assert!(old.iter().all(|old| !procfs::runs(old.pid)));
    assert_eq!(procfs::program(daemon.pid()), daemon.program());
    assert_eq!(procfs::name(daemon.pid()), name);
    assert_eq!(client::ask(&daemon.address(0)).build, "new");
    for line in ["old log Upgrading: trying the program on disk", "new log The new program supervises 3 processes"] {
        assert_eq!(daemon.count(line), 1, "{}", daemon.transcript());
    }
    daemon.stop();
    assert!(!daemon.said("restarting"), "{}", daemon.transcript());
    assert!(daemon.said("new report"), "{}", daemon.transcript());
    assert!(!daemon.said("old report"), "{}", daemon.transcript());
}

fn by_handle(workers: Workers) {
    let mut daemon = Daemon::start(&Build { takes_commands: true, ..Build::new("old", workers) });
    daemon.ready_workers("old", 2);
    let new = Build::new("new", workers);
    daemon.deploy(&new);
    daemon.command("upgrade");
    daemon.wait_for_end_of_upgrade(&new);
    daemon.assert_runs(&["new - 0", "new - 1"]);
    daemon.stop();
}

fn fork_processes(_: Workers) {
    let mut daemon = Daemon::start(&Build::fork_processes("old"));
    daemon.workers("old", 2);
    daemon.upgrade(&Build::fork_processes("new"));
    daemon.assert_runs(&["new - 0", "new - 1"]);
    daemon.stop();
    assert!(!daemon.said("restarting"), "{}", daemon.transcript());
}

fn without_readiness(workers: Workers) {
    let pool = Pool { ready_timeout_ms: None, ..Pool::default() };
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(pool.clone()));
    daemon.workers("old", 2);
    daemon.upgrade(&Build::new("new", workers).pool(pool));
    daemon.assert_runs(&["new - 0", "new - 1"]);
    daemon.stop();
}

fn two_pools(workers: Workers) {
    let pools = || [Pool::named("web"), Pool::named("jobs")];
    let mut daemon = Daemon::start(&Build::new("old", workers).supervisor(pools()));
    daemon.ready_workers("old", 4);
    let new = Build::new("new", workers).supervisor(pools());
    daemon.begin_upgrade(&new);
    let trial = daemon.workers("new", 2);
    let ids: Vec<_> = trial.iter().map(|up| (up.pool.as_str(), up.id, up.generation)).collect();
    assert_eq!(ids, [("jobs", 0, 1), ("web", 0, 1)]);
    daemon.wait_for_end_of_upgrade(&new);
    daemon.assert_runs(&["new jobs 0", "new jobs 1", "new web 0", "new web 1"]);
    assert!(daemon.said_before("new up web 1", "new up jobs 1"), "{}", daemon.transcript());
    assert_eq!(client::ask(&daemon.address(0)).pool, "web");
    assert_eq!(client::ask(&daemon.address(1)).pool, "jobs");
    daemon.stop();
}

fn generations(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    for generation in 1..=3 {
        let name = format!("build{generation}");
        daemon.upgrade(&Build::new(&name, workers));
        for id in 0..2 {
            let up = format!("{name} up - {id} {generation} ");
            assert_eq!(daemon.count(&up), 1, "{up}:\n{}", daemon.transcript());
        }
    }
    daemon.stop();
}

/// The trial's worker of the second pool waits at the gate, so that the upgrade stays in its trial.
fn trial_serves(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers).supervisor([Pool::named("web"), Pool::named("jobs")]));
    daemon.ready_workers("old", 4);
    let jobs = Pool::named("jobs").fate(Fate::WaitsAtGate);
    let new = Build::new("new", workers).supervisor([Pool::named("web"), jobs]);
    daemon.begin_upgrade(&new);
    daemon.workers("new", 2);
    let address = daemon.address(0);
    while client::ask(&address).build != "new" {}
    assert!(!daemon.said("The new program supervises"), "{}", daemon.transcript());
    daemon.leave_gate_open("ready");
    daemon.wait_for_end_of_upgrade(&new);
    daemon.stop();
}

fn threads(_: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", Workers::Threads));
    daemon.workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", Workers::Threads));
    let line = daemon.wait_for("old log Upgrade aborted: ");
    assert!(line.contains("threads"), "{line}");
    assert_eq!(client::ask(&daemon.address(0)).build, "old");
    daemon.stop();
    assert!(!daemon.said("new up"), "{}", daemon.transcript());
}

fn restarts(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers));
    let new = daemon.workers("new", 2);
    daemon.wait_for("new log Upgrade done");
    for up in new {
        kill(up.pid, Signal::SIGKILL);
        let restarted = daemon.worker("new");
        assert_eq!((restarted.id, restarted.generation), (up.id, up.generation + 1));
    }
    daemon.stop();
}

fn rolls_back(workers: Workers) {
    let old = Build::new("old", workers);
    let mut daemon = Daemon::start(&old);
    daemon.ready_workers("old", 2);
    daemon.upgrade(&Build::new("new", workers));
    daemon.begin_upgrade(&old);
    daemon.wait_for("old log Upgrade done");
    daemon.assert_runs(&["old - 0", "old - 1"]);
    daemon.stop();
}

/// Only the replacement of worker 1 fails, so that the trial succeeds. The next upgrade repairs the service.
fn failed_replacement(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let fails = Pool { fate: Fate::ExitsWith(7), fate_of: Some(1), ..Pool::default() };
    daemon.begin_upgrade(&Build::new("new", workers).pool(fails));
    daemon.wait_for("new log Upgrade aborted: ");
    daemon.wait_until_runs(&["new - 0", "old - 1"]);
    assert!(!daemon.said("restarting"), "{}", daemon.transcript());
    daemon.upgrade(&Build::new("third", workers));
    daemon.assert_runs(&["third - 0", "third - 1"]);
    daemon.stop();
}

fn own_handler(workers: Workers) {
    let mut daemon = Daemon::start(&Build { ignores_usr2: true, ..Build::new("old", workers) });
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers));
    daemon.stop();
    assert!(!daemon.said("Upgrad"), "{}", daemon.transcript());
}
