//! The log lines of events.

use std::fmt;
use std::time::Duration;

use super::{Event, Subject};
use crate::error::Error;
use crate::exit::{Exit, Process};
use crate::report::Reason;

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_pool(f, self)?;
        match self {
            Event::Listening { address, .. } => write!(f, "Listening on {address}"),
            Event::ListenerShutDown { address, restored, .. } => {
                let next = if *restored { "it listens again" } else { "restart the service to use it" };
                write!(f, "The listener {address} was shut down, probably by a worker; {next}")
            }
            Event::Starting { workers, .. } => write!(f, "Starting {workers} processes"),
            Event::Started { process } => write!(f, "{process} started, generation {}", process.generation),
            Event::Ready { process } => write!(f, "{process} is ready"),
            Event::Failed { process, message } => write!(f, "{process}: {message}"),
            Event::Stale { process } => write!(f, "{process} is stale"),
            Event::Returned { process } if process.is_thread() => write!(f, "{process} was stale, and has returned"),
            Event::Returned { process } => write!(f, "{process} was stale, and has exited"),
            Event::Exited { .. } | Event::Restarting { .. } => write_exit(f, self),
            Event::StartFailed { error, retry, .. } => write_refusal(f, error, *retry),
            Event::HeartbeatTimedOut { process } => {
                write!(f, "{process} has sent no heartbeat in time{}", unless_thread(*process, ", aborting it"))
            }
            Event::ReadyTimedOut { process } => write!(f, "{process} is not ready in time"),
            Event::StopTimedOut { process } => {
                write!(f, "{process} did not stop in time{}", unless_thread(*process, ", killing it"))
            }
            Event::KillTimedOut { process } => {
                write!(f, "{process} did not exit within 10 s of SIGKILL, abandoning it")
            }
            Event::Scaled { workers, .. } => write!(f, "Scaled to {workers} workers"),
            Event::ScalingLimited { asked, limit, .. } => write_scaling_limit(f, *asked, *limit),
            Event::ScalingAborted { id, .. } => write!(f, "Worker {id} could not start, removing it"),
            Event::KillingAll { workers, .. } => write!(f, "Second stop request, killing {workers} processes"),
            Event::RollingRestartStarted { .. } => f.write_str("Rolling restart"),
            Event::RollingRestartFinished { .. } => f.write_str("Rolling restart done"),
            Event::RollingRestartAborted { id, .. } => {
                write!(f, "Rolling restart aborted: the replacement of worker {id} failed")
            }
            Event::Recycling { process, reason } => write!(f, "{process} {reason}, replacing it"),
            Event::RecyclingAborted { id, .. } => write!(f, "The replacement of worker {id} failed, the old one stays"),
            Event::RecyclingRefused { id, .. } => {
                write!(f, "Worker {id} is not replaced, because there is no such worker")
            }
            Event::Stopping { workers, quick, by, .. } => write_stop(f, *workers, *quick, *by),
            Event::StartupFailed { process, exit, failures, nested_call } => {
                f.write_str("Startup failed: ")?;
                write_startup_failure(f, *process, *exit, *failures, *nested_call)
            }
            Event::RestartLimitReached { restarts, .. } => write!(f, "Too many child restarts ({restarts}), giving up"),
            Event::PoolEnded { reason, success, .. } => write_end(f, reason, *success),
            Event::RequestIgnored { pool, has_ended } => write_ignored(f, pool, *has_ended),
            Event::UpgradeStarted => f.write_str("Upgrading: trying the program on disk"),
            Event::UpgradeAborted { reason } => write!(f, "Upgrade aborted: {reason}"),
            Event::Adopted { processes, .. } => {
                write!(f, "The new program supervises {processes} processes of the old one")
            }
            Event::UpgradeFinished => f.write_str("Upgrade done"),
        }
    }
}

/// Writes the name of the event's pool as the beginning of a line. Writes nothing if the pool has no name.
fn write_pool(f: &mut fmt::Formatter<'_>, event: &Event) -> fmt::Result {
    match (event, event.subject()) {
        // The line names the pool already, because it names a process of the pool.
        (_, Subject::Process(_)) => Ok(()),
        // The error, or the text about the request, names the pool.
        (Event::StartFailed { .. } | Event::RequestIgnored { .. }, _) => Ok(()),
        (_, Subject::Pool("")) => Ok(()),
        (_, Subject::Pool(pool)) => write!(f, "{pool}: "),
    }
}

