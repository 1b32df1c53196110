//! Reads and writes the fields of a line.

use std::fmt::{self, Display};
use std::str::{FromStr, SplitAsciiWhitespace};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::setup::{parse_name, write_name};

/// The fields of one line that have not been read yet.
pub(super) struct Fields<'a> {
    line: &'a str,
    rest: SplitAsciiWhitespace<'a>,
}

impl<'a> Fields<'a> {
    pub fn of(line: &'a str) -> Fields<'a> {
        Fields { line, rest: line.split_ascii_whitespace() }
    }

    pub fn word(&mut self) -> Result<&'a str> {
        self.rest.next().ok_or_else(|| malformed(self.line))
    }

    pub fn next<T: FromStr>(&mut self) -> Result<T> {
        self.word()?.parse().map_err(|_| malformed(self.line))
    }

    /// Reads a value that may be missing, which [`Maybe`] has written.
    pub fn maybe<T: FromStr>(&mut self) -> Result<Option<T>> {
        match self.word()? {
            "-" => Ok(None),
            word => word.parse().map(Some).map_err(|_| malformed(self.line)),
        }
    }

    pub fn flag(&mut self) -> Result<bool> {
        Ok(self.next::<u8>()? != 0)
    }

    pub fn duration(&mut self) -> Result<Duration> {
        self.next().map(Duration::from_nanos)
    }

    pub fn maybe_duration(&mut self) -> Result<Option<Duration>> {
        Ok(self.maybe()?.map(Duration::from_nanos))
    }

    /// Reads a name that [`Name`] has written. Empty if there is none.
    pub fn name(&mut self) -> Result<String> {
        let word = self.word()?;
        Ok(parse_name(word).map_err(|()| malformed(self.line))?.unwrap_or_default())
    }

    /// Reads bytes that [`Bytes`] has written.
    pub fn bytes(&mut self) -> Result<Vec<u8>> {
        let word = self.word()?;
        let byte = |at| word.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let bytes: Option<_> = (0..word.len()).step_by(2).map(byte).collect();
        bytes.ok_or_else(|| malformed(self.line))
    }

    pub fn exit(&mut self) -> Result<Option<Exit>> {
        let kind = self.word()?;
        let number = self.next()?;
        match kind {
            "-" => Ok(None),
            "code" => Ok(Some(Exit::Code(number))),
            "signal" => Ok(Some(Exit::Signal(number))),
            "stale" => Ok(Some(Exit::Stale)),
            _ => Ok(Some(Exit::Unknown)),
        }
    }
}

pub(super) fn malformed(line: &str) -> Error {
    Error::unfit("upgrade", format!("the state of the parent has a line that cannot be read: {line:?}"))
}

/// Writes a value, or `-` if there is none.
pub(super) struct Maybe<T>(pub Option<T>);

impl<T: Display> Display for Maybe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// Writes a name in hexadecimal, or `-` if it is empty.
pub(super) struct Name<'a>(pub &'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, Some(self.0).filter(|name| !name.is_empty()))
    }
}

/// Writes bytes in hexadecimal.
pub(super) struct Bytes<'a>(pub &'a [u8]);

impl Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Writes an exit as two fields.
pub(super) struct ExitFields(pub Option<Exit>);

impl Display for ExitFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("- 0"),
            Some(Exit::Code(code)) => write!(f, "code {code}"),
            Some(Exit::Signal(signal)) => write!(f, "signal {signal}"),
            Some(Exit::Unknown) => f.write_str("unknown 0"),
            Some(Exit::Stale) => f.write_str("stale 0"),
        }
    }
}

/// Writes a duration in nanoseconds.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
