//! Tests for Windows only: 32-bit exit statuses, handles, jobs, named events, and workers without graceful stop.

use std::thread;
use std::time::Duration;

use taskfork::{Prefork, Report, RestartPolicy};

use super::ends::three_idle;
use super::prefork::twice;
use super::stops::three_that_drain;
use crate::Scenario;
use crate::daemon::{Daemon, kill};
use crate::os::{Signal, TERMINATED, event, handles, idle, no_terminal, up_until_signal};
use crate::program::{drain, fork, say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("log_shows_32_bit_exit_statuses_and_fault_names", ends_badly, |daemon| {
            for end in ENDS {
                daemon.wait_for_times(&format!("{end}, restarting"), 1);
            }
            daemon.wait_for_times("up ", ENDS.len());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for (id, end) in ENDS.iter().enumerate() {
                let is_it = |line: &&str| line.starts_with(&format!("log child {id} (pid ")) && line.contains(end);
                assert_eq!(daemon.transcript().lines().filter(is_it).count(), 1, "{end}:\n{}", daemon.transcript());
            }
        })
        .for_processes(),
        Scenario::reporting("report_has_32_bit_exit_statuses", ends_badly_for_good, |daemon| {
            daemon.ends_with(1);
            for (id, status) in [0x1234_5678, -5, 0xC000_0005_u32 as i32, 0xC000_0409_u32 as i32].iter().enumerate() {
                assert!(daemon.said(&format!("worker {id}: Some(Code({status}))")), "{}", daemon.transcript());
            }
        })
        .for_processes(),
        Scenario::new("stop_ends_workers_without_graceful_stop_at_once", three_idle, |daemon| {
            ends_at_once(daemon, Signal::SIGTERM);
        }),
        Scenario::new("quick_stop_ends_workers_without_graceful_stop_at_once", three_idle, |daemon| {
            ends_at_once(daemon, Signal::SIGQUIT);
        }),
        Scenario::new("ctrl_c_itself_ends_workers_without_graceful_stop", three_older_than_a_second, |daemon| {
            let workers = daemon.workers(3);
            daemon.wait_for_times("started, generation 0", 3);
            for worker in &workers {
                kill(worker.pid, Signal::SIGUSR2);
            }
            daemon.wait_for_times("old enough", 3);
            daemon.interrupt();
            daemon.ends_with(0);
            assert_eq!(daemon.count("exited with status 0xC000013A (control-C)"), 3, "{}", daemon.transcript());
            assert!(!daemon.said("restarting"), "{}", daemon.transcript());
        })
        .needs(no_terminal),
        Scenario::new("workers_end_without_draining_when_the_parent_is_killed", three_that_drain, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert!(!daemon.said("drained"), "{}", daemon.transcript());
        }),
        Scenario::new("suspended_worker_ends_when_the_parent_is_killed", three_that_drain, |daemon| {
            kill(daemon.workers(3)[1].pid, Signal::SIGSTOP);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
        }),
        Scenario::reporting("worker_before_its_call_ends_with_its_parent", waits_before_the_call, |daemon| {
            daemon.wait_for("about to call");
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert!(!daemon.said("up 0"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("open_event_handle_does_not_block_the_next_service", twice, |daemon| {
            daemon.worker();
            let kept = event(daemon.pid(), Signal::SIGTERM);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("first: stopped");
            daemon.worker();
            drop(kept);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped"));
        }),
        Scenario::new("repeated_requests_before_handling_count_once", three_that_drain, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGSTOP);
            daemon.signal(Signal::SIGTTIN);
            daemon.signal(Signal::SIGTTIN);
            daemon.signal(Signal::SIGCONT);
            assert_eq!(daemon.worker().id, 3);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("log Scaled to "), 1, "{}", daemon.transcript());
        }),
        Scenario::reporting("workers_beyond_the_wait_limit_are_all_supervised", many, |daemon| {
            let workers = daemon.workers(MANY);
            assert!(workers.iter().map(|up| up.id).eq(0..MANY), "{workers:?}");
            for worker in [workers[0], workers[64], workers[MANY - 1]] {
                daemon.send(worker, Signal::SIGKILL);
                let line = daemon.wait_for("restarting");
                assert!(line.ends_with(&format!("{worker} {}, restarting", daemon.killed())), "{line}");
                assert_eq!(daemon.worker().id, worker.id);
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained "), MANY, "{}", daemon.transcript());
        }),
        Scenario::new("a_program_with_threads_may_call_fork_processes", with_threads, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGKILL);
            assert_eq!(daemon.worker().id, 0);
        }),
        Scenario::reporting("finished_services_leak_no_handles", runs_services_in_turn, |daemon| {
            daemon.ends_with(0);
            let line = daemon.line("handles: ");
            let mut counts = line.split(' ').skip(1).map(|count| count.parse::<usize>().expect("a number"));
            let mut next = || counts.next().expect("a count");
            let first = next();
            let last = next();
            assert!(last < first + SERVICES, "each service leaked a handle: {line}");
        }),
    ]
}

