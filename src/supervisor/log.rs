//! The observer that writes the log. It is called before the other observers, so that the log line of an event is
//! written before the program's `on_event` closure receives the event.

use std::fmt;
use std::time::Duration;

use log::{Level, log};

use super::observer::{Observer, Output, ServiceView};
use crate::event::Event;
use crate::exit::Exit;

/// The observer that logs every event for which [`level_of`] returns a level.
pub(super) struct Log;

impl Observer for Log {
    fn handle_event(&mut self, event: &Event, _: &dyn ServiceView, output: &mut Output) {
        if let Some(level) = level_of(event) {
            output.log(level, event);
        }
    }
}

pub(super) fn write(level: Level, line: &dyn fmt::Display) {
    log!(target: "taskfork", level, "{line}");
}

/// Logs that the start waits for an address that is in use.
pub(crate) fn warn_of_wait(address: &str, longest: Duration) {
    let seconds = longest.as_secs_f32();
    write(Level::Warn, &format_args!("{address} is in use, trying again for up to {seconds:.1} s"));
}

/// Returns the level at which an event is logged. Returns `None` if the event is not logged, because the next event
/// logs the same fact.
fn level_of(event: &Event) -> Option<Level> {
    match event {
        Event::Exited { restarting: true, .. } | Event::Stale { .. } => None,
        // The event before, `KillTimedOut`, has logged the same fact.
        Event::Exited { process, exit: Exit::Stale, .. } if !process.is_thread() => None,
        Event::Exited { exit, asked, reached_call, .. }
            if exit.is_success() && *reached_call || *asked && *exit != Exit::Stale =>
        {
            Some(Level::Info)
        }
        Event::Restarting { reason, .. } if !reason.is_counted() => Some(Level::Info),
        Event::Ready { .. } => Some(Level::Debug),
        Event::Listening { .. }
        | Event::Starting { .. }
        | Event::Started { .. }
        | Event::Scaled { .. }
        | Event::RollingRestartStarted { .. }
        | Event::RollingRestartFinished { .. }
        | Event::Recycling { .. }
        | Event::Stopping { .. }
        | Event::UpgradeStarted
        | Event::Adopted { .. }
        | Event::UpgradeFinished
        | Event::PoolEnded { success: true, .. } => Some(Level::Info),
        Event::Exited { .. }
        | Event::Restarting { .. }
        | Event::StartFailed { .. }
        | Event::Failed { .. }
        | Event::Returned { .. }
        | Event::HeartbeatTimedOut { .. }
        | Event::ReadyTimedOut { .. }
        | Event::StopTimedOut { .. }
        | Event::KillTimedOut { .. }
        | Event::KillingAll { .. }
        | Event::RecyclingRefused { .. }
        | Event::ScalingLimited { .. }
        | Event::RequestIgnored { .. }
        | Event::ListenerShutDown { restored: true, .. } => Some(Level::Warn),
        Event::RollingRestartAborted { .. }
        | Event::ScalingAborted { .. }
        | Event::RecyclingAborted { .. }
        | Event::UpgradeAborted { .. }
        | Event::StartupFailed { .. }
        | Event::PoolEnded { success: false, .. }
        | Event::ListenerShutDown { restored: false, .. }
        | Event::RestartLimitReached { .. } => Some(Level::Error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::RestartReason;
    use crate::exit::{OutOfMemory, Process};

    #[test]
    fn only_restarts_after_failures_are_warnings() {
        let restarting = |exit, reason| Event::Restarting {
            process: Process { pool: "", id: 0, generation: 0, pid: Some(71) },
            exit,
            out_of_memory: OutOfMemory::No,
            reached_call: true,
            work_in_progress: 0,
            reason,
            delay: Duration::ZERO,
            left: None,
        };
        assert_eq!(level_of(&restarting(Exit::Code(1), RestartReason::Failure)), Some(Level::Warn));
        let uncounted =
            [RestartReason::NormalExit, RestartReason::StopRequest, RestartReason::Retired, RestartReason::Requests];
        for reason in uncounted {
            assert_eq!(level_of(&restarting(Exit::Code(0), reason)), Some(Level::Info));
        }
    }

    #[test]
    fn every_start_is_logged_at_level_info() {
        let process = Process { pool: "", id: 2, generation: 0, pid: Some(71) };
        let event = Event::Started { process };
        assert_eq!(level_of(&event), Some(Level::Info));
        assert_eq!(event.to_string(), "child 2 (pid 71) started, generation 0");
    }
}
