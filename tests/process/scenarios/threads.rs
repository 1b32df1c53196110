//! Tests of `run_threads`: what worker threads share, and stale threads. A stale thread is one that the parent
//! abandons, because a thread cannot be killed.

use std::panic::panic_any;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use taskfork::{Backend, Event, Handle, Prefork, Process, Report, WorkResult, Worker};

use super::heartbeats;
use crate::Scenario;
use crate::os::{Signal, idle};
use crate::program::{EVER, drain, fail, prepare, run, say, serve, try_fork, up, up_until_signal};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::threading("thread_errors_and_panics_are_logged_and_reported", fail_once, |daemon| {
            daemon.workers(FAILURES.len());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for (id, (message, status)) in FAILURES.iter().enumerate() {
                for line in [
                    format!("log child {id} (thread worker-{id}.0): {message}"),
                    format!("event Failed {id}/0 {message}"),
                    format!("log child {id} (thread worker-{id}.0) exited with status {status}, restarting"),
                ] {
                    let count = daemon.transcript().lines().filter(|other| *other == line).count();
                    assert_eq!(count, 1, "{line}:\n{}", daemon.transcript());
                }
            }
            assert_eq!(daemon.count("drained "), FAILURES.len());
            assert!(daemon.said("stale []"));
        }),
        Scenario::threading("panicking_thread_is_restarted_until_max_restarts", always_panics, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.count("event Failed 0/"), 51, "{}", daemon.transcript());
            assert!(
                daemon.said("report: gave up after 50 restarts: child 0 (thread worker-0.50) exited with status 101")
            );
        }),
        Scenario::threading("thread_without_heartbeats_is_stale_at_once", heartbeats::second_hangs, |daemon| {
            daemon.wait_for("child 1 (thread worker-1.0) has sent no heartbeat in time");
            daemon.wait_for("child 1 (thread worker-1.0) is stale");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("(thread worker-1.0) did not stop in time"), "{}", daemon.transcript());
        }),
        Scenario::threading(
            "thread_that_outlasts_graceful_timeout_is_stale_until_return",
            first_ignores_stop,
            |daemon| {
                let old = daemon.worker();
                daemon.signal(Signal::SIGHUP);
                daemon.worker();
                daemon.wait_for_times("log Rolling restart done", 1);
                assert!(daemon.said_before(&format!("{old} did not stop in time"), &format!("{old} is stale")));
                daemon.send(old, Signal::SIGUSR2);
                daemon.wait_for(&format!("log {old} was stale, and has returned"));
                // After SIGQUIT, the new worker has 2 s to stop. This is more than the graceful timeout.
                daemon.signal(Signal::SIGQUIT);
                daemon.ends_with(0);
                for (event, times) in
                    [("event Stale 0/0", 1), ("event Returned 0/0", 1), ("drained 0", 1), ("stale []", 1)]
                {
                    assert_eq!(daemon.count(event), times, "{event}:\n{}", daemon.transcript());
                }
                assert!(!daemon.said("restarting"));
            },
        ),
        Scenario::threading("stale_thread_that_panics_counts_as_returned", first_ignores_stop, |daemon| {
            let old = daemon.worker();
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log Rolling restart done");
            daemon.send(old, Signal::SIGKILL);
            daemon.wait_for("event Returned 0/0");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("restarting"), "{}", daemon.transcript());
        }),
        Scenario::threading("stale_thread_is_reported_and_not_awaited_at_stop", first_ignores_stop, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log Rolling restart done");
            daemon.signal(Signal::SIGQUIT);
            daemon.ends_with(0);
            assert!(daemon.said("stale [0/0]"), "{}", daemon.transcript());
            assert!(daemon.said("worker 0: 2 processes, 0 restarts, Some(Code(0))"), "{}", daemon.transcript());
            assert!(!daemon.said("resumed"));
        }),
        Scenario::threading("ready_from_a_stale_thread_is_ignored", sends_late_ready, |daemon| {
            let old = daemon.worker();
            daemon.signal(Signal::SIGHUP);
            let second = daemon.worker();
            daemon.send(second, Signal::SIGUSR2);
            daemon.wait_for(&format!("{old} is stale"));
            daemon.wait_for("log Rolling restart done");
            daemon.signal(Signal::SIGHUP);
            let third = daemon.worker();
            daemon.send(old, Signal::SIGUSR2);
            daemon.wait_for("event Returned 0/0");
            assert!(daemon.said("resumed") && !daemon.said(&format!("{third} is ready")), "{}", daemon.transcript());
            daemon.send(third, Signal::SIGUSR2);
            daemon.wait_for(&format!("{third} is ready"));
            daemon.wait_for("log Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::threading("heartbeat_from_a_stale_thread_is_ignored", sends_late_heartbeats, |daemon| {
            let first = daemon.worker();
            daemon.wait_for(&format!("{first} has sent no heartbeat in time"));
            let second = daemon.worker();
            daemon.wait_for(&format!("{second} has sent no heartbeat in time"));
            daemon.wait_for(&format!("{second} is stale, restarting"));
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said_before("late beat", &format!("{second} has sent no heartbeat in time")));
            assert!(daemon.said("stale [0/0, 0/1]"), "{}", daemon.transcript());
        }),
        Scenario::threading(
            "stale_thread_that_resumes_gets_a_stop_request",
            waits_for_stop_without_heartbeats,
            |daemon| {
                daemon.wait_for_times("log child 0 (thread worker-0.0) is stale, restarting", 1);
                daemon.wait_for_times("stop request received", 1);
                daemon.wait_for_times("log child 0 (thread worker-0.0) was stale, and has returned", 1);
                daemon.wait_for_times("up 0 1", 1);
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(daemon.said("drained 0") && daemon.said("stale []"), "{}", daemon.transcript());
            },
        ),
        Scenario::threading("thread_holding_the_stdout_lock_blocks_no_other", holds_stdout, |daemon| {
            daemon.wait_for_times("log child 1 (thread worker-1.0) exited with status", 1);
            daemon.wait_for_times("up 1 1", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained"), 2, "{}", daemon.transcript());
        }),
        Scenario::threading("error_and_panic_values_of_threads_are_dropped", fail_with_values, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for id in 0..3 {
                assert_eq!(daemon.count(&format!("worker {id} dropped its error")), 1, "{}", daemon.transcript());
                assert!(daemon.said(&format!("worker {id}: 2 processes, 1 restarts")));
            }
        }),
        Scenario::threading("second_term_makes_the_remaining_threads_stale", one_stops, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log child 1 (thread worker-1.0) exited normally");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("log Second stop request, killing 2 processes"), "{}", daemon.transcript());
            assert!(daemon.said("stale [0/0, 2/0]"), "{}", daemon.transcript());
            assert!(daemon.said("worker 0: 1 processes, 0 restarts, Some(Stale)"), "{}", daemon.transcript());
            assert!(!daemon.said("did not stop in time"));
        }),
        Scenario::threading("task_id_is_set_in_named_worker_threads_only", prints_task_ids, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for id in 0..2 {
                assert_eq!(daemon.count(&format!("{id}: Some({id}) in worker-{id}.0, None in its child thread")), 1);
            }
            assert_eq!(daemon.count("None in on_event"), 1);
            assert_eq!(daemon.count("None before, None after"), 1, "{}", daemon.transcript());
        }),
        Scenario::threading("worker_thread_cannot_start_workers", nests, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count(": this process is worker 0 already"), 4, "{}", daemon.transcript());
        }),
        Scenario::threading("ttou_requests_a_stop_of_one_thread_only", prints_stop_requests, |daemon| {
            let workers = daemon.workers(3);
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("drained 2");
            daemon.wait_for("child 2 (thread worker-2.0) exited normally");
            for worker in &workers[..2] {
                daemon.send(*worker, Signal::SIGUSR2);
                daemon.wait_for(&format!("{} has a stop request: false", worker.id));
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained "), 3, "{}", daemon.transcript());
        }),
        Scenario::threading("closure_state_is_shared_and_dropped_at_the_end", count_together, |daemon| {
            let workers = daemon.workers(3);
            daemon.send(workers[1], Signal::SIGKILL);
            daemon.worker();
            assert!(daemon.said(&format!("{} {}, restarting", workers[1], daemon.killed())));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("counted 4, state dropped: true"), "{}", daemon.transcript());
        }),
        Scenario::threading("worker_thread_can_run_child_programs", run_programs, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("ran: true"), 4, "{}", daemon.transcript());
        }),
        Scenario::threading("handle_of_an_ended_thread_affects_no_replacement", leaves_its_worker, |daemon| {
            let first = daemon.worker();
            daemon.wait_for_times(&format!("{first} is ready"), 1);
            daemon.send(first, Signal::SIGUSR2);
            let second = daemon.worker();
            daemon.send(second, Signal::SIGUSR2);
            daemon.wait_for(&format!("{second} is ready"));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let ready = format!("{second} is ready");
            assert!(daemon.said_before("up 0 1", &ready), "{}", daemon.transcript());
            assert!(daemon.said("report: stopped") && !daemon.said("stopped, as"), "{}", daemon.transcript());
        }),
        Scenario::threading("stale_thread_does_not_disturb_the_next_service", leaves_a_stale_thread, |daemon| {
            let old = daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("first: stopped, stale [0/0]");
            let new = daemon.worker();
            assert_eq!((old.id, new.id), (0, 0));
            daemon.send(old, Signal::SIGUSR2);
            daemon.wait_for("resumed");
            daemon.signal(Signal::SIGTTIN);
            daemon.worker();
            assert!(!daemon.said("is ready"), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained "), 2, "{}", daemon.transcript());
            assert_eq!(daemon.count("event Returned"), 0, "{}", daemon.transcript());
        }),
    ]
}

