//! Workers that are threads: what they have in common, what they cannot be made to do, and what follows.

use std::panic::panic_any;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use taskfork::{Backend, Event, Prefork, Process, Report, WorkResult, Worker};

use super::heartbeats;
use crate::Scenario;
use crate::os::{Signal, idle};
use crate::program::{EVER, drain, fail, prepare, run, say, serve, try_fork, up, up_until_signal};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::threading(
            "thread_errors_and_panics_are_logged_and_reported",
            fail_once,
            |daemon| {
                daemon.workers(WRONG.len());
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                for (id, (message, status)) in WRONG.iter().enumerate() {
                    for line in [
                        format!("log child {id} (thread worker-{id}.0): {message}"),
                        format!("event Failed {id}/0 {message}"),
                        format!("log child {id} (thread worker-{id}.0) exited with status {status}, restarting"),
                    ] {
                        let said = daemon.transcript().lines().filter(|other| *other == line).count();
                        assert_eq!(said, 1, "{line}:\n{}", daemon.transcript());
                    }
                }
                assert_eq!(daemon.count("drained "), WRONG.len());
                assert!(daemon.said("stale []"));
            },
        ),
        Scenario::threading("panicking_thread_is_restarted_until_max_restarts", always_panics, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.count("event Failed 0/"), 51, "{}", daemon.transcript());
            assert!(
                daemon.said("report: gave up after 50 restarts: child 0 (thread worker-0.50) exited with status 101")
            );
        }),
        Scenario::threading("thread_that_outlasts_graceful_timeout_is_stale_until_return", first_is_deaf, |daemon| {
            let old = daemon.worker();
            daemon.signal(Signal::SIGHUP);
            daemon.worker();
            daemon.wait_for_times("log Rolling restart done", 1);
            assert!(daemon.said_before(&format!("{old} did not stop in time"), &format!("{old} is stale")));
            daemon.send(old, Signal::SIGUSR2);
            daemon.wait_for(&format!("log {old} was stale, and has returned"));
            // It leaves a good worker more time than the graceful timeout does.
            daemon.signal(Signal::SIGQUIT);
            daemon.ends_with(0);
            for (event, times) in [("event Stale 0/0", 1), ("event Returned 0/0", 1), ("drained 0", 1), ("stale []", 1)]
            {
                assert_eq!(daemon.count(event), times, "{event}:\n{}", daemon.transcript());
            }
            assert!(!daemon.said("restarting"));
        }),
        Scenario::threading("stale_thread_that_panics_counts_as_returned", first_is_deaf, |daemon| {
            let old = daemon.worker();
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log Rolling restart done");
            daemon.send(old, Signal::SIGKILL);
            daemon.wait_for("event Returned 0/0");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("restarting"), "{}", daemon.transcript());
        }),
        Scenario::threading("stale_thread_is_reported_and_not_awaited_at_stop", first_is_deaf, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log Rolling restart done");
            daemon.signal(Signal::SIGQUIT);
            daemon.ends_with(0);
            assert!(daemon.said("stale [0/0]"), "{}", daemon.transcript());
            assert!(daemon.said("worker 0: 2 processes, 0 restarts, Some(Code(0))"), "{}", daemon.transcript());
            assert!(!daemon.said("late words"));
        }),
        Scenario::threading("ready_from_a_stale_thread_is_ignored", ready_late, |daemon| {
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
            assert!(daemon.said("late words") && !daemon.said(&format!("{third} is ready")), "{}", daemon.transcript());
            daemon.send(third, Signal::SIGUSR2);
            daemon.wait_for(&format!("{third} is ready"));
            daemon.wait_for("log Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::threading("heartbeat_from_a_stale_thread_is_ignored", beats_late, |daemon| {
            let first = daemon.worker();
            daemon.wait_for(&format!("{first} gives no sign of life"));
            let second = daemon.worker();
            daemon.wait_for(&format!("{second} gives no sign of life"));
            daemon.wait_for(&format!("{second} is stale, restarting"));
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said_before("late beat", &format!("{second} gives no sign of life")));
            assert!(daemon.said("stale [0/0, 0/1]"), "{}", daemon.transcript());
        }),
        Scenario::threading("stale_thread_that_resumes_gets_a_stop_request", comes_to_itself, |daemon| {
            daemon.wait_for_times("log child 0 (thread worker-0.0) is stale, restarting", 1);
            daemon.wait_for_times("it has been asked", 1);
            daemon.wait_for_times("log child 0 (thread worker-0.0) was stale, and has returned", 1);
            daemon.wait_for_times("up 0 1", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("drained 0") && daemon.said("stale []"), "{}", daemon.transcript());
        }),
        Scenario::threading("thread_holding_the_stdout_lock_blocks_no_other", holds_output, |daemon| {
            daemon.wait_for_times("log child 1 (thread worker-1.0) exited with status", 1);
            daemon.wait_for_times("up 1 1", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained"), 2, "{}", daemon.transcript());
        }),
        Scenario::threading("error_and_panic_values_of_threads_are_dropped", fails_with_things, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for id in 0..3 {
                assert_eq!(daemon.count(&format!("worker {id} let go of it")), 1, "{}", daemon.transcript());
                assert!(daemon.said(&format!("worker {id}: 2 processes, 1 restarts")));
            }
        }),
        Scenario::threading("second_term_makes_the_remaining_threads_stale", deaf_but_one, |daemon| {
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
        Scenario::threading("task_id_is_set_in_named_worker_threads_only", tells_of_threads, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for id in 0..2 {
                assert_eq!(daemon.count(&format!("{id}: Some({id}) in worker-{id}.0, None in its own")), 1);
            }
            assert_eq!(daemon.count("None in who is told"), 1);
            assert_eq!(daemon.count("None before, None after"), 1, "{}", daemon.transcript());
        }),
        Scenario::threading("worker_thread_cannot_start_workers", nests, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count(": this process is worker 0 already"), 4, "{}", daemon.transcript());
        }),
        Scenario::threading("ttou_requests_a_stop_of_one_thread_only", tells_who_is_asked, |daemon| {
            let workers = daemon.workers(3);
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("drained 2");
            daemon.wait_for("child 2 (thread worker-2.0) exited normally");
            for worker in &workers[..2] {
                daemon.send(*worker, Signal::SIGUSR2);
                daemon.wait_for(&format!("{} is asked: false", worker.id));
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
            assert!(daemon.said("counted 4, of which nobody else has anything: true"), "{}", daemon.transcript());
        }),
        Scenario::threading("worker_thread_can_run_child_programs", run_programs, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("ran: true"), 4, "{}", daemon.transcript());
        }),
        Scenario::threading(
            "handle_of_an_ended_thread_affects_no_replacement",
            leaves_its_handle,
            |daemon| {
                let first = daemon.worker();
                daemon.wait_for_times(&format!("{first} is ready"), 1);
                daemon.send(first, Signal::SIGUSR2);
                let second = daemon.worker();
                daemon.send(second, Signal::SIGUSR2);
                daemon.wait_for(&format!("{second} is ready"));
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                let own_word = format!("{second} is ready");
                assert!(daemon.said_before("up 0 1", &own_word), "{}", daemon.transcript());
                assert!(daemon.said("report: stopped") && !daemon.said("stopped, as"), "{}", daemon.transcript());
            },
        ),
        Scenario::threading("stale_thread_does_not_disturb_the_next_service", stale_of_the_first, |daemon| {
            let old = daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("first: stopped, stale [0/0]");
            let new = daemon.worker();
            assert_eq!((old.id, new.id), (0, 0));
            daemon.send(old, Signal::SIGUSR2);
            daemon.wait_for("late words");
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

/// And the report, in words.
fn serve_told(service: Prefork, work: impl Fn(Worker) + Send + Sync + 'static) -> Report {
    let report = serve(service.on_event(tell), work);
    tell_all(report)
}

fn tell(event: &Event) {
    match event {
        Event::Failed { process, message } => say(&format!("event Failed {} {message}", one(process))),
        Event::Stale { process } => say(&format!("event Stale {}", one(process))),
        Event::Returned { process } => say(&format!("event Returned {}", one(process))),
        _ => {}
    }
}

fn one(process: &Process) -> String {
    assert!(process.is_thread());
    format!("{}/{}", process.id, process.generation)
}

fn tell_all(report: Report) -> Report {
    let stale: Vec<String> = report.stale().iter().map(one).collect();
    say(&format!("stale [{}]", stale.join(", ")));
    for worker in report.workers() {
        let (id, processes, restarts) = (worker.id(), worker.processes(), worker.restarts());
        say(&format!("worker {id}: {processes} processes, {restarts} restarts, {:?}", worker.exit()));
    }
    report
}

/// By id.
const WRONG: [(&str, i32); 4] = [
    ("it was too much", 1),
    ("panicked: it is too much", 101),
    ("panicked: it is 5 too much", 101),
    ("panicked: with something that is no text", 101),
];

/// In its first life.
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
    tell_all(run(Prefork::new().workers(WRONG.len()).on_event(tell), work).expect("workers"))
}

const AT_ONCE: Duration = Duration::from_millis(1);
/// A worker that does not go in this time is not going to.
const SHORT: Duration = Duration::from_millis(100);

/// With a lock in its hands.
fn always_panics() -> Report {
    let lock = Arc::new(Mutex::new(()));
    serve_told(Prefork::new().workers(1).max_restarts(50).restart_backoff(AT_ONCE, AT_ONCE), move |_| {
        let _held = lock.lock();
        fail(1)
    })
}

/// Until the operator wakes it up, and only in its first life.
fn first_is_deaf() -> Report {
    serve_told(Prefork::new().workers(1).graceful_timeout(SHORT), |worker| {
        if worker.generation() > 0 {
            up(worker.id());
            worker.ready();
            return drain(&worker);
        }
        up_until_signal(worker.id(), Signal::SIGUSR2);
        assert!(worker.stop_requested());
        say("late words");
    })
}

/// The first one is ready at once, and once more when it is stale, for want of which it would be the same call.
fn ready_late() -> Report {
    serve_told(Prefork::new().workers(1).graceful_timeout(SHORT).ready_timeout(EVER), |worker| {
        if worker.generation() == 0 {
            worker.ready();
        }
        up_until_signal(worker.id(), Signal::SIGUSR2);
        if worker.generation() == 0 {
            worker.ready();
            worker.heartbeat();
            return say("late words");
        }
        worker.ready();
        drain(&worker);
    })
}

/// The first one beats to the end once it is stale and the second one is there, which never does.
fn beats_late() -> Report {
    let barrier = Barrier::new(2);
    serve_told(heartbeats::service(1), move |worker| match worker.generation() {
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
            heartbeats::beat(&worker, false);
        }
    })
}