fn ends_at_once(daemon: &mut Daemon, signal: Signal) {
    daemon.workers(3);
    daemon.signal(signal);
    daemon.ends_with(0);
    assert_eq!(daemon.count(TERMINATED), 3, "{}", daemon.transcript());
    assert!(!daemon.said("did not stop in time"), "{}", daemon.transcript());
}

/// The log's text for the exit of each worker, by worker id.
const ENDS: [&str; 4] = [
    "exited with status 305419896",
    "exited with status 0xFFFFFFFB",
    "exited with status 0xC0000005 (access violation)",
    "exited with status 0xC0000409 (abort)",
];

fn end_badly(id: usize) -> ! {
    match id {
        0 => std::process::exit(0x1234_5678),
        1 => std::process::exit(-5),
        2 => {
            // SAFETY: this is not safe, but intended. Nothing is mapped at address 8, and the scenario needs an access
            // violation.
            unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(0) };
            unreachable!("address 8 is mapped");
        }
        _ => std::process::abort(),
    }
}

fn ends_badly() -> Report {
    serve(Prefork::new().workers(ENDS.len()), |worker| {
        if worker.generation() == 0 {
            end_badly(worker.id());
        }
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

fn ends_badly_for_good() -> Report {
    let report =
        serve(Prefork::new().workers(ENDS.len()).restart_policy(RestartPolicy::Never), |worker| end_badly(worker.id()));
    for worker in report.workers() {
        say(&format!("worker {}: {:?}", worker.id(), worker.exit()));
    }
    report
}

fn waits_before_the_call() -> Report {
    if std::env::var_os("TASKFORK_WORKER").is_some() {
        say("about to call");
        idle();
    }
    serve(Prefork::new().workers(1), |worker| up(worker.id()))
}

/// More than twice the 64 handles that one call of WaitForMultipleObjects takes.
const MANY: usize = 130;

fn many() -> Report {
    serve(Prefork::new().workers(MANY), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

fn with_threads() {
    for _ in 0..3 {
        thread::spawn(|| idle());
    }
    up(fork(1, 100));
    idle();
}

const SERVICES: usize = 20;

/// Counts the handles only after the first service, because it may open handles that stay open until the process exits.
fn runs_services_in_turn() -> Report {
    let service = || serve(Prefork::new().workers(2), |worker| up(worker.id()));
    let report = service();
    let first = handles();
    (0..SERVICES).for_each(|_| drop(service()));
    say(&format!("handles: {first} {}", handles()));
    report
}

/// The workers are older than 1 s. A younger process may not be attached to the console yet, and then the parent ends
/// the process itself.
fn three_older_than_a_second() {
    let id = fork(3, 100);
    up_until_signal(id, Signal::SIGUSR2);
    thread::sleep(Duration::from_secs(1));
    say("old enough");
    idle();
}
