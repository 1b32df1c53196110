//! Nothing accumulates: after ten upgrades the parent and the workers are as after the first start.

use std::collections::BTreeMap;

use super::Scenario;
use crate::build::{Build, Pool, Workers};
use crate::daemon::{Daemon, until};
use crate::procfs;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("ten_upgrades_leave_the_parent_as_it_was", parent),
        Scenario::new("workers_after_ten_upgrades_are_as_clean", clean_workers),
        Scenario::new("per_worker_upgrades_leave_the_parent_as_it_was", per_worker),
        Scenario::forking("workers_of_fork_processes_are_as_clean", clean_forks),
        Scenario::new("helper_of_a_candidate_inherits_no_descriptor", candidate_descriptors),
    ]
}

const UPGRADES: usize = 10;

/// KiB by which the memory of a parent may differ, because allocators and page faults vary.
const SLACK: u64 = 1024;

fn parent(workers: Workers) {
    leaves_parent(Build { takes_commands: true, ..Build::new("build", workers) });
}

fn per_worker(workers: Workers) {
    let pool = Pool { is_per_worker: true, ..Pool::default() };
    leaves_parent(Build { takes_commands: true, ..Build::new("build", workers).pool(pool) });
}

fn leaves_parent(build: Build) {
    let mut daemon = Daemon::start(&build);
    daemon.ready_workers("build", 2);
    let facts = facts(&mut daemon);
    let kinds = kinds(&daemon);
    let memory = procfs::anonymous_memory(daemon.pid());
    for times in 1..=UPGRADES {
        daemon.begin_upgrade(&build);
        daemon.wait_for_times("log Upgrade done", times);
    }
    assert_eq!(self::facts(&mut daemon), facts, "{}", daemon.transcript());
    assert_eq!(self::kinds(&daemon), kinds, "{:?}", procfs::links(daemon.pid()));
    assert!(until(|| procfs::zombies(daemon.pid()).is_empty()));
    assert!(procfs::anonymous_memory(daemon.pid()) < memory + SLACK, "{memory}");
    daemon.assert_runs(&["build - 0", "build - 1"]);
    daemon.stop();
}

/// Returns the parent's own view: its environment, descriptors and signals.
fn facts(daemon: &mut Daemon) -> String {
    daemon.command("facts");
    daemon.wait_for("parent facts ")
}

/// Returns how many descriptors of each kind the parent has.
fn kinds(daemon: &Daemon) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for link in procfs::links(daemon.pid()) {
        let kind = link.split_once(":[").map_or(link.as_str(), |(kind, _)| kind);
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

fn clean_workers(workers: Workers) {
    cleans(&Build { prints_facts: true, ..Build::new("build", workers) });
}

fn clean_forks(_: Workers) {
    cleans(&Build { prints_facts: true, ..Build::fork_processes("build") });
}

/// Each worker prints the same facts, in whichever upgrade it is started: as the trial's worker, or by the new parent.
fn cleans(build: &Build) {
    let mut daemon = Daemon::start(build);
    daemon.workers("build", 2);
    for times in 1..=UPGRADES {
        daemon.begin_upgrade(build);
        daemon.wait_for_times("log Upgrade done", times);
    }
    let facts = daemon.lines_with("build facts ");
    assert_eq!(facts.len(), 1, "{facts:#?}");
    assert_eq!(daemon.count("build facts "), 2 + 2 * UPGRADES);
    daemon.stop();
}

/// The checker and the trial's worker have only the descriptors of the program before the call, as the first parent
/// had. A helper that the program starts there would inherit others.
fn candidate_descriptors(workers: Workers) {
    let build = Build { prints_inherited: true, ..Build::new("build", workers) };
    let mut daemon = Daemon::start(&build);
    daemon.ready_workers("build", 2);
    daemon.upgrade(&build);
    daemon.stop();
    let inherited = daemon.lines_with("build helper has ");
    assert_eq!(inherited.len(), 1, "{inherited:#?}");
}
