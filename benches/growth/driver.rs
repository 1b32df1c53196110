//! Measures taskfork and the bare loop with increasing numbers of workers.

use std::io;

use crate::common::procfs;
use crate::common::record::Role;
use crate::common::running::{Running, adopt_orphans};
use crate::common::table::{self, Pair, Row, Samples};
use crate::figures::{self, Figure, Spread};
use crate::room::lacks_room;

/// Each plan takes about half a minute, except the last two, which take about a minute.
const PLANS: [Plan; 5] = [
    Plan { workers: 4, rounds: 60, killed: 4 },
    Plan { workers: 64, rounds: 40, killed: 16 },
    Plan { workers: 512, rounds: 15, killed: 32 },
    Plan { workers: 2_000, rounds: 5, killed: 32 },
    Plan { workers: 8_000, rounds: 3, killed: 32 },
];

/// The target for a replacement with the most workers: taskfork's time is at most this many times the bare loop's.
const MOST_TIME: f64 = 1.5;

/// The bytes that one worker of either program needs: private memory, page tables, and the kernel's data about it.
const MEMORY_OF_WORKER: u64 = 256 << 10;

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
    roll: Pair<Samples>,
    stop: Pair<Samples>,
    memory: Pair<Samples>,
    descriptors: Pair<Samples>,
}

/// Runs the plans whose number of workers is in `wanted`, or all plans if `wanted` is empty. Returns whether all
/// targets are met.
pub fn run(wanted: &[usize]) -> io::Result<bool> {
    adopt_orphans()?;
    let mut rows = Vec::new();
    let mut kept = Vec::new();
    for plan in PLANS.iter().filter(|plan| wanted.is_empty() || wanted.contains(&plan.workers)) {
        let workers = plan.workers;
        if let Some(lack) = lacks_room(workers as u64 + 1, workers as u64 * MEMORY_OF_WORKER) {
            eprintln!("growth: {workers} workers are left out: it would take {lack}");
            continue;
        }
        let mut figures = plan.compare()?;
        rows.extend(plan.rows(&figures));
        kept.extend(Role::BOTH.map(|role| figures.kept(workers, role)));
    }
    table::print(&rows);
    figures::save(&kept)?;
    Ok(rows.iter().all(|row| row.met))
}

impl Plan {
    /// Measures both programs alternately, so that other load on the machine affects both. The order changes in each
    /// round, so that neither program always runs right after the other.
    fn compare(&self) -> io::Result<Figures> {
        let mut figures = Figures::default();
        for round in 0..self.rounds {
            for role in Role::in_round(round) {
                self.measure(round, role, &mut figures)?;
            }
        }
        Ok(figures)
    }

    fn measure(&self, round: usize, role: Role, figures: &mut Figures) -> io::Result<()> {
        let (mut running, started) = Running::start(role, self.workers)?;
        figures.start.of(role).push(started);
        running.settle()?;
        for nth in 0..self.killed {
            let id = (nth * self.workers / self.killed + round) % self.workers;
            figures.replacement.of(role).push(running.replace(id)?);
            running.settle()?;
        }
        figures.memory.of(role).push(procfs::memory(running.pid())?);
        figures.descriptors.of(role).push(procfs::descriptors(running.pid())?);
        figures.roll.of(role).push(running.roll()?);
        running.settle()?;
        figures.stop.of(role).push(running.stop()?);
        Ok(())
    }

    fn rows(&self, figures: &Figures) -> [Row; 6] {
        let workers = self.workers;
        let most = PLANS.last().filter(|last| last.workers == workers).map(|_| MOST_TIME);
        [
            table::times(format!("start-up of {workers}"), &figures.start, None),
            table::times(format!("replacement after kill -9, of {workers}"), &figures.replacement, most),
            table::times(format!("rolling restart of {workers}"), &figures.roll, None),
            table::times(format!("stop of {workers}"), &figures.stop, None),
            table::amounts(format!("memory of the parent of {workers}, KiB"), &figures.memory),
            table::amounts(format!("descriptors of the parent of {workers}"), &figures.descriptors),
        ]
    }
}

impl Figures {
    fn kept(&mut self, workers: usize, role: Role) -> Figure {
        let times = [&mut self.start, &mut self.replacement, &mut self.roll, &mut self.stop];
        let times = times.map(|pair| Spread::of(pair.of(role)));
        let memory = self.memory.of(role).median();
        let descriptors = self.descriptors.of(role).median();
        Figure { role, workers, times, memory, descriptors }
    }
}
