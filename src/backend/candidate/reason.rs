//! The reasons why a candidate has failed, as the operator reads them in the log.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::exit::Exit;

/// The reason why the new program is not tried any further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The old parent cannot make what a candidate needs. (`NewProgram` has reasons of its own if the program cannot be
    /// executed.)
    NotTried(String),
    /// The process has ended before it has reached the call. Then the program may be broken, or may have no call of
    /// this crate.
    Ended(Exit),
    /// A trial worker has ended after the call.
    WorkerEnded(Exit),
    /// The call has refused its settings, or what the old parent has passed.
    Refused(String),
    /// The two programs have no format of the state in common.
    Formats { reads: RangeInclusive<u32>, writes: RangeInclusive<u32> },
    /// The candidate has sent something that is no answer.
    NoAnswer(&'static str),
}

/// Displays a reason as a sentence about the program at `path`.
pub(super) struct About<'a> {
    pub path: &'a Path,
    pub reason: &'a Reason,
}

impl fmt::Display for About<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the program {} ", self.path.display())?;
        match self.reason {
            Reason::NotTried(problem) => write!(f, "cannot be tried: {problem}"),
            Reason::Ended(exit) => write!(f, "{} before it reached the call", Ended(*exit)),
            Reason::WorkerEnded(exit) => write!(f, "{} in its trial as a worker", Ended(*exit)),
            Reason::Refused(problem) if problem.is_empty() => f.write_str("refuses its settings"),
            Reason::Refused(problem) => write!(f, "refuses its settings: {problem}"),
            Reason::Formats { reads, writes } => {
                write!(f, "reads other formats ({}) than this program writes ({})", Range(reads), Range(writes))
            }
            Reason::NoAnswer(problem) => write!(f, "has sent an answer that is not understood: {problem}"),
        }
    }
}

/// Displays how the process has ended. Names status 0 too, because a candidate must not end normally before its call.
struct Ended(Exit);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Exit::Code(0) => f.write_str("exited with status 0"),
            Exit::Signal(signal) => write!(f, "was killed by signal {signal}"),
            exit => write!(f, "{exit}"),
        }
    }
}

/// Displays `2-3`, or one number.
struct Range<'a>(&'a RangeInclusive<u32>);

impl fmt::Display for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.start();
        let last = self.0.end();
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_one_clear_line() {
        let path = Path::new("/srv/app");
        for (reason, line) in [
            (Reason::NotTried("socketpair: no room".into()), "cannot be tried: socketpair: no room"),
            (Reason::Ended(Exit::Code(0)), "exited with status 0 before it reached the call"),
            (Reason::Ended(Exit::Code(3)), "exited with status 3 before it reached the call"),
            (Reason::Ended(Exit::Signal(11)), "was killed by signal 11 before it reached the call"),
            (Reason::Ended(Exit::Unknown), "exited with unknown status before it reached the call"),
            (Reason::WorkerEnded(Exit::Signal(6)), "was killed by signal 6 in its trial as a worker"),
            (Reason::Refused("workers: too few".into()), "refuses its settings: workers: too few"),
            (Reason::Refused(String::new()), "refuses its settings"),
            (Reason::Formats { reads: 3..=4, writes: 1..=1 }, "reads other formats (3-4) than this program writes (1)"),
        ] {
            assert_eq!(About { path, reason: &reason }.to_string(), format!("the program /srv/app {line}"));
        }
    }
}
