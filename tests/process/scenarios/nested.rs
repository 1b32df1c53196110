//! Workers that call a function that starts workers.

#[cfg(unix)]
use nix::sys::wait::waitpid;
#[cfg(unix)]
use nix::unistd::ForkResult;
use taskfork::{Event, Prefork, Report, RestartPolicy, WorkResult, Worker};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::Signal;
use crate::program::{drain, prepare, run, say, serve, try_fork, up};

const REFUSED: &str = "this process is worker 0 already, and a worker cannot start workers";
const CAUSE: &str = "exited with status 1 after it had called a function that starts workers";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_nested_call_is_a_startup_failure", returns_the_error, |daemon| {
            daemon.ends_with(3);
            assert_eq!(daemon.count(" started, generation"), 1, "{}", daemon.transcript());
            assert!(daemon.said(REFUSED), "{}", daemon.transcript());
            let reason = startup_failure(daemon);
            assert!(daemon.said(&format!("report: failed to start: {reason}")), "{}", daemon.transcript());
            assert_eq!(daemon.count("event: nested_call true"), 1, "{}", daemon.transcript());
        }),
        Scenario::reporting("policy_always_does_not_retry_a_nested_call", ignores_the_error, |daemon| {
            daemon.ends_with(3);
            assert_eq!(daemon.count(" started, generation"), 1, "{}", daemon.transcript());
            assert!(daemon.said("exited normally after it had called a function that starts workers"));
        }),
        Scenario::reporting("an_added_worker_with_a_nested_call_is_removed", added_worker_nests, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTTIN);
            daemon.wait_for("log Scaled to 1 workers");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("log Worker 1 could not start, removing it"), "{}", daemon.transcript());
            assert_eq!(daemon.count(" started, generation"), 2, "{}", daemon.transcript());
        }),
        Scenario::new("fork_processes_does_not_retry_a_nested_call", all_workers_nest, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.count(" started, generation"), 3, "{}", daemon.transcript());
            assert!(daemon.said("worker error this process is worker "), "{}", daemon.transcript());
            let reason = startup_failure(daemon);
            assert!(daemon.said(&format!("parent error failed to start: {reason}")), "{}", daemon.transcript());
        }),
        Scenario::new("a_prefork_in_fork_processes_is_not_retried", prefork_in_fork_processes, is_started_once),
        Scenario::new("fork_processes_in_a_prefork_is_not_retried", fork_processes_in_prefork, is_started_once),
        #[cfg(unix)]
        Scenario::reporting("a_call_in_a_fork_of_a_worker_is_not_nested", fork_of_worker_calls, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.count(" started, generation"), 2, "{}", daemon.transcript());
            assert!(daemon.said(REFUSED) && daemon.said("report: gave up after 1 restarts"), "{}", daemon.transcript());
        })
        .for_processes(),
        #[cfg(unix)]
        Scenario::new("a_call_in_a_fork_of_a_plain_worker_is_not_nested", fork_of_plain_worker_calls, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.count(" started, generation"), 2, "{}", daemon.transcript());
            assert!(daemon.said(REFUSED) && daemon.said("error too many child restarts"), "{}", daemon.transcript());
        }),
        // A spawned worker would make both calls.
        #[cfg(unix)]
        Scenario::new(
            "fork_processes_restarts_workers_after_an_earlier_nested_call",
            fails_after_nested_call,
            |daemon| {
                daemon.ends_with(1);
                assert!(daemon.said("first error failed to start: "), "{}", daemon.transcript());
                assert!(daemon.said("second error too many child restarts (1), giving up"), "{}", daemon.transcript());
            },
        ),
    ]
}

/// Returns the cause of the startup failure that the parent has logged.
fn startup_failure(daemon: &Daemon) -> String {
    let line = daemon.line("log Startup failed: ");
    let (_, reason) = line.split_once("Startup failed: ").expect("a reason");
    assert!(reason.starts_with("child ") && reason.ends_with(CAUSE), "{line}");
    reason.to_owned()
}

fn is_started_once(daemon: &mut Daemon) {
    daemon.end();
    assert_eq!(daemon.count(" started, generation"), 1, "{}", daemon.transcript());
    assert!(daemon.said(REFUSED), "{}", daemon.transcript());
    startup_failure(daemon);
}

fn returns_the_error() -> Report {
    prepare();
    let service = Prefork::new().workers(1).on_event(|event, _| {
        if let Event::StartupFailed { nested_call, .. } = event {
            say(&format!("event: nested_call {nested_call}"));
        }
    });
    run(service, |worker| {
        drop(worker);
        run(Prefork::new().workers(1), |_| Ok(()))?;
        Ok(())
    })
    .expect("a report")
}

fn ignores_the_error() -> Report {
    serve(Prefork::new().workers(1).restart_policy(RestartPolicy::Always), |_| {
        run(Prefork::new().workers(1), |_| Ok(())).expect_err("a refusal");
    })
}

fn added_worker_nests() -> Report {
    prepare();
    let work = |worker: Worker| -> WorkResult {
        if worker.id() > 0 {
            run(Prefork::new().workers(1), |_| Ok(()))?;
        }
        worker.enable_graceful_stop();
        up(worker.id());
        drain(&worker);
        Ok(())
    };
    run(Prefork::new().workers(1), work).expect("a report")
}

fn all_workers_nest() {
    match try_fork(3, 100) {
        Ok(_) => {
            say(&format!("worker error {}", taskfork::fork_processes(1, 0).expect_err("a refusal")));
            std::process::exit(1)
        }
        Err(error) => {
            say(&format!("parent error {error}"));
            std::process::exit(1)
        }
    }
}

fn prefork_in_fork_processes() {
    if let Ok(0) = try_fork(1, 100) {
        say(&Prefork::new().workers(1).start().expect_err("a refusal").to_string());
        std::process::exit(1)
    }
}

fn fork_processes_in_prefork() {
    serve(Prefork::new().workers(1), |worker| {
        drop(worker);
        say(&taskfork::fork_processes(1, 0).expect_err("a refusal").to_string());
        std::process::exit(1)
    });
}

#[cfg(unix)]
fn fork_of_worker_calls() -> Report {
    serve(Prefork::new().workers(1).max_restarts(1), |_| fails_after_a_call_in_a_fork())
}

#[cfg(unix)]
fn fork_of_plain_worker_calls() {
    match try_fork(1, 1) {
        Ok(_) => fails_after_a_call_in_a_fork(),
        Err(error) => crate::program::end_with(&error),
    }
}

/// Forks a process that calls `fork_processes`, waits for its end, and fails.
#[cfg(unix)]
fn fails_after_a_call_in_a_fork() -> ! {
    // SAFETY: this process has no other thread, so the child inherits no lock that another thread holds (fork(2)).
    if let ForkResult::Parent { child } = unsafe { nix::unistd::fork() }.expect("fork") {
        waitpid(child, None).expect("the child's exit");
    } else {
        say(&taskfork::fork_processes(1, 0).expect_err("a refusal").to_string());
    }
    std::process::exit(1)
}

/// Runs two services, one after the other. In the first, the worker makes a nested call. In the second, it only fails.
#[cfg(unix)]
fn fails_after_nested_call() {
    match try_fork(1, 1) {
        Ok(_) => {
            let _ = taskfork::fork_processes(1, 0);
            std::process::exit(1)
        }
        Err(error) => say(&format!("first error {error}")),
    }
    match try_fork(1, 1) {
        Ok(_) => std::process::exit(1),
        Err(error) => say(&format!("second error {error}")),
    }
    std::process::exit(1)
}