/// Runs the service, and prints its events and its report.
fn serve_and_print(service: Prefork, work: impl Fn(Worker) + Send + Sync + 'static) -> Report {
    let report = serve(service.on_event(print_event), work);
    print_report(report)
}

fn print_event(event: &Event, _: &Handle) {
    match event {
        Event::Failed { process, message } => say(&format!("event Failed {} {message}", name_of(process))),
        Event::Stale { process } => say(&format!("event Stale {}", name_of(process))),
        Event::Returned { process } => say(&format!("event Returned {}", name_of(process))),
        _ => {}
    }
}

fn name_of(process: &Process) -> String {
    assert!(process.is_thread());
    format!("{}/{}", process.id, process.generation)
}

fn print_report(report: Report) -> Report {
    let stale: Vec<String> = report.stale().iter().map(name_of).collect();
    say(&format!("stale [{}]", stale.join(", ")));
    for worker in report.workers() {
        let id = worker.id();
        let processes = worker.processes();
        let restarts = worker.restarts();
        say(&format!("worker {id}: {processes} processes, {restarts} restarts, {:?}", worker.exit()));
    }
    report
}

/// The messages and exit statuses of failures, by worker id.
const FAILURES: [(&str, i32); 4] = [
    ("it was too much", 1),
    ("panicked: it is too much", 101),
    ("panicked: it is 5 too much", 101),
    ("panicked: with something that is no text", 101),
];

