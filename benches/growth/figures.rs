//! The measured figures, and the file that stores them.

use std::path::PathBuf;
use std::str::{FromStr, Split};
use std::{fs, io};

use crate::common::record::Role;
use crate::common::table::Samples;

/// The figures of one program with one number of workers.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub role: Role,
    pub workers: usize,
    /// The times of start-up, replacement, rolling restart and stop.
    pub times: [Spread; 4],
    /// Memory of the parent in KiB.
    pub memory: u64,
    /// Open descriptors of the parent.
    pub descriptors: u64,
}

/// The quartiles of a measured time in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(samples: &Samples) -> Spread {
        let [low, median, high] = [1, 2, 3].map(|of| samples.quantile(of, 4) as f64 / 1e6);
        Spread { low, median, high }
    }
}

impl Figure {
    fn to_line(self) -> String {
        let times = self.times.map(|Spread { low, median, high }| format!("{low:.4};{median:.4};{high:.4}")).join(";");
        format!("{};{};{times};{};{}\n", self.role.name(), self.workers, self.memory, self.descriptors)
    }

    fn from_line(line: &str) -> Option<Figure> {
        let mut fields = line.split(';');
        let role = fields.next()?;
        let role = Role::BOTH.into_iter().find(|known| known.name() == role)?;
        let workers = next(&mut fields)?;
        let mut spread =
            || Some(Spread { low: next(&mut fields)?, median: next(&mut fields)?, high: next(&mut fields)? });
        let times = [spread()?, spread()?, spread()?, spread()?];
        Some(Figure { role, workers, times, memory: next(&mut fields)?, descriptors: next(&mut fields)? })
    }
}

fn next<T: FromStr>(fields: &mut Split<'_, char>) -> Option<T> {
    fields.next()?.parse().ok()
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("growth.csv")
}

pub fn save(figures: &[Figure]) -> io::Result<()> {
    fs::write(path(), figures.iter().map(|figure| figure.to_line()).collect::<String>())
}

/// Loads the figures of the last run.
pub fn load() -> io::Result<Vec<Figure>> {
    let text = fs::read_to_string(path())
        .map_err(|error| io::Error::other(format!("nothing was measured yet: {}: {error}", path().display())))?;
    let figures: Option<Vec<Figure>> = text.lines().map(Figure::from_line).collect();
    figures.ok_or_else(|| io::Error::other(format!("{} was written by another version", path().display())))
}
