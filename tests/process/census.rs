//! Derives the living processes of a service from its log.

use std::collections::{BTreeMap, BTreeSet};

use crate::os::Signal;

/// The processes of a service. The test passes every line of the output to [`note`](Census::note), from the first one
/// on.
#[derive(Debug)]
pub struct Census {
    /// The last number of workers that the log announced.
    wanted: usize,
    is_rolling: bool,
    /// The living processes by pid.
    living: BTreeMap<u32, Process>,
    /// The ids that have had at least one process that was up.
    proven: BTreeSet<usize>,
    up_source: UpSource,
    /// An id that has had more than two processes at the same time, if any.
    crowded: Option<usize>,
}

/// The line that shows that a process is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpSource {
    /// The worker's own line.
    Worker,
    /// The parent's line that the process is ready.
    Parent,
}

#[derive(Debug, Default)]
struct Process {
    id: usize,
    generation: u32,
    is_up: bool,
    /// Whether the test has sent SIGSTOP to the process.
    is_stopped: bool,
    /// Whether the test has sent a signal that ends the process.
    is_doomed: bool,
}

impl Census {
    pub fn new(wanted: usize, up_source: UpSource) -> Census {
        let living = BTreeMap::new();
        let proven = BTreeSet::new();
        Census { wanted, is_rolling: false, living, proven, up_source, crowded: None }
    }

    pub fn note(&mut self, line: &str) {
        if let Some((id, pid, what)) = about_child(line) {
            self.note_child(id, pid, what);
        } else if let Some(wanted) = between(line, "log Scaled to ", " workers") {
            self.wanted = wanted.parse().expect("a number");
        } else if line.starts_with("log Rolling restart") {
            self.is_rolling = line == "log Rolling restart";
        }
    }

    fn note_child(&mut self, id: usize, pid: u32, what: &str) {
        let word = if self.up_source == UpSource::Parent { "is ready" } else { "up" };
        if ["killed by", "exited", "is stale"].iter().any(|end| what.starts_with(end)) {
            self.living.remove(&pid);
        } else if let Some(generation) = what.strip_prefix("started, generation ") {
            self.process(id, pid).generation = generation.parse().expect("a number");
        } else if what == word {
            self.process(id, pid).is_up = true;
            self.proven.insert(id);
        }
    }

    /// Returns the entry of a process, and adds one if there is none yet. Any line may be the first about a process,
    /// because the worker's line may come before the parent's line about the start.
    fn process(&mut self, id: usize, pid: u32) -> &mut Process {
        let others = self.living.iter().filter(|(other, process)| process.id == id && **other != pid).count();
        self.crowded = self.crowded.or((others >= 2).then_some(id));
        self.living.entry(pid).or_insert(Process { id, ..Process::default() })
    }

    /// Returns an id that had more than two processes at the same time. There must never be one.
    pub fn crowded(&self) -> Option<usize> {
        self.crowded
    }

    /// Returns whether each wanted id has exactly one process, which is up, not stopped and not about to be killed, and
    /// no rolling restart is under way.
    pub fn is_settled(&self) -> bool {
        let is_sound = |process: &Process| process.is_up && !process.is_stopped && !process.is_doomed;
        !self.is_rolling && self.living.len() == self.wanted && self.living.values().all(is_sound) && self.has_all_ids()
    }

    fn has_all_ids(&self) -> bool {
        let ids: BTreeSet<usize> = self.living.values().map(|process| process.id).collect();
        ids.into_iter().eq(0..self.wanted)
    }

    pub fn is_rolling(&self) -> bool {
        self.is_rolling
    }

    /// Returns how many processes are not up yet.
    pub fn count_starting(&self) -> usize {
        self.living.values().filter(|process| !process.is_up).count()
    }

    pub fn pids(&self) -> BTreeSet<u32> {
        self.living.keys().copied().collect()
    }

    /// Returns the id and the generation of each process. This pair is never reused, but a pid may be.
    pub fn names(&self) -> BTreeSet<(usize, u32)> {
        self.living.values().map(|process| (process.id, process.generation)).collect()
    }

    /// Returns the pids of the processes that the parent restarts if they exit. With `UpSource::Parent`, leaves out ids
    /// that were never ready, because then an exit fails the startup and ends the service.
    pub fn restartable(&self) -> Vec<u32> {
        let may_fail = |process: &Process| self.up_source == UpSource::Worker || self.proven.contains(&process.id);
        let is_restartable = |process: &Process| !process.is_doomed && may_fail(process);
        self.living.iter().filter(|(_, process)| is_restartable(process)).map(|(&pid, _)| pid).collect()
    }

    /// For each id that has two processes, returns the pid of the newer process.
    pub fn replacements(&self) -> Vec<u32> {
        let is_younger =
            |process: &Process, than: &Process| process.id == than.id && process.generation > than.generation;
        let is_replacement = |process: &Process| self.living.values().any(|other| is_younger(process, other));
        let living = self.living.iter().filter(|(_, process)| !process.is_doomed);
        living.filter(|(_, process)| is_replacement(process)).map(|(&pid, _)| pid).collect()
    }

    /// Records that the test has sent a signal to this process.
    pub fn was_sent(&mut self, pid: u32, signal: Signal) {
        let Some(process) = self.living.get_mut(&pid) else { return };
        match signal {
            Signal::SIGSTOP => process.is_stopped = true,
            Signal::SIGCONT => process.is_stopped = false,
            _ => process.is_doomed = true,
        }
    }
}

/// Returns a number that the census uses as the pid of a thread.
fn pid_of_thread(id: usize, generation: u32) -> u32 {
    (id as u32) << 24 | generation
}

/// Parses a line about a child. Returns its id, its pid, and the rest of the line.
fn about_child(line: &str) -> Option<(usize, u32, &str)> {
    if let Some(up) = line.strip_prefix("up ") {
        let (id, pid) = up.split_once(' ')?;
        return Some((id.parse().ok()?, pid.parse().ok()?, "up"));
    }
    let (id, rest) = line.strip_prefix("log child ")?.split_once(" (")?;
    let (name, what) = rest.split_once(") ")?;
    let id = id.parse().ok()?;
    let pid = match name.strip_prefix("pid ") {
        Some(pid) => pid.parse().ok()?,
        None => pid_of_thread(id, name.rsplit_once('.')?.1.parse().ok()?),
    };
    Some((id, pid, what))
}

fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    line.strip_prefix(before)?.strip_suffix(after)
}
