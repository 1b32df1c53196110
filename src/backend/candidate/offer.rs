//! The text of an offer to a candidate.
//!
//! Another version of this crate may read the text. So it consists of lines of words and numbers. A reader ignores
//! lines that begin with a word that it does not know, and words at the end of a line that it does not expect.
//!
//! ```text
//! candidate 1 2 worker       the formats of the state that the old parent writes, and what the candidate must do
//! parent 71                  the pid of the old parent
//! channel 0                  the descriptor for the answer, as an index into the offer's list of descriptors
//! pool 776562                the name of the pool in hexadecimal digits, or -
//! id 0
//! generation 3
//! count 4
//! memory 1 64 5              the shared memory, its number of slots, and the slot of the worker
//! waker 2
//! socket SPEC 3              a socket of the service
//! ```

use std::fmt;
use std::ops::RangeInclusive;
use std::str::{FromStr, SplitAsciiWhitespace};

use crate::listener::SocketLine;
use crate::setup::{parse_name, write_name};

/// The first word of the text.
const WORD: &str = "candidate";

/// Returns whether this is the text of an offer to a candidate. The text of an offer to a spawned worker never begins
/// with this word.
pub(crate) fn is_for_candidate(text: &str) -> bool {
    text.split(' ').next() == Some(WORD)
}

/// What the old parent tells a candidate. Each number of a descriptor is an index into the offer's list of descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// The versions of the state format that the old parent can write.
    pub formats: RangeInclusive<u32>,
    pub task: Task,
    pub parent: u32,
    /// The candidate's end of the channel.
    pub channel: usize,
    /// The sockets of the service.
    pub sockets: Vec<SocketLine>,
}

/// What a candidate must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Check the settings, send an answer, and exit.
    Check,
    /// Become a worker.
    Work(TrialWorker),
}

/// What only a trial worker is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TrialWorker {
    /// The name of the pool. Empty for a `Prefork` that is used alone.
    pub pool: String,
    pub id: usize,
    pub generation: u32,
    /// The number of workers in the pool.
    pub count: usize,
    /// `None` if the old program's workers have no status slots.
    pub slot: Option<OfferedSlot>,
}

/// The descriptors of the shared memory and of the waker, the number of slots in the memory, and the worker's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OfferedSlot {
    pub memory: usize,
    pub slots: usize,
    pub slot: usize,
    pub waker: usize,
}

/// The reason why a text is no offer that this program can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The text is incomplete, or a known line has a wrong form.
    Malformed,
    /// The candidate must do something that this program does not know.
    UnknownTask,
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Offer { formats, task, parent, channel, sockets } = self;
        let word = match task {
            Task::Check => "check",
            Task::Work(_) => "worker",
        };
        writeln!(f, "{WORD} {} {} {word}\nparent {parent}\nchannel {channel}", formats.start(), formats.end())?;
        if let Task::Work(worker) = task {
            write!(f, "{worker}")?;
        }
        for socket in sockets {
            writeln!(f, "{socket}")?;
        }
        Ok(())
    }
}

impl fmt::Display for TrialWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TrialWorker { pool, id, generation, count, slot } = self;
        writeln!(f, "pool {}\nid {id}\ngeneration {generation}\ncount {count}", PoolWord(pool))?;
        if let Some(OfferedSlot { memory, slots, slot, waker }) = slot {
            writeln!(f, "memory {memory} {slots} {slot}\nwaker {waker}")?;
        }
        Ok(())
    }
}

impl FromStr for Offer {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Offer, Unreadable> {
        let mut lines = text.lines();
        let words = &mut lines.next().ok_or(Unreadable::Malformed)?.split_ascii_whitespace();
        let formats = parse_head(words).ok_or(Unreadable::Malformed)?;
        let is_worker = match words.next() {
            Some("check") => false,
            Some("worker") => true,
            Some(_) => return Err(Unreadable::UnknownTask),
            None => return Err(Unreadable::Malformed),
        };
        let mut found = Found::default();
        for line in lines {
            found.read(line).ok_or(Unreadable::Malformed)?;
        }
        found.offer(formats, is_worker).ok_or(Unreadable::Malformed)
    }
}

fn parse_head(words: &mut SplitAsciiWhitespace<'_>) -> Option<RangeInclusive<u32>> {
    if words.next() != Some(WORD) {
        return None;
    }
    let formats = next(words)?..=next(words)?;
    (!formats.is_empty()).then_some(formats)
}

/// The lines of an offer that have been read.
#[derive(Default)]
struct Found {
    parent: Option<u32>,
    channel: Option<usize>,
    pool: Option<String>,
    id: Option<usize>,
    generation: Option<u32>,
    count: Option<usize>,
    memory: Option<Memory>,
    waker: Option<usize>,
    sockets: Vec<SocketLine>,
}

struct Memory {
    fd: usize,
    slots: usize,
    slot: usize,
}

