//! Reports why a service or a worker has failed: in the log, or on standard error if no logger takes the line.

use std::fmt;
use std::io::{self, Write};

use log::{Level, log, log_enabled};

/// Logs a failure as an error. If no logger takes errors of this crate, writes the line to standard error instead, so
/// that an operator never sees an exit status alone.
pub(crate) fn report(failure: &dyn fmt::Display) {
    if is_logged(Level::Error) {
        log!(target: "taskfork", Level::Error, "{failure}");
    } else {
        print(failure);
    }
}

/// Reports a failure that an event of this level has reported already, unless a logger has taken the event's line.
pub(crate) fn report_unless_logged(level: Level, failure: &dyn fmt::Display) {
    if !is_logged(level) {
        report(failure);
    }
}

/// Returns whether a logger takes lines of this level from this crate.
pub(crate) fn is_logged(level: Level) -> bool {
    log_enabled!(target: "taskfork", level)
}

/// Writes one line by one write(2), so that the lines of several processes do not mix. Ignores errors, because standard
/// error may be closed, and there is no other place for the line.
fn print(failure: &dyn fmt::Display) {
    let line = format!("taskfork: {failure}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}
