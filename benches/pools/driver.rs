//! Measures a service with eight pools and a service with one pool.

use std::io;

use crate::common::procfs;
use crate::common::record::Role;
use crate::common::running::{Running, adopt_orphans};
use crate::common::table::{self, Pair, Row, Samples};
use crate::room::lacks_room;

const WORKERS: usize = 2_000;

/// The number of times that each of the two services is started.
const ROUNDS: usize = 10;

/// The number of workers that are killed one after the other, each after the replacement of the one before. All other
/// workers are killed at once afterwards. No worker is killed twice, because the parent delays the restart of a worker
/// that fails twice, each time shortly after its start.
const KILLED: usize = 32;

/// The number of workers whose memory is measured.
const SAMPLED: usize = 64;

/// The target for times: several pools take at most this many times as long as one.
const MOST_TIME: f64 = 1.1;

/// The target for memory: a worker of several pools has at most this many KiB more.
const MOST_MEMORY: i64 = 8;

/// The bytes that one worker needs: private memory, page tables, and the kernel's data about it.
const MEMORY_OF_WORKER: u64 = 256 << 10;

#[derive(Default)]
struct Figures {
    start: Pair<Samples>,
    parent_time: Pair<Samples>,
    worker_time: Pair<Samples>,
    replacement: Pair<Samples>,
    replacement_of_all: Pair<Samples>,
    memory: Pair<Samples>,
    memory_of_parent: Pair<Samples>,
    descriptors: Pair<Samples>,
}

/// Measures, prints the table, and returns whether all targets are met.
pub fn run() -> io::Result<bool> {
    if let Some(lack) = lacks_room(WORKERS as u64 + 1, WORKERS as u64 * MEMORY_OF_WORKER) {
        return Err(io::Error::other(format!("{WORKERS} workers would take {lack}")));
    }
    adopt_orphans()?;
    let mut figures = Figures::default();
    for round in 0..ROUNDS {
        for role in Role::in_round(round) {
            figures.measure(round, role)?;
        }
    }
    let rows = figures.rows();
    table::print_named(["eight pools", "one pool"], &rows);
    Ok(rows.iter().all(|row| row.met))
}

impl Figures {
    fn measure(&mut self, round: usize, role: Role) -> io::Result<()> {
        let (mut running, started) = Running::start(role, WORKERS)?;
        self.start.of(role).push(started);
        running.settle()?;
        self.parent_time.of(role).push(procfs::cpu_time(running.pid())?);
        for &worker in running.workers() {
            self.worker_time.of(role).push(procfs::cpu_time(worker)?);
        }
        self.descriptors.of(role).push(procfs::descriptors(running.pid())?);
        self.memory_of_parent.of(role).push(procfs::memory(running.pid())?);
        for &worker in running.workers().iter().step_by(WORKERS / SAMPLED) {
            self.memory.of(role).push(procfs::private_memory(worker)?);
        }
        let is_single = |id: &usize| id % (WORKERS / KILLED) == round % (WORKERS / KILLED);
        let (single, others): (Vec<usize>, Vec<usize>) = (0..WORKERS).partition(is_single);
        for id in single {
            self.replacement.of(role).push(running.replace(id)?);
            running.settle()?;
        }
        self.replacement_of_all.of(role).push(running.replace_together(&others)?);
        Ok(())
    }

    fn rows(&self) -> [Row; 8] {
        [
            table::times(format!("start-up of {WORKERS}"), &self.start, MOST_TIME),
            table::times("CPU time of the parent at start-up".into(), &self.parent_time, MOST_TIME),
            table::times("CPU time of a worker at start-up".into(), &self.worker_time, MOST_TIME),
            table::times("replacement of one after kill -9".into(), &self.replacement, MOST_TIME),
            table::times("replacement of all after kill -9".into(), &self.replacement_of_all, MOST_TIME),
            table::memory("private memory of a worker".into(), &self.memory, MOST_MEMORY),
            table::amounts("memory of the parent, KiB".into(), &self.memory_of_parent),
            self.row_of_descriptors(),
        ]
    }

    /// The target is met if several pools need no more descriptors than one.
    fn row_of_descriptors(&self) -> Row {
        let met = self.descriptors.ours.median() <= self.descriptors.bare.median();
        let row = table::amounts("descriptors of the parent".into(), &self.descriptors);
        Row { target: "+0".into(), met, ..row }
    }
}
