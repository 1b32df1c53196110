//! The offer: the message by which a parent makes a spawned process a worker, and the environment variable that leads
//! to the message.
//!
//! Each start has a message of its own, in memory that only the new process inherits. So no other worker can read or
//! change it. The variable alone proves nothing, because any program can set it or inherit it. It contains a secret
//! that the message repeats.

use std::str::{self, FromStr};
use std::{fmt, process};

use super::Number;

/// The environment variable of a spawned worker.
pub(super) const VARIABLE: &str = "TASKFORK_WORKER";

/// A random number that no other start has.
pub(crate) type Secret = [u32; 4];

/// The file that a process executes: the numbers of its file system and of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProgramId(pub u64, pub u64);

/// The value of the environment variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    /// The descriptor or handle of the message.
    pub number: Number,
    /// The length of the message in bytes.
    pub len: usize,
    pub secret: Secret,
    /// The program that is started as a worker. A child of that process can inherit the variable, but is no worker.
    pub program: ProgramId,
}

/// The content of the message. It is text of four parts, each on a line of its own. Reading it allocates no memory,
/// because it is read before `main`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer<'a> {
    pub secret: Secret,
    /// The name of the process in hexadecimal digits, or nothing. In an upgrade, words follow that are set before
    /// `main`, too.
    pub start: &'a str,
    /// The inherited descriptors, separated by spaces.
    pub inherited: &'a str,
    /// The part that the launcher has written.
    pub text: &'a str,
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Variable { number, len, secret: [a, b, c, d], program: ProgramId(volume, file) } = self;
        // The pid of the parent comes first, for people who look at the environment of a process.
        write!(f, "{} {number} {len} {a} {b} {c} {d} {volume} {file}", process::id())
    }
}

impl FromStr for Variable {
    type Err = ();

    fn from_str(text: &str) -> Result<Variable, ()> {
        let fields = &mut text.split(' ');
        next::<u32>(fields)?;
        let number = next(fields)?;
        let len = next(fields)?;
        let secret = [next(fields)?, next(fields)?, next(fields)?, next(fields)?];
        let program = ProgramId(next(fields)?, next(fields)?);
        let is_complete = fields.next().is_none() && len > 0;
        is_complete.then_some(Variable { number, len, secret, program }).ok_or(())
    }
}

impl fmt::Display for Offer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Offer { secret: [a, b, c, d], start, inherited, text } = self;
        write!(f, "{a} {b} {c} {d}\n{start}\n{inherited}\n{text}")
    }
}

impl Offer<'_> {
    /// Parses the message, and checks that it has this secret.
    pub fn read(message: &[u8], expected: Secret) -> Option<Offer<'_>> {
        let mut parts = str::from_utf8(message).ok()?.splitn(4, '\n');
        let fields = &mut parts.next()?.split(' ');
        let mut part = || next(fields).ok();
        let secret = [part()?, part()?, part()?, part()?];
        let offer = Offer { secret, start: parts.next()?, inherited: parts.next()?, text: parts.next()? };
        (secret == expected).then_some(offer)
    }
}

/// Parses the next field.
fn next<T: FromStr>(fields: &mut str::Split<'_, char>) -> Result<T, ()> {
    fields.next().ok_or(())?.parse().map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_formatted_variable_can_be_parsed() {
        let program = ProgramId(u64::MAX, 6);
        let variable = Variable { number: 7, len: 640064, secret: [u32::MAX, 0, 5, 6], program };
        let text = variable.to_string();
        assert_eq!(text.parse(), Ok(variable));
        for wrong in [
            "",
            "1",
            "yes",
            &text[..text.len() - 2],
            &format!("{text} 9"),
            &format!("{text} "),
            &text.replace("640064", "-64"),
            &text.replace("640064", "0"),
        ] {
            assert_eq!(wrong.parse::<Variable>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn an_offer_is_read_only_with_its_secret() {
        let secret = [1, u32::MAX, 3, 4];
        for offer in [
            Offer { secret, start: "6162", inherited: "3:4:5 -1:0:0", text: "1 2\n3" },
            Offer { secret, start: "", inherited: "", text: "" },
        ] {
            let message = offer.to_string();
            assert_eq!(Offer::read(message.as_bytes(), secret), Some(offer));
            assert_eq!(Offer::read(message.as_bytes(), [1, u32::MAX, 3, 5]), None);
        }
        for wrong in ["", "1 2 3", "1 4294967295 3 4\n", "1 4294967295 3 4\n\n", "\n\n\n"] {
            assert_eq!(Offer::read(wrong.as_bytes(), secret), None, "{wrong:?}");
        }
        assert_eq!(Offer::read(b"1 4294967295 3 4\n\n\n\xff", secret), None);
    }
}
