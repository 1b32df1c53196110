//! The events that the parent reports, and their lines in the log.

use std::fmt;
use std::time::Duration;

use crate::error::Error;
use crate::exit::{Exit, OutOfMemory, Process};

/// A change in the service, as [`Prefork::on_event`](crate::Prefork::on_event) gets it. `Display` writes the line of
/// the log, with Tornado's words where Tornado has the line.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A socket of [`Prefork::listen`](crate::Prefork::listen) is bound.
    Listening {
        /// The position of the listener, which counts the calls of `listen` from 0.
        listener: usize,
        /// The address, with the port that the system has chosen: `127.0.0.1:8000`, `udp:[::]:53`,
        /// `unix:/run/service.sock`.
        address: String,
    },
    /// The workers are about to be started.
    Starting {
        /// The number of workers.
        workers: usize,
    },
    /// A process was started.
    Started {
        /// The process.
        process: Process,
    },
    /// A process is ready: it has called [`Worker::ready`](crate::Worker::ready) within the `ready_timeout`. Without a
    /// `ready_timeout`, this event concerns replacements only, which are ready after this call or after a second.
    Ready {
        /// The process.
        process: Process,
    },
    /// A process has exited and has been reaped.
    Exited {
        /// The process.
        process: Process,
        /// How it exited.
        exit: Exit,
        /// Whether the kernel killed it for lack of memory.
        out_of_memory: OutOfMemory,
        /// Whether the parent caused the exit: by a stop request, or by SIGKILL to a replacement or an added worker
        /// that was not ready in time.
        asked: bool,
        /// Whether a restart follows. Then the next event is [`Event::Restarting`], and both share one line of the log.
        restarting: bool,
    },
    /// A worker thread has failed. [`Event::Exited`] follows. For a worker process there is no such event, because it
    /// logs its failure itself.
    Failed {
        /// The process.
        process: Process,
        /// The error that it returned, with its sources, or `panicked: ` and the panic's message.
        message: String,
    },
    /// A worker thread did not return when it had to, or gave no heartbeat. A thread cannot be killed, so the parent
    /// abandons it. [`Event::Exited`] follows, although the thread still runs.
    Stale {
        /// The process.
        process: Process,
    },
    /// An abandoned worker thread has returned after all.
    Returned {
        /// The process.
        process: Process,
    },
    /// A process has exited, and its worker will be restarted.
    Restarting {
        /// The process that has exited.
        process: Process,
        /// How it exited.
        exit: Exit,
        /// Whether the kernel killed it for lack of memory.
        out_of_memory: OutOfMemory,
        /// The delay before the restart.
        delay: Duration,
        /// The number of restarts that the limit still allows after this one.
        left: u32,
    },
    /// The system refused to start a process. (If this happens to an initial worker's first start, the call returns the
    /// error instead.)
    StartFailed {
        /// The system's answer, with the worker that it concerns.
        error: Error,
        /// The delay before the next try. `None` for a replacement, which is not tried again: the old process stays.
        retry: Option<Duration>,
    },
    /// A process gave no heartbeat in time. It gets SIGABRT now, and SIGKILL a second later. (A thread is abandoned.)
    HeartbeatTimedOut {
        /// The process.
        process: Process,
    },
    /// A process was not ready in time.
    ReadyTimedOut {
        /// The process.
        process: Process,
    },
    /// A process did not exit in time after a stop request or a SIGABRT. It gets SIGKILL now. (A thread is abandoned.)
    StopTimedOut {
        /// The process.
        process: Process,
    },
    /// The number of workers has changed: one was added, removed or dropped.
    Scaled {
        /// The number of workers that the service should have now.
        workers: usize,
    },
    /// A worker that SIGTTIN added could not start: it failed or was late before any process of its id was ready. The
    /// worker is dropped, and [`Event::Scaled`] follows.
    ScalingAborted {
        /// The worker.
        id: usize,
    },
    /// A rolling restart begins.
    RollingRestartStarted,
    /// A rolling restart has ended. It has replaced every process that served when it began and still served when its
    /// turn came.
    RollingRestartFinished,
    /// A rolling restart has ended early because a replacement failed. The processes that were still to be replaced
    /// stay. So does the old process of the failed replacement, unless the replacement was ready before it failed: then
    /// the old process has been stopped already.
    RollingRestartAborted {
        /// The worker with the failed replacement.
        id: usize,
    },
    /// A process has reached its maximum lifetime, and its replacement is about to be started.
    Recycling {
        /// The old process.
        process: Process,
    },
    /// The replacement for a process that had reached its maximum lifetime failed. The old process stays for one more
    /// lifetime.
    RecyclingAborted {
        /// The worker with the failed replacement.
        id: usize,
    },
    /// All workers are stopped.
    Stopping {
        /// The number of processes.
        workers: usize,
        /// Whether this is a quick stop: SIGQUIT, and SIGKILL after 2 s.
        quick: bool,
        /// The process that requested the stop by [`Worker::stop_all`](crate::Worker::stop_all), if one did.
        by: Option<Process>,
    },
    /// A second stop was requested. All remaining processes get SIGKILL now. (Threads are abandoned.)
    KillingAll {
        /// The number of processes.
        workers: usize,
    },
    /// A worker could not start, so the service stops.
    StartupFailed {
        /// The process.
        process: Process,
        /// How it exited, or `None` if it still runs and is late.
        exit: Option<Exit>,
    },
    /// The restart limit is reached, so the service stops.
    RestartLimitReached {
        /// The number of restarts so far.
        restarts: u32,
    },
}

impl Event {
    /// Returns the process that this event concerns, if there is one.
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
            Event::KillingAll { workers } => write!(f, "Second stop request, killing {workers} processes"),
            Event::RollingRestartStarted => f.write_str("Rolling restart"),
            Event::RollingRestartFinished => f.write_str("Rolling restart done"),
            Event::RollingRestartAborted { id } => {
                write!(f, "Rolling restart aborted: the replacement of child {id} failed")
            }
            Event::Recycling { process } => write!(f, "{process} has reached its maximum lifetime, replacing it"),
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