/// The first thread of each worker fails.
fn fail_once() -> Report {
    prepare();
    let work = |worker: Worker| -> WorkResult {
        match (worker.generation(), worker.id()) {
            (0, 0) => return Err("it was too much".into()),
            (0, 1) => panic!("it is too much"),
            (0, 2) => panic!("it is {} too much", worker.id() + 3),
            (0, 3) => panic_any(5),
            _ => {}
        }
        up(worker.id());
        drain(&worker);
        Ok(())
    };
    print_report(run(Prefork::new().workers(FAILURES.len()).on_event(print_event), work).expect("workers"))
}

const AT_ONCE: Duration = Duration::from_millis(1);
/// The graceful timeout of workers that do not stop in time.
const SHORT: Duration = Duration::from_millis(100);

/// The worker panics while it holds a lock.
fn always_panics() -> Report {
    let lock = Arc::new(Mutex::new(()));
    let service = Prefork::new().workers(1).max_restarts(50).restart_backoff(AT_ONCE, AT_ONCE);
    // Without a ready timeout, ten failures in a row would be a startup failure.
    serve_and_print(service.ready_timeout(EVER), move |worker| {
        worker.ready();
        let _held = lock.lock();
        fail(1)
    })
}

/// The first thread ignores the stop request until it gets SIGUSR2. Each later thread stops on request.
fn first_ignores_stop() -> Report {
    serve_and_print(Prefork::new().workers(1).graceful_timeout(SHORT), |worker| {
        if worker.generation() > 0 {
            up(worker.id());
            worker.ready();
            return drain(&worker);
        }
        up_until_signal(worker.id(), Signal::SIGUSR2);
        assert!(worker.stop_requested());
        say("resumed");
    })
}