impl Found {
    /// Reads one line. Returns `None` if the line is known but has a wrong form.
    fn read(&mut self, line: &str) -> Option<()> {
        let words = &mut line.split_ascii_whitespace();
        let Some(word) = words.next() else { return Some(()) };
        match word {
            "parent" => self.parent = Some(next(words)?),
            "channel" => self.channel = Some(next(words)?),
            "pool" => self.pool = Some(parse_pool(words.next()?)?),
            "id" => self.id = Some(next(words)?),
            "generation" => self.generation = Some(next(words)?),
            "count" => self.count = Some(next(words)?),
            "memory" => self.memory = Some(Memory { fd: next(words)?, slots: next(words)?, slot: next(words)? }),
            "waker" => self.waker = Some(next(words)?),
            "socket" => self.sockets.push(line.parse().ok()?),
            _ => {}
        }
        Some(())
    }

    fn offer(self, formats: RangeInclusive<u32>, is_worker: bool) -> Option<Offer> {
        let parent = self.parent?;
        let channel = self.channel?;
        if !is_worker {
            return Some(Offer { formats, task: Task::Check, parent, channel, sockets: self.sockets });
        }
        let slot = match (self.memory, self.waker) {
            (Some(Memory { fd, slots, slot }), Some(waker)) if slot < slots => {
                Some(OfferedSlot { memory: fd, slots, slot, waker })
            }
            (None, None) => None,
            _ => return None,
        };
        let pool = self.pool?;
        let worker = TrialWorker { pool, id: self.id?, generation: self.generation?, count: self.count?, slot };
        Some(Offer { formats, task: Task::Work(worker), parent, channel, sockets: self.sockets })
    }
}

/// Parses the next word of a line.
pub(super) fn next<T: FromStr>(words: &mut SplitAsciiWhitespace<'_>) -> Option<T> {
    words.next()?.parse().ok()
}

/// Displays the name of a pool in hexadecimal digits, or a hyphen if the pool has no name. So it is always one word.
pub(super) struct PoolWord<'a>(pub &'a str);

impl fmt::Display for PoolWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, Some(self.0).filter(|name| !name.is_empty()))
    }
}

/// Parses the word that [`PoolWord`] displays.
pub(super) fn parse_pool(word: &str) -> Option<String> {
    parse_name(word).ok().map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::candidate::tests::damaged_copies;

    fn worker_offer() -> Offer {
        let slot = OfferedSlot { memory: 1, slots: 64, slot: 5, waker: 2 };
        let worker = TrialWorker { pool: "größe".into(), id: 7, generation: 3, count: 4, slot: Some(slot) };
        let sockets = ["socket lt,,127.0.0.1:0,0,,,,, 3", "socket bu,jobs,udp:[::]:53,1,,,,, 4"];
        let sockets = sockets.map(|line| line.parse().expect("a line")).to_vec();
        Offer { formats: 1..=2, task: Task::Work(worker), parent: 71, channel: 0, sockets }
    }

    fn check_offer() -> Offer {
        Offer { task: Task::Check, sockets: Vec::new(), ..worker_offer() }
    }

    #[test]
    fn offers_to_candidates_round_trip_as_text() {
        let without_slot = TrialWorker { id: 1, count: 1, ..TrialWorker::default() };
        let without_slot = Offer { task: Task::Work(without_slot), ..check_offer() };
        for offer in [check_offer(), worker_offer(), without_slot] {
            let text = offer.to_string();
            assert!(is_for_candidate(&text), "{text}");
            assert_eq!(text.parse(), Ok(offer), "{text}");
        }
        assert!(!is_for_candidate("- 71 2 0 4 7 - - - 64 5 ") && !is_for_candidate("candidates 1 1 check"));
    }

    #[test]
    fn additions_of_later_versions_are_ignored() {
        let text = worker_offer().to_string();
        let text = text.replace("worker\n", "worker quickly\ncolour red\n\n").replace("id 7", "id 7 8");
        assert_eq!(text.parse(), Ok(worker_offer()), "{text}");
        let text = text.replace("worker", "dance");
        assert_eq!(text.parse::<Offer>(), Err(Unreadable::UnknownTask), "{text}");
    }

    #[test]
    fn incomplete_and_wrong_offers_are_refused() {
        let text = worker_offer().to_string();
        for (line, wrong) in [
            ("candidate 1 2", "candidate 2 1"),
            ("candidate 1 2 worker", "candidate 1"),
            ("candidate 1 2 worker", "candidate 1 2"),
            ("parent 71", "parent -71"),
            ("channel 0", ""),
            ("pool 6772", "pool 677"),
            ("id 7", ""),
            ("generation 3", "generation 4294967296"),
            ("count 4", "count"),
            ("memory 1 64 5", "memory 1 64 64"),
            ("memory 1 64 5", ""),
            ("waker 2", ""),
            (" 4\n", "\n"),
            ("socket lt", "socket zt"),
        ] {
            let wrong = text.replacen(line, wrong, 1);
            assert_ne!(wrong, text, "{line}");
            assert_eq!(wrong.parse::<Offer>(), Err(Unreadable::Malformed), "{wrong}");
        }
        assert_eq!("".parse::<Offer>(), Err(Unreadable::Malformed));
    }

    #[test]
    fn damaged_offers_never_panic() {
        let text = worker_offer().to_string();
        for damaged in damaged_copies(text) {
            if let Ok(offer) = String::from_utf8_lossy(&damaged).parse::<Offer>() {
                assert_eq!(offer.to_string().parse(), Ok(offer));
            }
        }
    }
}