/// Writes how a process has exited, and whether its worker is restarted.
fn write_exit(f: &mut fmt::Formatter<'_>, event: &Event) -> fmt::Result {
    match event {
        Event::Exited { process, exit, out_of_memory, reached_call, work_in_progress, .. } => {
            let work = WorkInProgress(*work_in_progress);
            write!(f, "{process} {exit}{out_of_memory}{}{work}", suffix(*reached_call))
        }
        Event::Restarting { process, exit, out_of_memory, reached_call, work_in_progress, reason, delay, .. } => {
            let cause = reason.phrase();
            let work = WorkInProgress(*work_in_progress);
            write!(f, "{process} {exit}{out_of_memory}{}{cause}{work}, restarting", suffix(*reached_call))?;
            if delay.is_zero() { Ok(()) } else { write!(f, " in {} ms", delay.as_millis()) }
        }
        _ => Ok(()),
    }
}

/// Returns what the parent does next to a process. The parent cannot do this to a thread.
fn unless_thread(process: Process, next: &str) -> &str {
    if process.is_thread() { "" } else { next }
}

fn write_refusal(f: &mut fmt::Formatter<'_>, error: &Error, retry: Option<Duration>) -> fmt::Result {
    write!(f, "{error:?}")?;
    retry.map_or(Ok(()), |delay| write!(f, ", trying again in {} ms", delay.as_millis()))
}

fn write_end(f: &mut fmt::Formatter<'_>, reason: &Reason, success: bool) -> fmt::Result {
    match (reason.is_failure(), success) {
        // The reason is the failure of another pool, which has stopped the service.
        (true, true) => write!(f, "The pool has ended, because the service stops: {reason}"),
        (false, false) => write!(f, "The pool has ended: {reason}, but a worker has failed"),
        _ => write!(f, "The pool has ended: {reason}"),
    }
}

fn write_ignored(f: &mut fmt::Formatter<'_>, pool: &str, has_ended: bool) -> fmt::Result {
    let problem = if has_ended { "which is stopping or has ended" } else { "which does not exist" };
    write!(f, "A request has no effect: it is for the pool {pool:?}, {problem}")
}

fn write_stop(f: &mut fmt::Formatter<'_>, workers: usize, quick: bool, by: Option<Process>) -> fmt::Result {
    write!(f, "Stopping {workers} processes")?;
    match by {
        Some(process) => write!(f, ", as {process} requested"),
        None => f.write_str(if quick { " quickly" } else { "" }),
    }
}

fn write_scaling_limit(f: &mut fmt::Formatter<'_>, asked: usize, limit: usize) -> fmt::Result {
    write!(f, "Not scaled to {asked} workers, because ")?;
    if asked > limit { write!(f, "at most {limit} are allowed") } else { f.write_str("one worker always stays") }
}

/// Writes the cause of a startup failure.
pub(crate) fn write_startup_failure(
    f: &mut fmt::Formatter<'_>,
    process: Process,
    exit: Option<Exit>,
    failures: Option<u32>,
    nested_call: bool,
) -> fmt::Result {
    match exit {
        Some(exit) if nested_call => write!(f, "{process} {exit} after it had called a function that starts workers")?,
        Some(exit) if exit.is_success() => write!(f, "{process} {exit} before it was ready")?,
        Some(exit) => write!(f, "{process} {exit}")?,
        None => write!(f, "{process} was not ready in time")?,
    }
    failures.map_or(Ok(()), |failures| write!(f, ", {failures} failures in a row"))
}

/// The number of units of work that an exited process had in progress. `Display` writes nothing if there were none.
struct WorkInProgress(u64);

impl fmt::Display for WorkInProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" with 1 unit of work in progress"),
            units => write!(f, " with {units} units of work in progress"),
        }
    }
}

/// Writes a number of bytes, rounded down to MiB, or to KiB if it is less than 1 MiB.
pub(super) fn write_size(f: &mut fmt::Formatter<'_>, bytes: u64) -> fmt::Result {
    if bytes < 1 << 20 { write!(f, "{} KiB", bytes >> 10) } else { write!(f, "{} MiB", bytes >> 20) }
}

