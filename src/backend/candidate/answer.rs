//! The text of a candidate's answer.
//!
//! Another version of this crate may read the text, with the same rules as for an offer. An answer consists of one or
//! several messages. Each message begins with the formats of the state that the new program can read. The descriptors
//! of new sockets are attached to the message that lists them.
//!
//! ```text
//! answer 1 2                 the formats of the state that the new program can read
//! pool 776562 4 1 0 -        the name in hexadecimal digits or -, workers, max_surge, optional, ready_timeout in ns
//! socket SPEC 0              a new socket: its descriptor, as an index into those of this message
//! passed                     everything was sent, and all checks have passed
//! ```
//!
//! Instead of `passed`, the last line is `refused` and a reason. A trial worker sends `reached` when it has become a
//! worker.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::offer::{PoolWord, next, parse_pool};
use crate::listener::SocketLine;

/// The first word of each message.
const WORD: &str = "answer";
/// The longest reason of a refusal, in characters.
const LONGEST_REASON: usize = 1000;

/// What the new program's check has found out about one of its pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckedPool {
    /// The name of the pool. Empty for a `Prefork` that is used alone.
    pub name: String,
    pub workers: usize,
    pub max_surge: usize,
    pub optional: bool,
    pub ready_timeout: Option<Duration>,
}

/// One message of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub formats: RangeInclusive<u32>,
    pub pools: Vec<CheckedPool>,
    /// The new sockets. The positions are those of their descriptors in this message.
    pub sockets: Vec<SocketLine>,
    pub end: Option<End>,
}

/// The last line of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All checks have passed.
    Passed,
    /// The candidate cannot be the new program, for this reason.
    Refused(String),
    /// The candidate has become a worker.
    Reached,
}

impl Message {
    /// Returns a message that contains only the formats.
    pub fn new(formats: RangeInclusive<u32>) -> Message {
        Message { formats, pools: Vec::new(), sockets: Vec::new(), end: None }
    }

    /// Returns the message that ends an answer.
    pub fn end(formats: RangeInclusive<u32>, end: End) -> Message {
        Message { end: Some(end), ..Message::new(formats) }
    }

    /// Parses a message. Returns `None` if it is no message of an answer, or if a known line has a wrong form.
    pub fn parse(bytes: &[u8]) -> Option<Message> {
        let mut lines = std::str::from_utf8(bytes).ok()?.lines();
        let words = &mut lines.next()?.split_ascii_whitespace();
        if words.next() != Some(WORD) {
            return None;
        }
        let formats = next(words)?..=next(words)?;
        if formats.is_empty() {
            return None;
        }
        let mut message = Message::new(formats);
        for line in lines {
            message.read(line)?;
        }
        Some(message)
    }

    /// Reads one line. Returns `None` if the line is known but has a wrong form.
    fn read(&mut self, line: &str) -> Option<()> {
        let words = &mut line.split_ascii_whitespace();
        let Some(word) = words.next() else { return Some(()) };
        match word {
            "pool" => self.pools.push(CheckedPool {
                name: parse_pool(words.next()?)?,
                workers: next(words)?,
                max_surge: next(words)?,
                optional: next::<u8>(words)? != 0,
                ready_timeout: match words.next()? {
                    "-" => None,
                    nanos => Some(Duration::from_nanos(nanos.parse().ok()?)),
                },
            }),
            "socket" => self.sockets.push(line.parse().ok()?),
            "passed" => self.end = Some(End::Passed),
            "reached" => self.end = Some(End::Reached),
            "refused" => {
                let reason = line.trim_start().strip_prefix("refused").unwrap_or_default();
                self.end = Some(End::Refused(one_line(reason)));
            }
            _ => {}
        }
        Some(())
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Message { formats, pools, sockets, end } = self;
        writeln!(f, "{WORD} {} {}", formats.start(), formats.end())?;
        for pool in pools {
            writeln!(f, "{pool}")?;
        }
        for socket in sockets {
            writeln!(f, "{socket}")?;
        }
        match end {
            None => Ok(()),
            Some(End::Passed) => f.write_str("passed\n"),
            Some(End::Reached) => f.write_str("reached\n"),
            Some(End::Refused(reason)) => writeln!(f, "refused {}", one_line(reason)),
        }
    }
}

