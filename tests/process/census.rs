//! Who there is, as the log tells it.

use std::collections::{BTreeMap, BTreeSet};

use crate::os::Signal;

/// Kept from the first line on.
#[derive(Debug)]
pub struct Census {
    /// How many are wanted, as was said last.
    wanted: usize,
    is_rolling: bool,
    /// By pid.
    living: BTreeMap<u32, Life>,
    /// Ids of which a process was up once.
    proven: BTreeSet<usize>,
    says_up: SaysUp,
    crowded: Option<usize>,
}

/// Whose word it is that a process is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaysUp {
    /// The process's own.
    Worker,
    /// The parent's, which has been told that the process is ready.
    Parent,
}

#[derive(Debug, Default)]
struct Life {
    id: usize,
    generation: u32,
    is_up: bool,
    /// By the operator.
    is_stopped: bool,
    /// The operator has sent it what it will die of.
    is_doomed: bool,
}

impl Census {
    pub fn new(wanted: usize, says_up: SaysUp) -> Census {
        let living = BTreeMap::new();
        let proven = BTreeSet::new();
        Census { wanted, is_rolling: false, living, proven, says_up, crowded: None }
    }

    pub fn hear(&mut self, line: &str) {
        if let Some((id, pid, what)) = about_child(line) {
            self.hear_of_child(id, pid, what);
        } else if let Some(wanted) = between(line, "log Scaled to ", " processes") {
            self.wanted = wanted.parse().expect("a number");
        } else if line.starts_with("log Rolling restart") {
            self.is_rolling = line == "log Rolling restart";
        }
    }

    fn hear_of_child(&mut self, id: usize, pid: u32, what: &str) {
        let word = if self.says_up == SaysUp::Parent { "is ready" } else { "up" };
        if ["killed by", "exited", "is stale"].iter().any(|end| what.starts_with(end)) {
            self.living.remove(&pid);
        } else if let Some(generation) = what.strip_prefix("started, generation ") {
            self.life(id, pid).generation = generation.parse().expect("a number");
        } else if what == word {
            self.life(id, pid).is_up = true;
            self.proven.insert(id);
        }
    }

    /// A worker may say that it is up before the parent says that it was started.
    fn life(&mut self, id: usize, pid: u32) -> &mut Life {
        let others = self.living.iter().filter(|(other, life)| life.id == id && **other != pid).count();
        self.crowded = self.crowded.or((others >= 2).then_some(id));
        self.living.entry(pid).or_insert(Life { id, ..Life::default() })
    }

    /// An id that had more than two processes at a time, which none ever has.
    pub fn crowded(&self) -> Option<usize> {
        self.crowded
    }

    /// One living process that is up for each id that is wanted, and nobody else; nobody is to go, and nobody to come.
    pub fn is_settled(&self) -> bool {
        let is_sound = |life: &Life| life.is_up && !life.is_stopped && !life.is_doomed;
        !self.is_rolling && self.living.len() == self.wanted && self.living.values().all(is_sound) && self.has_all_ids()
    }

    fn has_all_ids(&self) -> bool {
        let ids: BTreeSet<usize> = self.living.values().map(|life| life.id).collect();
        ids.into_iter().eq(0..self.wanted)
    }

    pub fn is_rolling(&self) -> bool {
        self.is_rolling
    }

    pub fn count(&self) -> usize {
        self.living.len()
    }

    pub fn pids(&self) -> BTreeSet<u32> {
        self.living.keys().copied().collect()
    }

    /// By id and generation: a pid may be another one's later.
    pub fn names(&self) -> BTreeSet<(usize, u32)> {
        self.living.values().map(|life| (life.id, life.generation)).collect()
    }

    /// Those whose end is followed by a restart and not by the end of all: where the parent is told who is ready, a first
    /// process of an id that never becomes it is a startup that failed.
    pub fn restartable(&self) -> Vec<u32> {
        let may_fail = |life: &Life| self.says_up == SaysUp::Worker || self.proven.contains(&life.id);
        let is_restartable = |life: &Life| !life.is_doomed && may_fail(life);
        self.living.iter().filter(|(_, life)| is_restartable(life)).map(|(&pid, _)| pid).collect()
    }

    /// The younger ones of ids that have two.
    pub fn replacements(&self) -> Vec<u32> {
        let is_younger = |life: &Life, than: &Life| life.id == than.id && life.generation > than.generation;
        let is_replacement = |life: &Life| self.living.values().any(|other| is_younger(life, other));
        let living = self.living.iter().filter(|(_, life)| !life.is_doomed);
        living.filter(|(_, life)| is_replacement(life)).map(|(&pid, _)| pid).collect()
    }

    /// The operator has sent this to it.
    pub fn was_sent(&mut self, pid: u32, signal: Signal) {
        let Some(life) = self.living.get_mut(&pid) else { return };
        match signal {
            Signal::SIGSTOP => life.is_stopped = true,
            Signal::SIGCONT => life.is_stopped = false,
            _ => life.is_doomed = true,
        }
    }
}

/// As good as one.
fn pid_of_thread(id: usize, generation: u32) -> u32 {
    (id as u32) << 24 | generation
}

/// The id, the pid, and what is said of it, in the words of the log.
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