/// The worker's first thread calls `ready` at once, and again when it is stale. Each later thread calls `ready` when it
/// gets SIGUSR2.
fn sends_late_ready() -> Report {
    serve_and_print(Prefork::new().workers(1).graceful_timeout(SHORT).ready_timeout(EVER), |worker| {
        if worker.generation() == 0 {
            worker.ready();
        }
        up_until_signal(worker.id(), Signal::SIGUSR2);
        if worker.generation() == 0 {
            worker.ready();
            worker.heartbeat();
            return say("resumed");
        }
        worker.ready();
        drain(&worker);
    })
}

/// When the first thread is stale and the second thread runs, the first thread sends heartbeats again. The second
/// thread never sends heartbeats.
fn sends_late_heartbeats() -> Report {
    let barrier = Barrier::new(2);
    serve_and_print(heartbeats::service(1), move |worker| match worker.generation() {
        0 => {
            up(worker.id());
            worker.ready();
            barrier.wait();
            worker.heartbeat();
            say("late beat");
            barrier.wait();
            loop {
                worker.heartbeat();
                thread::park_timeout(heartbeats::TIMEOUT / 10);
            }
        }
        1 => {
            barrier.wait();
            barrier.wait();
            up(worker.id());
            worker.ready();
            idle();
        }
        _ => {
            worker.ready();
            up(worker.id());
            heartbeats::send_heartbeats(&worker, false);
        }
    })
}

/// The first thread sends no heartbeats, but waits for a stop request.
fn waits_for_stop_without_heartbeats() -> Report {
    serve_and_print(heartbeats::service(1), |worker| {
        worker.ready();
        if worker.generation() > 0 {
            up(worker.id());
            heartbeats::send_heartbeats(&worker, false);
            return say("drained 0");
        }
        worker.wait_for_stop(None);
        say("stop request received");
    })
}

/// The first thread of worker 1 fails while worker 0 holds the lock of standard output.
fn holds_stdout() -> Report {
    let barrier = Barrier::new(2);
    serve_and_print(Prefork::new().workers(2), move |worker| {
        let _held = (worker.id() == 0).then(|| std::io::stdout().lock());
        if worker.generation() == 0 {
            barrier.wait();
        }
        if (worker.id(), worker.generation()) == (1, 0) {
            fail(1);
        }
        up(worker.id());
        drain(&worker);
    })
}

/// An error that prints a line when it is dropped. The error of worker 2 also panics then.
#[derive(Debug)]
struct LoudError(usize);

impl Drop for LoudError {
    fn drop(&mut self) {
        say(&format!("worker {} dropped its error", self.0));
        if self.0 == 2 {
            panic_any("at the wrong time");
        }
    }
}

impl std::fmt::Display for LoudError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a loud error")
    }
}

impl std::error::Error for LoudError {}

/// The first thread of each worker fails with a `LoudError`.
fn fail_with_values() -> Report {
    prepare();
    let work = |worker: Worker| -> WorkResult {
        match (worker.generation(), worker.id()) {
            (0, 0) => return Err(LoudError(0).into()),
            (0, id) => panic_any(LoudError(id)),
            _ => {}
        }
        up(worker.id());
        drain(&worker);
        Ok(())
    };
    print_report(run(Prefork::new().workers(3).on_event(print_event), work).expect("workers"))
}

