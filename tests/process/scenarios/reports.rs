//! Tests of `on_event` and `Report`: events while the service runs, and the report when it has ended.

use std::sync::Once;

use taskfork::{Event, Handle, Prefork, Process, Report, Worker};

use crate::Scenario;
use crate::os::{Gate, Signal, wait_for_end};
use crate::program::{drain, fail, on_log, say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("events_carry_worker_pid_generation_and_exit", prints_events, |daemon| {
            let old = daemon.workers(2);
            daemon.send(old[1], Signal::SIGKILL);
            let new = daemon.worker();
            daemon.signal(Signal::SIGTTIN);
            let third = daemon.worker();
            daemon.signal(Signal::SIGHUP);
            daemon.workers(3);
            daemon.wait_for_times("event Reloaded", 1);
            assert!(daemon.said_before("log Starting 2 processes", "event Starting 2"), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let killed = daemon.killed_exit();
            for event in [
                "event Starting 2".to_owned(),
                format!("event Started 0/0 {}", old[0].event_pid()),
                format!("event Exited 1/0 {} {killed} asked false restarting true", old[1].event_pid()),
                format!("event Restarting 1/0 {} {killed} in 0ns, 6 left", old[1].event_pid()),
                format!("event Started 1/1 {}", new.event_pid()),
                "event Scaled 3".to_owned(),
                format!("event Started 2/0 {}", third.event_pid()),
                "event Reloading".to_owned(),
                format!("event Exited 0/0 {} Code(0) asked true restarting false", old[0].event_pid()),
                format!("event Exited 1/1 {} Code(0) asked true restarting false", new.event_pid()),
                "event Stopping 3 quick false by None".to_owned(),
            ] {
                assert_eq!(daemon.count(&event), 1, "{event}:\n{}", daemon.transcript());
            }
            assert_eq!(daemon.count("event Ready "), 7, "{}", daemon.transcript());
            assert_eq!(daemon.count("event Exited "), 7);
            assert!(daemon.said("in all: 1 restarts, success true, stopped"));
            assert!(daemon.said("worker 0: 2 processes, 0 restarts, Some(Code(0))"));
            assert!(daemon.said("worker 1: 3 processes, 1 restarts, Some(Code(0))"));
            assert!(daemon.said("worker 2: 2 processes, 0 restarts, Some(Code(0))"));
        }),
        Scenario::reporting("event_follows_its_log_line_with_the_same_text", prints_events, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let transcript = daemon.transcript();
            let lines: Vec<&str> = transcript.lines().filter(|line| line.starts_with("log ")).collect();
            let events: Vec<&str> = transcript.lines().filter_map(|line| line.strip_prefix("event log ")).collect();
            assert!(lines.iter().map(|line| &line[4..]).eq(events), "{transcript}");
        }),
        Scenario::reporting("report_names_the_worker_that_exceeded_max_restarts", gives_up, |daemon| {
            daemon.ends_with(1);
            assert!(daemon.said("report: gave up after 2 restarts: child 1 ("), "{}", daemon.transcript());
            assert!(daemon.said("in all: 2 restarts, success false, gave up"));
            assert!(daemon.said("worker 0: 1 processes, 0 restarts, Some(Code(0))"));
            assert!(daemon.said(&format!("worker 1: 3 processes, 2 restarts, Some({})", daemon.failed_exit(9))));
        }),
        Scenario::reporting(
            "ready_sent_before_an_unnoticed_exit_counts",
            exits_while_the_parent_is_blocked,
            |daemon| {
                daemon.ends_with(1);
                assert!(
                    daemon.said("report: gave up after 0 restarts"),
                    "the parent did not count it as ready:\n{}",
                    daemon.transcript()
                );
            },
        )
        .for_processes(),
        Scenario::reporting("output_buffered_by_on_event_is_printed_once", prints_in_on_event, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("from the parent"), 1, "{}", daemon.transcript());
        }),
        Scenario::reporting("output_buffered_by_a_logger_is_printed_once", prints_in_logger, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("from the parent"), 1, "{}", daemon.transcript());
        }),
        Scenario::new("panic_in_on_event_leaves_no_worker_behind", panics_in_on_event, |daemon| {
            daemon.ends_with(101);
            assert_eq!(daemon.count("up "), 2);
            assert!(daemon.said("a panic in on_event"), "{}", daemon.transcript());
        })
        .for_threads_too(),
    ]
}

