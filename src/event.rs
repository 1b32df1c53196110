//! Every transition that the parent tells of, and its words in the log.

use std::fmt;
use std::time::Duration;

use crate::error::Error;
use crate::exit::{Exit, OutOfMemory, Process};

/// What happened. `Display` gives the log line; Tornado's words where Tornado has them.
#[derive(Debug)]
pub(crate) enum Event {
    Starting {
        workers: usize,
    },
    Started {
        process: Process,
    },
    Ready {
        process: Process,
    },
    /// With `restarting`, a [`Event::Restarting`] follows that tells the rest.
    Exited {
        process: Process,
        exit: Exit,
        out_of_memory: OutOfMemory,
        /// It had been asked to go.
        asked: bool,
        restarting: bool,
    },
    Restarting {
        process: Process,
        exit: Exit,
        out_of_memory: OutOfMemory,
        delay: Duration,
        /// Restarts that the budget still allows after this one.
        #[expect(dead_code, reason = "there is nobody to tell yet")]
        left: u32,
    },
    /// The system refused a start that is not one of the first; it is tried again after the delay, if one is given.
    StartFailed {
        error: Error,
        retry: Option<Duration>,
    },
    /// No heartbeat in time.
    Hung {
        process: Process,
    },
    /// Not ready in time.
    Late {
        process: Process,
    },
    /// It did not go in time when asked to.
    Killing {
        process: Process,
    },
    Scaled {
        workers: usize,
    },
    Reloading,
    Reloaded,
    ReloadAborted {
        id: usize,
    },
    Stopping {
        workers: usize,
        quick: bool,
    },
    GaveUp {
        restarts: u32,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Starting { workers } => write!(f, "Starting {workers} processes"),
            Event::Started { process } => write!(f, "{process} started, generation {}", process.generation),
            Event::Ready { process } => write!(f, "{process} is ready"),
            Event::Exited { process, exit, out_of_memory, .. } => write!(f, "{process} {exit}{out_of_memory}"),
            Event::Restarting { process, exit, out_of_memory, delay, .. } => {
                write!(f, "{process} {exit}{out_of_memory}, restarting")?;
                if delay.is_zero() { Ok(()) } else { write!(f, " in {} ms", delay.as_millis()) }
            }
            Event::StartFailed { error, retry: Some(delay) } => {
                write!(f, "{error}, trying again in {} ms", delay.as_millis())
            }
            Event::StartFailed { error, retry: None } => write!(f, "{error}"),
            Event::Hung { process } => write!(f, "{process} gives no sign of life, aborting it"),
            Event::Late { process } => write!(f, "{process} is not ready in time"),
            Event::Killing { process } => write!(f, "{process} did not stop in time, killing it"),
            Event::Scaled { workers } => write!(f, "Scaled to {workers} processes"),
            Event::Reloading => f.write_str("Rolling restart"),
            Event::Reloaded => f.write_str("Rolling restart done"),
            Event::ReloadAborted { id } => write!(f, "Rolling restart aborted: the replacement of child {id} failed"),
            Event::Stopping { workers, quick: false } => write!(f, "Stopping {workers} processes"),
            Event::Stopping { workers, quick: true } => write!(f, "Stopping {workers} processes quickly"),
            Event::GaveUp { restarts } => write!(f, "Too many child restarts ({restarts}), giving up"),
        }
    }
}
