//! The measured figures, how they are printed, and the file that stores them.

use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use crate::running::Usage;

/// The figures of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The name of the curve, for example `fork, 4 KiB pages`.
    pub curve: String,
    /// Memory of the parent in MiB.
    pub memory: usize,
    /// Milliseconds of work before the call of `start()`.
    pub startup: u64,
    /// Quartiles of the time that a start takes, in milliseconds.
    pub start: [f64; 3],
    /// Median private memory of a worker in KiB.
    pub private: u64,
    /// Median size of a worker's page tables in KiB.
    pub page_tables: u64,
}

impl Figure {
    pub fn new((curve, memory, startup): (&str, usize, u64), starts: &[Duration], usages: &[Usage]) -> Figure {
        let start = [1, 2, 3].map(|of| quartile(starts.iter().copied(), of).as_secs_f64() * 1e3);
        let private = quartile(usages.iter().map(|usage| usage.private), 2);
        let page_tables = quartile(usages.iter().map(|usage| usage.page_tables), 2);
        Figure { curve: curve.into(), memory, startup, start, private, page_tables }
    }

    fn to_line(&self) -> String {
        let Figure { curve, memory, startup, start: [low, median, high], private, page_tables } = self;
        format!("{curve};{memory};{startup};{low:.3};{median:.3};{high:.3};{private};{page_tables}\n")
    }

    fn from_line(line: &str) -> Option<Figure> {
        let mut fields = line.split(';');
        Some(Figure {
            curve: fields.next()?.into(),
            memory: fields.next()?.parse().ok()?,
            startup: fields.next()?.parse().ok()?,
            start: [fields.next()?.parse().ok()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?],
            private: fields.next()?.parse().ok()?,
            page_tables: fields.next()?.parse().ok()?,
        })
    }
}

fn quartile<T: Ord + Copy + Default>(samples: impl Iterator<Item = T>, of: usize) -> T {
    let mut sorted: Vec<T> = samples.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() * of / 4).copied().unwrap_or_default()
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fork_vs_spawn.csv")
}

pub fn save(figures: &[Figure]) -> io::Result<()> {
    fs::write(path(), figures.iter().map(Figure::to_line).collect::<String>())
}

/// Loads the figures of the last run.
pub fn load() -> io::Result<Vec<Figure>> {
    let text = fs::read_to_string(path())
        .map_err(|error| io::Error::other(format!("nothing was measured yet: {}: {error}", path().display())))?;
    let figures: Option<Vec<Figure>> = text.lines().map(Figure::from_line).collect();
    figures.ok_or_else(|| io::Error::other(format!("{} was written by another version", path().display())))
}

pub fn print(figures: &[Figure]) {
    println!("{:<20} {:>10} {:>9} {:>30} {:>12} {:>12}", "", "parent", "start-up", "start", "private", "page tables");
    for Figure { curve, memory, startup, start: [low, median, high], private, page_tables } in figures {
        let start = format!("{median:.3} ms ({low:.3}..{high:.3})");
        println!("{curve:<20} {memory:>6} MiB {startup:>6} ms {start:>30} {private:>8} KiB {page_tables:>8} KiB");
    }
}
