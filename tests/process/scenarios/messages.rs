//! The messages of a service on standard error if no logger is installed. Linux only.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Termination;

use log::LevelFilter;
use taskfork::{Event, Prefork, Reason, Report, RestartPolicy, Supervisor};

use super::not_root;
use super::privileges::{CAP_SETUID, drop_capability};
use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Signal, ignore, watch};
use crate::program::{EVER, drain, own_backend, prepare, run, run_pools, say, up};

/// The beginning of each line that the crate writes to standard error.
const OWN: &str = "taskfork: ";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting(
            "without_a_logger_a_failed_startup_is_printed_once",
            || fails(1),
            |daemon| {
                daemon.ends_with(3);
                let lines = own_lines(daemon);
                let worker = if lines[0].starts_with("child") { "child 0 (thread worker-0.0)" } else { "worker 0" };
                assert_eq!(lines[0], format!("{worker}: cannot connect: refused"), "{}", daemon.transcript());
                assert!(lines[1].starts_with("failed to start: child 0 ("), "{}", daemon.transcript());
                assert!(lines[1].ends_with(") exited with status 1"), "{}", daemon.transcript());
                assert_eq!(lines.len(), 2, "{}", daemon.transcript());
            },
        ),
        Scenario::reporting("without_a_logger_a_nested_call_is_printed", nests, |daemon| {
            daemon.ends_with(3);
            let lines = own_lines(daemon);
            assert!(lines[0].ends_with(": this process is worker 0 already, and a worker cannot start workers"));
            assert!(lines[1].starts_with("failed to start: child 0 ("), "{}", daemon.transcript());
            assert!(lines[1].ends_with(") exited with status 1 after it had called a function that starts workers"));
            assert_eq!(lines.len(), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("a_logger_for_other_crates_is_no_logger", logs_other_crates, |daemon| {
            daemon.ends_with(3);
            assert_eq!(own_lines(daemon).len(), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("with_a_logger_nothing_is_printed_twice", logs, |daemon| {
            daemon.ends_with(3);
            assert_eq!(daemon.count("cannot connect: refused"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("log Startup failed: child 0"), 1, "{}", daemon.transcript());
            assert!(own_lines(daemon).is_empty(), "{}", daemon.transcript());
        }),
        Scenario::reporting("without_a_logger_the_restart_limit_is_printed", gives_up, |daemon| {
            daemon.ends_with(1);
            let lines = own_lines(daemon);
            assert!(lines[2].starts_with("gave up after 1 restarts: child 0 ("), "{}", daemon.transcript());
            assert_eq!(lines.len(), 3, "each worker prints its error, and the parent the reason");
        }),
        Scenario::reporting("without_a_logger_failed_workers_are_printed_at_the_end", finishes, |daemon| {
            daemon.ends_with(1);
            let lines = own_lines(daemon);
            let end = "finished, but worker 0 exited with status 1, and 1 more failed";
            assert_eq!(lines.last().map(String::as_str), Some(end), "{}", daemon.transcript());
        }),
        Scenario::reporting("without_a_logger_a_failed_optional_pool_is_printed", optional_jobs_fail, |daemon| {
            let cause = "gave up after 0 restarts: jobs child 0 (";
            daemon.wait_for_times(&format!("{OWN}jobs: The pool has ended: {cause}"), 1);
            daemon.wait_for_times("up 0 ", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(own_lines(daemon).len(), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("without_a_logger_the_failure_of_a_pool_is_printed_once", jobs_fail, |daemon| {
            daemon.ends_with(1);
            let lines = own_lines(daemon);
            assert!(lines[1].starts_with("gave up after 0 restarts: jobs child 0 ("), "{}", daemon.transcript());
            assert_eq!(lines.len(), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("a_successful_service_prints_nothing", succeeds, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(own_lines(daemon), [""; 0], "{}", daemon.transcript());
        }),
        Scenario::reporting("a_failed_change_of_the_user_is_printed", cannot_change_user, |daemon| {
            daemon.ends_with(3);
            let lines = own_lines(daemon);
            let error = "cannot start worker 0: setresuid failed: Operation not permitted (os error 1)";
            assert_eq!(lines[0], error, "{}", daemon.transcript());
            assert_eq!(lines.len(), 2, "{}", daemon.transcript());
        })
        .needs(not_root)
        .forking(),
        Scenario::new("a_closed_standard_error_changes_no_exit_status", closes_standard_error, |daemon| {
            daemon.ends_with(3);
        }),
        Scenario::new("an_error_that_main_returns_is_printed_once", returns_errors, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("cannot listen on 192.0.2.1:80"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("too many child restarts (0), giving up: child 0 ("), 1, "{}", daemon.transcript());
            assert!(own_lines(daemon).is_empty(), "{}", daemon.transcript());
        }),
    ]
}

/// Returns the lines that the crate itself has written to standard error, without their beginning.
fn own_lines(daemon: &Daemon) -> Vec<String> {
    let transcript = daemon.transcript();
    transcript.lines().filter_map(|line| line.strip_prefix(OWN)).map(str::to_owned).collect()
}

fn serve_failing(service: Prefork) -> Report {
    watch(60);
    run(service, |_| {
        watch(60);
        Err("cannot connect: refused".into())
    })
    .expect("a report")
}

fn fails(workers: usize) -> Report {
    serve_failing(Prefork::new().workers(workers).ready_timeout(EVER))
}

fn nests() -> Report {
    watch(60);
    run(Prefork::new().workers(1), |_| {
        watch(60);
        run(Prefork::new().workers(1), |_| Ok(()))?;
        Ok(())
    })
    .expect("a report")
}

fn logs_other_crates() -> Report {
    env_logger::Builder::new().filter_module("another_crate", LevelFilter::Trace).init();
    fails(1)
}

fn logs() -> Report {
    prepare();
    fails(1)
}

fn gives_up() -> Report {
    serve_failing(Prefork::new().workers(1).max_restarts(1))
}

fn finishes() -> Report {
    serve_failing(Prefork::new().workers(2).restart_policy(RestartPolicy::Never))
}

fn optional_jobs_fail() -> Report {
    serve_with_failing(Prefork::new().optional())
}

fn jobs_fail() -> Report {
    serve_with_failing(Prefork::new())
}

/// Runs the pool `web`, and the pool `jobs`, which gives up at once.
fn serve_with_failing(jobs: Prefork) -> Report {
    watch(60);
    let web = own_backend(Prefork::new().workers(1));
    let jobs = own_backend(jobs.workers(1).max_restarts(0));
    run_pools(Supervisor::new().pool("web", web).pool("jobs", jobs), |worker| {
        watch(60);
        if worker.pool() == "jobs" {
            return Err("cannot connect: refused".into());
        }
        worker.enable_graceful_stop();
        up(worker.id());
        drain(&worker);
        Ok(())
    })
}

fn succeeds() -> Report {
    watch(60);
    run(Prefork::new().workers(1), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        drain(&worker);
        Ok(())
    })
    .expect("a report")
}

fn cannot_change_user() -> Report {
    watch(60);
    let service = Prefork::new().workers(1).user("nobody").ready_timeout(EVER).on_event(|event, _| {
        if matches!(event, Event::Starting { .. }) {
            drop_capability(CAP_SETUID);
        }
    });
    service.run(|_| Ok(())).expect("a report")
}

/// Ends with status 3 if the parent returns a report of the failed startup, although each write to standard error
/// fails.
fn closes_standard_error() {
    watch(60);
    // As in every Rust program, unless it changes this.
    ignore(Signal::SIGPIPE);
    let (_, closed) = UnixStream::pair().expect("a pipe");
    // SAFETY: dup2(2) takes integers. Standard error stays open, and refers to a pipe without a reader.
    assert_eq!(unsafe { libc::dup2(closed.as_raw_fd(), 2) }, 2);
    let report = fails(1);
    std::process::exit(if matches!(report.reason(), Reason::StartupFailed { .. }) { 3 } else { 1 });
}

/// Treats errors as Rust does if `main` returns them.
fn returns_errors() {
    watch(60);
    let refused = Prefork::new().workers(1).listen("192.0.2.1:80").run(|_| Ok(()));
    let _ = Termination::report(refused.map(drop));
    let ended = taskfork::fork_processes(1, 0);
    if ended.is_ok() {
        std::process::exit(7);
    }
    let _ = Termination::report(ended.map(drop));
    say("the end");
}
