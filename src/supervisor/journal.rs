//! The log.

use std::error::Error;
use std::fmt;

use log::{Level, log};

use crate::event::Event;

pub(super) fn write(level: Level, line: &dyn fmt::Display) {
    log!(target: "taskfork", level, "{line}");
}

/// An error, and what is behind it.
pub(super) struct WithSources<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for WithSources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |&error| error.source()).try_for_each(|source| write!(f, ": {source}"))
    }
}

/// Where a line stands in the log, if it has one.
pub(super) fn level_of(event: &Event) -> Option<Level> {
    match event {
        Event::Exited { restarting: true, .. } => None,
        Event::Exited { exit, asked, .. } if *asked || exit.is_success() => Some(Level::Info),
        Event::Started { .. } | Event::Ready { .. } => Some(Level::Debug),
        Event::Starting { .. }
        | Event::Scaled { .. }
        | Event::Reloading
        | Event::Reloaded
        | Event::Recycling { .. }
        | Event::Stopping { .. } => Some(Level::Info),
        Event::Exited { .. }
        | Event::Restarting { .. }
        | Event::StartFailed { .. }
        | Event::Hung { .. }
        | Event::Late { .. }
        | Event::Killing { .. }
        | Event::KillingAll { .. } => Some(Level::Warn),
        Event::ReloadAborted { .. }
        | Event::ScalingAborted { .. }
        | Event::RecyclingAborted { .. }
        | Event::StartupFailed { .. }
        | Event::GaveUp { .. } => Some(Level::Error),
    }
}
