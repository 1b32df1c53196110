//! kill -9 of the parent and of candidates at random moments of upgrades.
//!
//! The variable `TASKFORK_UPGRADE_KILLS` sets the number of upgrades, for long runs.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Scenario;
use crate::build::{Build, Pool, Workers};
use crate::daemon::{Daemon, until};
use crate::procfs;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("kills_at_random_moments_leave_one_service_or_none", |workers| kills(workers, Pool::of(3))),
        Scenario::new("kills_with_per_worker_sockets_leave_one_service_or_none", |workers| {
            kills(workers, Pool { is_per_worker: true, ..Pool::of(3) });
        }),
    ]
}

const WORKERS: usize = 3;

/// The number of upgrades, unless the variable sets another one.
const UPGRADES: usize = 12;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Parent,
    /// The checker, the trial's worker, or a replacement, whichever is there.
    NewProcess,
    OldWorker,
    Nothing,
}

fn kills(workers: Workers, pool: Pool) {
    let upgrades = std::env::var("TASKFORK_UPGRADE_KILLS").map_or(UPGRADES, |text| text.parse().expect("a number"));
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let build = |number: usize| Build::new(&format!("build{number}"), workers).pool(pool.clone());
    let mut daemon = start(&build(0));
    // The typical duration of an upgrade, in which the moments of the kills lie.
    let began = Instant::now();
    daemon.upgrade(&build(1));
    let duration = began.elapsed();
    // The upgrades of the service that runs.
    let mut requested = 1;
    for number in 2..upgrades + 2 {
        let victim = match random.random_range(0..10) {
            0..3 => Victim::Parent,
            3..7 => Victim::NewProcess,
            7..9 => Victim::OldWorker,
            _ => Victim::Nothing,
        };
        let old = procfs::children(daemon.pid());
        daemon.begin_upgrade(&build(number));
        requested += 1;
        let moment = Instant::now() + duration.mul_f64(random.random_range(0.0..1.2));
        while Instant::now() < moment {
            check(&daemon, victim);
            thread::sleep(Duration::from_millis(1));
        }
        match victim {
            Victim::Parent => {
                daemon.signal(Signal::SIGKILL);
                // The end of the output shows that no process is left.
                daemon.end();
                daemon = start(&build(number));
                requested = 0;
                continue;
            }
            Victim::NewProcess => kill_one_of(&(&procfs::children(daemon.pid()) - &old), &mut random),
            Victim::OldWorker => kill_one_of(&old, &mut random),
            Victim::Nothing => {}
        }
        settle(&mut daemon, requested, victim);
    }
    daemon.stop();
}

fn start(build: &Build) -> Daemon {
    let mut daemon = Daemon::start(build);
    daemon.ready_workers(&build.name, WORKERS);
    daemon
}

/// Kills a random process. It may have exited already.
fn kill_one_of(pids: &BTreeSet<u32>, random: &mut StdRng) {
    if let Some(&pid) = pids.iter().nth(random.random_range(0..pids.len().max(1))) {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
}

/// Checks that all processes belong to one service, and that no id has more processes than a rolling restart allows.
fn check(daemon: &Daemon, victim: Victim) {
    let parent = daemon.pid();
    // A process that has just exited has another parent, if its parent has exited too. So a second look decides.
    let strangers = || -> Vec<u32> {
        let members = procfs::group(parent).into_iter();
        members
            .filter(|&pid| pid != parent && !procfs::children(parent).contains(&pid))
            .filter(|&pid| procfs::runs(pid))
            .collect()
    };
    let found = strangers();
    if !found.is_empty() {
        let still = strangers();
        let both: Vec<_> = found.iter().filter(|pid| still.contains(pid)).collect();
        assert!(both.is_empty(), "{victim:?}, no children of the parent: {both:?}:\n{}", daemon.transcript());
    }
    let mut counts = BTreeMap::new();
    for worker in daemon.running().iter().filter(|worker| !worker.starts_with("unknown")) {
        let id = worker.rsplit(' ').next().expect("an id").to_owned();
        *counts.entry(id).or_insert(0) += 1;
    }
    assert!(counts.values().all(|&count| count <= 2), "{victim:?}, {counts:?}:\n{}", daemon.transcript());
    assert!(procfs::children(parent).len() <= 2 * WORKERS + 1, "{victim:?}:\n{}", daemon.transcript());
}

/// Waits until the upgrade has ended in either way, and each id has one process again.
fn settle(daemon: &mut Daemon, requested: usize, victim: Victim) {
    daemon.read_available();
    while daemon.count("log Upgrade done") + daemon.count("log Upgrade aborted") < requested {
        daemon.wait_for("log Upgrade ");
        daemon.read_available();
        check(daemon, victim);
    }
    let is_whole = until(|| {
        let ids: BTreeSet<String> =
            daemon.running().iter().filter_map(|line| line.rsplit(' ').next().map(str::to_owned)).collect();
        procfs::children(daemon.pid()).len() == WORKERS && ids.len() == WORKERS
    });
    daemon.read_available();
    assert!(
        is_whole || daemon.running().len() == WORKERS,
        "{victim:?} {:?}:\n{}",
        daemon.running(),
        daemon.transcript()
    );
}
