//! Measures taskfork and the bare loop with few and with many workers.

use std::io;
use std::thread;
use std::time::Duration;

use crate::common::procfs;
use crate::common::record::Role;
use crate::common::running::{Running, SETTLE, adopt_orphans};
use crate::common::table::{self, Pair, Row, Samples};

const FEW: Plan = Plan { workers: 4, rounds: 300, killed: 4 };
const MANY: Plan = Plan { workers: 1_000, rounds: 40, killed: 32 };

/// The target for times: taskfork's time is at most this many times the bare loop's.
const MOST_TIME: f64 = 1.25;
/// The target for memory: a worker of taskfork has at most this many KiB more than a worker of the bare loop.
const MOST_MEMORY: i64 = 64;

/// The time for which the idle parents are observed. It is long enough to notice a timer that fires once a second.
const IDLE: Duration = Duration::from_secs(4);

struct Plan {
    workers: usize,
    /// The number of times that each of the two programs is started.
    rounds: usize,
    /// The number of workers to kill in each started program. Each worker is killed only once, because taskfork delays
    /// the restart of a worker that fails twice, each time shortly after its start.
    killed: usize,
}

#[derive(Default)]
struct Figures {
    start: Pair<Samples>,
    replacement: Pair<Samples>,
    memory: Pair<Samples>,
    descriptors: Pair<u64>,
}

/// Measures, prints the table, and returns whether all targets are met.
pub fn run() -> io::Result<bool> {
    adopt_orphans()?;
    let few = compare(&FEW)?;
    let many = compare(&MANY)?;
    let mut rows = Vec::new();
    for (plan, figures) in [(&FEW, &few), (&MANY, &many)] {
        rows.extend(plan.rows(figures));
        rows.push(idle(plan.workers)?);
    }
    let claim = format!("descriptors of the parent, {} -> {} workers", FEW.workers, MANY.workers);
    rows.push(table::growth(claim, &few.descriptors, &many.descriptors));
    table::print(&rows);
    Ok(rows.iter().all(|row| row.met))
}

/// Measures both programs alternately, so that other load on the machine affects both. The order changes in each round,
/// so that neither program always runs right after the other.
fn compare(plan: &Plan) -> io::Result<Figures> {
    let mut figures = Figures::default();
    for round in 0..plan.rounds {
        for role in Role::in_round(round) {
            measure(plan, round, role, &mut figures)?;
        }
    }
    Ok(figures)
}

fn measure(plan: &Plan, round: usize, role: Role, figures: &mut Figures) -> io::Result<()> {
    let (mut running, started) = Running::start(role, plan.workers)?;
    figures.start.of(role).push(started);
    thread::sleep(SETTLE);
    *figures.descriptors.of(role) = procfs::descriptors(running.pid())?;
    for &worker in running.workers() {
        figures.memory.of(role).push(procfs::private_memory(worker)?);
    }
    for nth in 0..plan.killed {
        let id = (nth * plan.workers / plan.killed + round) % plan.workers;
        figures.replacement.of(role).push(running.replace(id)?);
        thread::sleep(SETTLE);
    }
    Ok(())
}

/// Counts the wakeups of the two idle parents. Both run at the same time, because sleeping processes do not disturb
/// each other.
fn idle(workers: usize) -> io::Result<Row> {
    let ours = Running::start(Role::Ours, workers)?.0;
    let bare = Running::start(Role::Bare, workers)?.0;
    let switches = || -> io::Result<[u64; 2]> { Ok([procfs::switches(ours.pid())?, procfs::switches(bare.pid())?]) };
    thread::sleep(Duration::from_millis(200));
    let before = switches()?;
    thread::sleep(IDLE);
    let after = switches()?;
    let claim = format!("wakeups of the idle parent in {} s, {workers} workers", IDLE.as_secs());
    Ok(table::nothing(claim, &Pair { ours: after[0] - before[0], bare: after[1] - before[1] }))
}

impl Plan {
    fn rows(&self, figures: &Figures) -> [Row; 3] {
        let workers = self.workers;
        [
            table::times(format!("start-up of {workers} workers"), &figures.start, MOST_TIME),
            table::times(format!("replacement after kill -9, of {workers}"), &figures.replacement, MOST_TIME),
            table::memory(format!("private memory of a worker, of {workers}"), &figures.memory, MOST_MEMORY),
        ]
    }
}