/// The first one gives no sign of life, but looks whether it is to go.
fn comes_to_itself() -> Report {
    serve_told(heartbeats::service(1), |worker| {
        worker.ready();
        if worker.generation() > 0 {
            up(worker.id());
            heartbeats::beat(&worker, false);
            return say("drained 0");
        }
        worker.wait_for_stop(None);
        say("it has been asked");
    })
}

/// The second one fails in its first life, when the first one holds it.
fn holds_output() -> Report {
    let barrier = Barrier::new(2);
    serve_told(Prefork::new().workers(2), move |worker| {
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

/// Says so when it is dropped, and for one worker that is too much.
#[derive(Debug)]
struct Thing(usize);

impl Drop for Thing {
    fn drop(&mut self) {
        say(&format!("worker {} let go of it", self.0));
        if self.0 == 2 {
            panic_any("at the wrong time");
        }
    }
}

impl std::fmt::Display for Thing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a thing")
    }
}

impl std::error::Error for Thing {}

/// In its first life.
fn fails_with_things() -> Report {
    prepare();
    let work = |worker: Worker| -> WorkResult {
        match (worker.generation(), worker.id()) {
            (0, 0) => return Err(Thing(0).into()),
            (0, id) => panic_any(Thing(id)),
            _ => {}
        }
        up(worker.id());
        drain(&worker);
        Ok(())
    };
    tell_all(run(Prefork::new().workers(3).on_event(tell), work).expect("workers"))
}

fn deaf_but_one() -> Report {
    serve_told(Prefork::new().workers(3), |worker| {
        up(worker.id());
        if worker.id() == 1 {
            return drain(&worker);
        }
        idle();
    })
}

fn tells_of_threads() -> Report {
    let before = taskfork::task_id();
    let mut is_told = false;
    let service = Prefork::new().workers(2).on_event(move |_| {
        if !std::mem::replace(&mut is_told, true) {
            say(&format!("{:?} in who is told", taskfork::task_id()));
        }
    });
    let report = serve(service, |worker| {
        let own = thread::scope(|scope| scope.spawn(taskfork::task_id).join().expect("an answer"));
        let thread = thread::current();
        let name = thread.name().expect("a name");
        say(&format!("{}: {:?} in {name}, {own:?} in its own", worker.id(), taskfork::task_id()));
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

fn tells_who_is_asked() -> Report {
    serve(Prefork::new().workers(3), |worker| {
        if worker.id() < 2 {
            up_until_signal(worker.id(), Signal::SIGUSR2);
            say(&format!("{} is asked: {}", worker.id(), worker.stop_requested()));
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
    let (counted, is_alone) = (count.load(Ordering::Relaxed), Arc::into_inner(count).is_some());
    say(&format!("counted {counted}, of which nobody else has anything: {is_alone}"));
    report
}

fn run_programs() -> Report {
    serve(Prefork::new().workers(4), |_| {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        let status = command.arg("--help").stdout(Stdio::null()).status().expect("a program");
        say(&format!("ran: {}", status.success()));
    })
}

/// In its first life it leaves its handle behind, which its successor finds.
fn leaves_its_handle() -> Report {
    let left = Mutex::new(None);
    serve_told(Prefork::new().workers(1).ready_timeout(EVER), move |worker| {
        let id = worker.id();
        match worker.generation() {
            0 => {
                worker.ready();
                up_until_signal(id, Signal::SIGUSR2);
                *left.lock().expect("a place") = Some(worker);
                fail(1)
            }
            1 => {
                let left = left.lock().expect("a place").take().expect("a handle");
                left.ready();
                left.stop_all();
                say("late words");
                up_until_signal(id, Signal::SIGUSR2);
                worker.ready();
                drain(&worker);
            }
            _ => unreachable!("nobody else has failed"),
        }
    })
}

/// The second one is never ready.
fn stale_of_the_first() -> Report {
    let first = serve(Prefork::new().workers(1).graceful_timeout(SHORT), |worker| {
        up_until_signal(worker.id(), Signal::SIGUSR2);
        worker.ready();
        worker.stop_all();
        say("late words");
    });
    let stale: Vec<String> = first.stale().iter().map(one).collect();
    say(&format!("first: {}, stale [{}]", first.reason(), stale.join(", ")));
    serve_told(Prefork::new().workers(1).ready_timeout(EVER), |worker| {
        up(worker.id());
        drain(&worker);
    })
}
