//! Every transition that the parent tells of, and its words in the log.

use std::fmt;
use std::time::Duration;

use crate::error::Error;
use crate::exit::{Exit, OutOfMemory, Process};

/// What happened to the workers, as [`Prefork::on_event`](crate::Prefork::on_event) is told. `Display` gives the line of
/// the log, with Tornado's words where Tornado has them.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A socket of [`Prefork::listen`](crate::Prefork::listen) is bound.
    Listening {
        /// Which one, in the order in which they were asked for.
        listener: usize,
        /// Where: `127.0.0.1:8000`, with the port that the system has chosen; `udp:[::]:53`, `unix:/run/service.sock`.
        address: String,
    },
    /// The workers are about to be started.
    Starting {
        /// How many.
        workers: usize,
    },
    /// A process was started.
    Started {
        /// Which one.
        process: Process,
    },
    /// A process is ready: it has said so within the `ready_timeout`; or, where there is none, a replacement has said so or
    /// has lived for a second.
    Ready {
        /// Which one.
        process: Process,
    },
    /// A process has ended, and has been reaped.
    Exited {
        /// Which one.
        process: Process,
        /// How.
        exit: Exit,
        /// Whether the kernel has killed it for want of memory.
        out_of_memory: OutOfMemory,
        /// It had been asked to go.
        asked: bool,
        /// A restart follows: the next event is [`Event::Restarting`], and the log says both in one line.
        restarting: bool,
    },
    /// A worker thread has failed, and says how: its end follows. (A process says so itself, in its own log.)
    Failed {
        /// Which one.
        process: Process,
        /// The error that it returned, with its sources; or `panicked: `, and the panic's message.
        message: String,
    },
    /// A worker thread did not return when it had to, or gave no sign of life. It cannot be killed, so it is given up: its
    /// end follows, though it still runs.
    Stale {
        /// Which one.
        process: Process,
    },
    /// A worker thread that had been given up has returned after all.
    Returned {
        /// Which one.
        process: Process,
    },
    /// A process that has ended will be followed by another one of its id.
    Restarting {
        /// The one that has ended.
        process: Process,
        /// How.
        exit: Exit,
        /// Whether the kernel has killed it for want of memory.
        out_of_memory: OutOfMemory,
        /// How long the id waits before that.
        delay: Duration,
        /// Restarts that the budget still allows after this one.
        left: u32,
    },
    /// The system refused to start a process that is not one of the first.
    StartFailed {
        /// What it said, and of which worker.
        error: Error,
        /// After this time it is tried again. A replacement is not: the old process stays.
        retry: Option<Duration>,
    },
    /// A process gave no heartbeat in time: it gets SIGABRT now, and SIGKILL after one more second. (A thread is given up.)
    HeartbeatTimedOut {
        /// Which one.
        process: Process,
    },
    /// A process was not ready in time.
    ReadyTimedOut {
        /// Which one.
        process: Process,
    },
    /// A process did not go in time when it was asked to: it gets SIGKILL now. (A thread is given up.)
    StopTimedOut {
        /// Which one.
        process: Process,
    },
    /// A worker more or fewer was asked for.
    Scaled {
        /// How many are wanted now.
        workers: usize,
    },
    /// A worker that was asked for by SIGTTIN could not be brought up: it ended, or was late, before any process of its id
    /// was ready. It is given up, and [`Event::Scaled`] follows.
    ScalingAborted {
        /// Which worker.
        id: usize,
    },
    /// A rolling restart begins.
    RollingRestartStarted,
    /// A rolling restart is over, and every process that served when it began, and still did when its turn came, was replaced.
    RollingRestartFinished,
    /// A rolling restart is over because a replacement failed. The processes whose turn has not come stay, and so does the
    /// old one, unless it had been asked to go because the replacement was ready before it failed.
    RollingRestartAborted {
        /// The worker whose replacement failed.
        id: usize,
    },
    /// A process has served for its lifetime, and its replacement is about to be started.
    Recycling {
        /// The old one.
        process: Process,
    },
    /// The replacement of an old process failed. The old one stays for one more lifetime.
    RecyclingAborted {
        /// The worker whose replacement failed.
        id: usize,
    },
    /// All workers are asked to go.
    Stopping {
        /// How many processes there are.
        workers: usize,
        /// By SIGQUIT, and with less time.
        quick: bool,
        /// The worker that has asked for it by [`Worker::stop_all`](crate::Worker::stop_all), if one has.
        by: Option<Process>,
    },
    /// A stop was asked for once more: whoever still lives gets SIGKILL now.
    KillingAll {
        /// How many processes there are.
        workers: usize,
    },
    /// A worker could not be brought up, so that everything is stopped.
    StartupFailed {
        /// The process.
        process: Process,
        /// How it ended; `None`: it lives, and is late.
        exit: Option<Exit>,
    },
    /// The restart budget is spent, so that everything is stopped.
    RestartLimitReached {
        /// How many restarts there have been.
        restarts: u32,
    },
}