impl fmt::Display for CheckedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CheckedPool { name, workers, max_surge, optional, ready_timeout } = self;
        write!(f, "pool {} {workers} {max_surge} {} ", PoolWord(name), u8::from(*optional))?;
        match ready_timeout {
            Some(timeout) => write!(f, "{}", timeout.as_nanos()),
            None => f.write_str("-"),
        }
    }
}

/// Makes one line of a reason, because the log has one line for it: replaces line breaks and other control characters
/// by spaces, and cuts what is too long.
fn one_line(reason: &str) -> String {
    let words = reason.split(|char: char| char.is_control() || char == ' ').filter(|word| !word.is_empty());
    let mut line = words.collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST_REASON) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::candidate::tests::damaged_copies;

    fn message() -> Message {
        let web = CheckedPool { name: "web".into(), workers: 4, max_surge: 1, optional: false, ready_timeout: None };
        let ready_timeout = Some(Duration::from_millis(1500));
        let unnamed = CheckedPool { name: String::new(), workers: 1, max_surge: 0, optional: true, ready_timeout };
        let sockets = ["socket lt,,127.0.0.1:0,0,,,,, 1", "socket bu,,udp:[::]:53,0,,,,, 0"];
        let sockets = sockets.map(|line| line.parse().expect("a line")).to_vec();
        Message { formats: 2..=3, pools: vec![web, unnamed], sockets, end: Some(End::Passed) }
    }

    #[test]
    fn answers_round_trip_as_text() {
        let refused = End::Refused("workers: 0 is too few".into());
        for end in [None, Some(End::Passed), Some(End::Reached), Some(refused)] {
            let message = Message { end, ..message() };
            let text = message.to_string();
            assert_eq!(Message::parse(text.as_bytes()), Some(message), "{text}");
        }
    }

    #[test]
    fn additions_of_later_versions_are_ignored() {
        let text = message().to_string();
        let added = text.replace("2 3\n", "2 3 4\ncolour red\n\n").replace("1500000000", "1500000000 x");
        assert_eq!(Message::parse(added.as_bytes()), Some(message()), "{added}");
    }

    #[test]
    fn wrong_answers_are_refused() {
        let text = message().to_string();
        for (line, wrong) in [
            ("answer 2 3", "answers 2 3"),
            ("answer 2 3", "answer 3 2"),
            ("answer 2 3", "answer 2"),
            ("pool 776562", "pool 77656"),
            ("4 1 0 -", "4 1 0"),
            ("4 1 0 -", "4 1 no -"),
            ("4 1 0 -", "-4 1 0 -"),
            (",,,,, 1\n", ",,,,,\n"),
        ] {
            let wrong = text.replacen(line, wrong, 1);
            assert_ne!(wrong, text, "{line}");
            assert_eq!(Message::parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(Message::parse(b""), None);
        assert_eq!(Message::parse(b"answer 1 1\n\xff\n"), None);
    }

    #[test]
    fn a_reason_is_one_line_of_limited_length() {
        let refused = |reason: &str| {
            let text = Message::end(1..=1, End::Refused(reason.into())).to_string();
            match Message::parse(text.as_bytes()).expect("a message").end {
                Some(End::Refused(reason)) => reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused("a\nb\tc\u{1b}[1m\r\npassed\n"), "a b c [1m passed");
        assert_eq!(refused(""), "");
        let long = refused(&"ö".repeat(5000));
        assert_eq!(long.chars().count(), LONGEST_REASON + 1);
        let sent = Message::parse(format!("answer 1 1\nrefused {}\n", "x".repeat(100_000)).as_bytes());
        let Some(Message { end: Some(End::Refused(reason)), .. }) = sent else { panic!("no refusal") };
        assert_eq!(reason.chars().count(), LONGEST_REASON + 1);
    }

    #[test]
    fn damaged_answers_never_panic() {
        let text = message().to_string();
        for damaged in damaged_copies(text) {
            if let Some(message) = Message::parse(&damaged) {
                assert_eq!(Message::parse(message.to_string().as_bytes()), Some(message));
            }
        }
    }
}