/// Returns the end of the phrase that describes an exit.
fn suffix(reached_call: bool) -> &'static str {
    if reached_call { "" } else { " before it reached the call" }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::{RecycleReason, RestartReason};
    use crate::exit::OutOfMemory;

    #[test]
    fn lines_name_the_pool_once() {
        let process = Process { pool: "jobs", id: 2, generation: 0, pid: Some(71) };
        let thread = Process { pid: None, ..process };
        let error = Error::unfit("user", "no").in_pool("jobs");
        let reason = Reason::Finished;
        for (event, line) in [
            (Event::Ready { process }, "jobs child 2 (pid 71) is ready"),
            (Event::Ready { process: thread }, "jobs child 2 (thread jobs-2.0) is ready"),
            (Event::Scaled { pool: "jobs", workers: 3 }, "jobs: Scaled to 3 workers"),
            (
                Event::Adopted { pool: "jobs", processes: 3 },
                "jobs: The new program supervises 3 processes of the old one",
            ),
            (Event::UpgradeAborted { reason: "no".into() }, "Upgrade aborted: no"),
            (Event::StartFailed { pool: "jobs", error, retry: None }, "jobs: user: no"),
            (Event::PoolEnded { pool: "jobs", reason, success: true }, "jobs: The pool has ended: finished"),
            (
                Event::Stopping { pool: "jobs", workers: 2, quick: false, by: Some(process) },
                "jobs: Stopping 2 processes, as jobs child 2 (pid 71) requested",
            ),
            (
                Event::Stopping { pool: "web", workers: 2, quick: false, by: Some(process) },
                "web: Stopping 2 processes, as jobs child 2 (pid 71) requested",
            ),
            (
                Event::RequestIgnored { pool: "mail".into(), has_ended: false },
                "A request has no effect: it is for the pool \"mail\", which does not exist",
            ),
        ] {
            assert_eq!(event.to_string(), line);
        }
    }

    #[test]
    fn the_end_of_a_pool_has_its_cause() {
        let process = Process { pool: "web", id: 0, generation: 1, pid: Some(71) };
        let failure = Reason::RestartLimitReached { process, exit: Exit::Code(1), restarts: 1 };
        let line =
            |pool, reason: &Reason, success| Event::PoolEnded { pool, reason: reason.clone(), success }.to_string();
        let cause = "gave up after 1 restarts: web child 0 (pid 71) exited with status 1";
        assert_eq!(line("web", &failure, false), format!("web: The pool has ended: {cause}"));
        let of_other = line("jobs", &failure, true);
        assert_eq!(of_other, format!("jobs: The pool has ended, because the service stops: {cause}"));
        let failed = line("jobs", &Reason::Finished, false);
        assert_eq!(failed, "jobs: The pool has ended: finished, but a worker has failed");
    }

    #[test]
    fn lines_of_exits_count_the_work_in_progress() {
        let process = Process { pool: "", id: 2, generation: 0, pid: Some(71) };
        let line = |work_in_progress| {
            let restarting = Event::Restarting {
                process,
                exit: Exit::Signal(9),
                out_of_memory: OutOfMemory::No,
                reached_call: true,
                work_in_progress,
                reason: RestartReason::Failure,
                delay: Duration::from_millis(7),
                left: None,
            };
            restarting.to_string()
        };
        assert_eq!(line(0), "child 2 (pid 71) killed by signal 9, restarting in 7 ms");
        assert_eq!(line(1), "child 2 (pid 71) killed by signal 9 with 1 unit of work in progress, restarting in 7 ms");
        assert_eq!(line(3), "child 2 (pid 71) killed by signal 9 with 3 units of work in progress, restarting in 7 ms");
    }

    #[test]
    fn lines_of_memory_are_in_kib_below_one_mib() {
        let line = |bytes| RecycleReason::Memory { bytes }.to_string();
        assert_eq!(line((1 << 20) - 1), "uses 1023 KiB of private memory");
        assert_eq!(line(1 << 20), "uses 1 MiB of private memory");
    }

    #[test]
    fn lines_of_a_pool_without_a_name_name_no_pool() {
        let process = Process { pool: "", id: 2, generation: 0, pid: Some(71) };
        let thread = Process { pid: None, ..process };
        assert_eq!(Event::Ready { process }.to_string(), "child 2 (pid 71) is ready");
        assert_eq!(Event::Ready { process: thread }.to_string(), "child 2 (thread worker-2.0) is ready");
        assert_eq!(Event::Scaled { pool: "", workers: 3 }.to_string(), "Scaled to 3 workers");
    }
}