fn print_event(event: &Event, _: &Handle) {
    let one = |process: &Process| format!("{}/{} {}", process.id, process.generation, process.pid.unwrap_or(0));
    match event {
        Event::Starting { workers, .. } => say(&format!("event Starting {workers}")),
        Event::Started { process } => say(&format!("event Started {}", one(process))),
        Event::Ready { process } => say(&format!("event Ready {}", one(process))),
        Event::Exited { process, exit, asked, restarting, .. } => {
            say(&format!("event Exited {} {exit:?} asked {asked} restarting {restarting}", one(process)));
        }
        Event::Restarting { process, exit, delay, left, .. } => {
            say(&format!("event Restarting {} {exit:?} in {delay:?}, {} left", one(process), left.expect("a limit")));
        }
        Event::Failed { process, message } => say(&format!("event Failed {} {message}", one(process))),
        Event::Scaled { workers, .. } => say(&format!("event Scaled {workers}")),
        Event::RollingRestartStarted { .. } => say("event Reloading"),
        Event::RollingRestartFinished { .. } => say("event Reloaded"),
        Event::Stopping { workers, quick, by, .. } => say(&format!("event Stopping {workers} quick {quick} by {by:?}")),
        other => panic!("{other:?}"),
    }
    if !matches!(event, Event::Exited { restarting: true, .. }) {
        say(&format!("event log {event}"));
    }
}

fn serve_and_drain(worker: &Worker) {
    assert!(!worker.stop_requested());
    worker.ready();
    up(worker.id());
    drain(worker);
}

fn print_report(report: Report) -> Report {
    let restarts = report.restarts();
    let success = report.is_success();
    let reason = report.reason();
    say(&format!("in all: {restarts} restarts, success {success}, {reason}"));
    for worker in report.workers() {
        let id = worker.id();
        let processes = worker.processes();
        let restarts = worker.restarts();
        say(&format!("worker {id}: {processes} processes, {restarts} restarts, {:?}", worker.exit()));
    }
    report
}

fn prints_events() -> Report {
    let patience = std::time::Duration::from_secs(600);
    let service = Prefork::new().workers(2).max_restarts(7).ready_timeout(patience).on_event(print_event);
    print_report(serve(service, |worker| serve_and_drain(&worker)))
}

fn gives_up() -> Report {
    let gate = Gate::new();
    print_report(serve(Prefork::new().workers(2).max_restarts(2), move |worker| {
        assert!(!worker.stop_requested());
        if worker.id() == 1 {
            gate.pass();
            fail(9);
        }
        gate.open(3);
        serve_and_drain(&worker);
    }))
}

/// The event handler blocks the parent until the worker is dead.
fn exits_while_the_parent_is_blocked() -> Report {
    let service = Prefork::new().workers(1).max_restarts(0).ready_timeout(std::time::Duration::from_secs(600));
    let service = service.on_event(|event, _| {
        if let Event::Started { process } = event {
            wait_for_end(process.pid.unwrap_or(0));
        }
    });
    serve(service, |worker| {
        worker.ready();
        std::process::exit(7)
    })
}

/// The event handler prints between two forks, without a newline, so that the text stays in the buffer of standard
/// output. Logging is off, so that no log line comes between the printed texts.
fn prints_in_on_event() -> Report {
    let service = Prefork::new().workers(3).on_event(|event, _| {
        log::set_max_level(log::LevelFilter::Off);
        if matches!(event, Event::Started { process } if process.id == 0) {
            print!("from the parent ");
        }
    });
    serve(service, |_| println!())
}

/// The logger prints between two forks, without a newline, so that the text stays in the buffer of standard output.
fn prints_in_logger() -> Report {
    on_log("started, generation 0", || {
        static FIRST: Once = Once::new();
        FIRST.call_once(|| print!("from the parent "));
    });
    serve(Prefork::new().workers(3), |_| println!())
}

fn panics_in_on_event() {
    let mut started = 0;
    let service = Prefork::new().workers(2).on_event(move |event, _| {
        started += usize::from(matches!(event, Event::Ready { .. }));
        assert!(started < 2, "a panic in on_event");
    });
    serve(service.ready_timeout(std::time::Duration::from_secs(600)), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.ready();
        drain(&worker);
    });
}
