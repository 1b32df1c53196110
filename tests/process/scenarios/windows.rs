//! What only Windows has: statuses of 32 bits, handles, jobs, events with names, and workers that do not listen.

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
        Scenario::reporting(
            "an_exit_status_has_all_its_32_bits_and_a_fault_is_told_by_its_name",
            ends_badly,
            |daemon| {
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
            },
        )
        .for_processes(),
        Scenario::reporting("a_report_has_all_32_bits_of_a_status", ends_badly_for_good, |daemon| {
            daemon.ends_with(1);
            for (id, status) in [0x1234_5678, -5, 0xC000_0005_u32 as i32, 0xC000_0409_u32 as i32].iter().enumerate() {
                assert!(daemon.said(&format!("worker {id}: Some(Code({status}))")), "{}", daemon.transcript());
            }
        })
        .for_processes(),
        Scenario::new("who_does_not_listen_is_ended_at_once_when_asked_to_stop", three_idle, |daemon| {
            ends_at_once(daemon, Signal::SIGTERM);
        }),
        Scenario::new("who_does_not_listen_is_ended_at_once_by_a_quick_stop", three_idle, |daemon| {
            ends_at_once(daemon, Signal::SIGQUIT);
        }),
        Scenario::new("who_does_not_listen_ends_of_the_ctrl_c_itself", three_that_grow_up, |daemon| {
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
        Scenario::new("nobody_drains_when_the_parent_is_killed_but_all_are_gone", three_that_drain, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert!(!daemon.said("drained"), "{}", daemon.transcript());
        }),
        Scenario::new("who_is_stopped_is_gone_as_well_when_the_parent_is_killed", three_that_drain, |daemon| {
            kill(daemon.workers(3)[1].pid, Signal::SIGSTOP);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
        }),
        Scenario::reporting("a_worker_whose_parent_ends_before_the_call_ends_there", waits_before_the_call, |daemon| {
            daemon.wait_for("about to call");
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert!(!daemon.said("up 0"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("an_operator_who_keeps_an_event_open_does_not_hinder_the_next_service", twice, |daemon| {
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
        Scenario::new("a_request_that_comes_twice_before_it_is_taken_counts_once", three_that_drain, |daemon| {
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
        Scenario::reporting("more_workers_than_one_thread_can_wait_for_are_all_watched", many, |daemon| {
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
        Scenario::reporting("services_that_are_over_have_left_no_handles_open", one_after_the_other, |daemon| {
            daemon.ends_with(0);
            let line = daemon.line("handles: ");
            let mut counts = line.split(' ').skip(1).map(|count| count.parse::<usize>().expect("a number"));
            let mut next = || counts.next().expect("a count");
            let (first, last) = (next(), next());
            assert!(last < first + SERVICES, "at least one each: {line}");
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

/// By id.
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
            // SAFETY: none; nothing is there, and this is about what happens then.
            unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(0) };
            unreachable!("there is something at 8");
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

/// More than twice as many as WaitForMultipleObjects takes.
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

/// What the first one opens for the rest of the process, is open before the others.
fn one_after_the_other() -> Report {
    let service = || serve(Prefork::new().workers(2), |worker| up(worker.id()));
    let report = service();
    let first = handles();
    (0..SERVICES).for_each(|_| drop(service()));
    say(&format!("handles: {first} {}", handles()));
    report
}

/// Who is younger than a second may not have had a console yet, and is ended by the parent.
fn three_that_grow_up() {
    let id = fork(3, 100);
    up_until_signal(id, Signal::SIGUSR2);
    thread::sleep(Duration::from_secs(1));
    say("old enough");
    idle();
}