fn one_stops() -> Report {
    serve_and_print(Prefork::new().workers(3), |worker| {
        up(worker.id());
        if worker.id() == 1 {
            return drain(&worker);
        }
        idle();
    })
}

fn prints_task_ids() -> Report {
    let before = taskfork::task_id();
    let mut was_called = false;
    let service = Prefork::new().workers(2).on_event(move |_, _| {
        if !std::mem::replace(&mut was_called, true) {
            say(&format!("{:?} in on_event", taskfork::task_id()));
        }
    });
    let report = serve(service, |worker| {
        let own = thread::scope(|scope| scope.spawn(taskfork::task_id).join().expect("an answer"));
        let thread = thread::current();
        let name = thread.name().expect("a name");
        say(&format!("{}: {:?} in {name}, {own:?} in its child thread", worker.id(), taskfork::task_id()));
        up(worker.id());
        drain(&worker);
    });
    say(&format!("{before:?} before, {:?} after", taskfork::task_id()));
    report
}

fn nests() -> Report {
    serve(Prefork::new().workers(1), |_| {
        let service = || Prefork::new().workers(1);
        for refused in [
            service().start().map(drop),
            service().backend(Backend::Spawn).start().map(drop),
            service().run_threads(|_| Ok(())).map(drop),
            try_fork(1, 0).map(drop),
        ] {
            say(&format!("refused: {}", refused.expect_err("a refusal")));
        }
    })
}

fn prints_stop_requests() -> Report {
    serve(Prefork::new().workers(3), |worker| {
        if worker.id() < 2 {
            up_until_signal(worker.id(), Signal::SIGUSR2);
            say(&format!("{} has a stop request: {}", worker.id(), worker.stop_requested()));
        } else {
            up(worker.id());
        }
        drain(&worker);
    })
}

fn count_together() -> Report {
    let count = Arc::new(AtomicUsize::new(0));
    let shared = Arc::clone(&count);
    let report = serve(Prefork::new().workers(3), move |worker| {
        shared.fetch_add(1, Ordering::Relaxed);
        up(worker.id());
        drain(&worker);
    });
    let counted = count.load(Ordering::Relaxed);
    let is_dropped = Arc::into_inner(count).is_some();
    say(&format!("counted {counted}, state dropped: {is_dropped}"));
    report
}

fn run_programs() -> Report {
    serve(Prefork::new().workers(4), |_| {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        let status = command.arg("--help").stdout(Stdio::null()).status().expect("a program");
        say(&format!("ran: {}", status.success()));
    })
}

/// The first thread does not drop its `Worker`. The thread that replaces it calls methods of that `Worker`.
fn leaves_its_worker() -> Report {
    let left = Mutex::new(None);
    serve_and_print(Prefork::new().workers(1).ready_timeout(EVER), move |worker| {
        let id = worker.id();
        match worker.generation() {
            0 => {
                worker.ready();
                up_until_signal(id, Signal::SIGUSR2);
                *left.lock().expect("a lock") = Some(worker);
                fail(1)
            }
            1 => {
                let left = left.lock().expect("a lock").take().expect("a handle");
                left.ready();
                left.stop_all();
                say("resumed");
                up_until_signal(id, Signal::SIGUSR2);
                worker.ready();
                drain(&worker);
            }
            _ => unreachable!("no other thread fails"),
        }
    })
}

/// When the first service ends, a stale thread is left. The worker of the second service never calls `ready`, so only
/// the stale thread could cause `Event::Ready`.
fn leaves_a_stale_thread() -> Report {
    let first = serve(Prefork::new().workers(1).graceful_timeout(SHORT), |worker| {
        up_until_signal(worker.id(), Signal::SIGUSR2);
        worker.ready();
        worker.stop_all();
        say("resumed");
    });
    let stale: Vec<String> = first.stale().iter().map(name_of).collect();
    say(&format!("first: {}, stale [{}]", first.reason(), stale.join(", ")));
    serve_and_print(Prefork::new().workers(1).ready_timeout(EVER), |worker| {
        up(worker.id());
        drain(&worker);
    })
}