impl Event {
    /// The process that this is about, if it is about one.
    pub fn process(&self) -> Option<Process> {
        match self {
            Event::Started { process }
            | Event::Ready { process }
            | Event::Failed { process, .. }
            | Event::Stale { process }
            | Event::Returned { process }
            | Event::Exited { process, .. }
            | Event::Restarting { process, .. }
            | Event::HeartbeatTimedOut { process }
            | Event::ReadyTimedOut { process }
            | Event::StopTimedOut { process }
            | Event::Recycling { process }
            | Event::StartupFailed { process, .. } => Some(*process),
            Event::Stopping { by, .. } => *by,
            Event::Listening { .. }
            | Event::Starting { .. }
            | Event::StartFailed { .. }
            | Event::Scaled { .. }
            | Event::ScalingAborted { .. }
            | Event::KillingAll { .. }
            | Event::RollingRestartStarted
            | Event::RollingRestartFinished
            | Event::RollingRestartAborted { .. }
            | Event::RecyclingAborted { .. }
            | Event::RestartLimitReached { .. } => None,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Listening { address, .. } => write!(f, "Listening on {address}"),
            Event::Starting { workers } => write!(f, "Starting {workers} processes"),
            Event::Started { process } => write!(f, "{process} started, generation {}", process.generation),
            Event::Ready { process } => write!(f, "{process} is ready"),
            Event::Failed { process, message } => write!(f, "{process}: {message}"),
            Event::Stale { process } => write!(f, "{process} is stale"),
            Event::Returned { process } => write!(f, "{process} was stale, and has returned"),
            Event::Exited { process, exit, out_of_memory, .. } => {
                write!(f, "{process} {exit}{out_of_memory}")
            }
            Event::Restarting { process, exit, out_of_memory, delay, .. } => {
                write!(f, "{process} {exit}{out_of_memory}, restarting")?;
                if delay.is_zero() { Ok(()) } else { write!(f, " in {} ms", delay.as_millis()) }
            }
            Event::StartFailed { error, retry: Some(delay) } => {
                write!(f, "{error:?}, trying again in {} ms", delay.as_millis())
            }
            Event::StartFailed { error, retry: None } => write!(f, "{error:?}"),
            Event::HeartbeatTimedOut { process } if process.is_thread() => write!(f, "{process} gives no sign of life"),
            Event::HeartbeatTimedOut { process } => write!(f, "{process} gives no sign of life, aborting it"),
            Event::ReadyTimedOut { process } => write!(f, "{process} is not ready in time"),
            Event::StopTimedOut { process } if process.is_thread() => write!(f, "{process} did not stop in time"),
            Event::StopTimedOut { process } => write!(f, "{process} did not stop in time, killing it"),
            Event::Scaled { workers } => write!(f, "Scaled to {workers} processes"),
            Event::ScalingAborted { id } => write!(f, "Child {id} could not be brought up, giving it up"),
            Event::KillingAll { workers } => write!(f, "Asked to stop once more, killing {workers} processes"),
            Event::RollingRestartStarted => f.write_str("Rolling restart"),
            Event::RollingRestartFinished => f.write_str("Rolling restart done"),
            Event::RollingRestartAborted { id } => {
                write!(f, "Rolling restart aborted: the replacement of child {id} failed")
            }
            Event::Recycling { process } => write!(f, "{process} has served its time, replacing it"),
            Event::RecyclingAborted { id } => write!(f, "The replacement of child {id} failed, the old one stays"),
            Event::Stopping { workers, quick, by } => {
                write!(f, "Stopping {workers} processes")?;
                match by {
                    Some(process) => write!(f, ", as {process} asked"),
                    None => f.write_str(if *quick { " quickly" } else { "" }),
                }
            }
            Event::StartupFailed { process, exit: Some(exit) } => {
                write!(f, "Startup failed: {process} {exit}")
            }
            Event::StartupFailed { process, exit: None } => {
                write!(f, "Startup failed: {process} was not ready in time")
            }
            Event::RestartLimitReached { restarts } => write!(f, "Too many child restarts ({restarts}), giving up"),
        }
    }
}
