//! The log.

use std::fmt;

use log::{Level, log};

use crate::event::Event;
use crate::exit::ProcessExit;

pub(super) fn write(level: Level, line: &dyn fmt::Display) {
    log!(target: "taskfork", level, "{line}");
}

/// Where a line stands in the log, if it has one.
pub(super) fn level_of(event: &Event) -> Option<Level> {
    match event {
        // A line about the same follows.
        Event::Exited { restarting: true, .. } | Event::Stale { .. } => None,
        Event::Exited { process, exit, asked, .. }
            if exit.is_success() || *asked && !ProcessExit(process, exit).is_stale() =>
        {
            Some(Level::Info)
        }
        Event::Started { .. } | Event::Ready { .. } => Some(Level::Debug),
        Event::Listening { .. }
        | Event::Starting { .. }
        | Event::Scaled { .. }
        | Event::Reloading
        | Event::Reloaded
        | Event::Recycling { .. }
        | Event::Stopping { .. } => Some(Level::Info),
        Event::Exited { .. }
        | Event::Restarting { .. }
        | Event::StartFailed { .. }
        | Event::Failed { .. }
        | Event::Returned { .. }
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
