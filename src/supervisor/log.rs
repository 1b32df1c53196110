//! The log.

use std::fmt;

use log::{Level, log};

use crate::event::Event;
use crate::exit::Exit;

pub(super) fn write(level: Level, line: &dyn fmt::Display) {
    log!(target: "taskfork", level, "{line}");
}

/// Where a line stands in the log, if it has one.
pub(super) fn level_of(event: &Event) -> Option<Level> {
    match event {
        // A line about the same follows.
        Event::Exited { restarting: true, .. } | Event::Stale { .. } => None,
        Event::Exited { process, exit, asked, .. } if exit.is_success() || *asked && *exit != Exit::Stale => {
            Some(Level::Info)
        }
        Event::Started { .. } | Event::Ready { .. } => Some(Level::Debug),
        Event::Listening { .. }
        | Event::Starting { .. }
        | Event::Scaled { .. }
        | Event::RollingRestartStarted
        | Event::RollingRestartFinished
        | Event::Recycling { .. }
        | Event::Stopping { .. } => Some(Level::Info),
        Event::Exited { .. }
        | Event::Restarting { .. }
        | Event::StartFailed { .. }
        | Event::Failed { .. }
        | Event::Returned { .. }
        | Event::HeartbeatTimedOut { .. }
        | Event::ReadyTimedOut { .. }
        | Event::StopTimedOut { .. }
        | Event::KillingAll { .. } => Some(Level::Warn),
        Event::RollingRestartAborted { .. }
        | Event::ScalingAborted { .. }
        | Event::RecyclingAborted { .. }
        | Event::StartupFailed { .. }
        | Event::RestartLimitReached { .. } => Some(Level::Error),
    }
}
