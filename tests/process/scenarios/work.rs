//! Tests of `Worker::begin_work`: what the parent reports about the units of work of its workers.

#[cfg(target_os = "linux")]
use std::cell::RefCell;
use std::mem;
use std::sync::Mutex;
use std::thread;

use taskfork::{Event, Prefork, Report, WorkGuard, Worker};

use super::pools::{be_ready_and_drain, pool, serve_pools, web_and_jobs};
use crate::Scenario;
use crate::os::Signal;
#[cfg(target_os = "linux")]
use crate::os::in_child;
use crate::program::{EVER, drain, fail, say, serve, up, up_until_signal};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_killed_worker_is_logged_with_its_work", first_has_work, |daemon| {
            let old = daemon.worker();
            daemon.send(old, Signal::SIGKILL);
            let new = daemon.worker();
            let killed = format!("log {old} {} with 3 units of work in progress, restarting", daemon.killed());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count(&killed), 1, "{}", daemon.transcript());
            for event in ["exited 0/0 with 3", "restarting 0/0 with 3", "exited 0/1 with 0"] {
                assert_eq!(daemon.count(&format!("event {event}")), 1, "{event}:\n{}", daemon.transcript());
            }
            let normal = format!("log {new} exited normally");
            assert_eq!(daemon.line(&normal), normal, "completed units are not in progress");
        }),
        #[cfg(target_os = "linux")]
        Scenario::reporting("units_in_a_fork_of_a_worker_do_not_count", forks_with_work, |daemon| {
            let old = daemon.worker();
            daemon.send(old, Signal::SIGKILL);
            let killed = format!("log {old} killed by signal 9 with 2 units of work in progress, restarting");
            daemon.wait_for(&killed);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::reporting("a_worker_with_completed_requests_is_replaced", complete_requests, |daemon| {
            let old = daemon.workers(2);
            daemon.send(old[1], Signal::SIGUSR2);
            assert_eq!(daemon.worker().id, 1);
            daemon.wait_for_times(&format!("log {} exited normally", old[1]), 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("in all: 0 restarts"), "{}", daemon.transcript());
            assert_eq!(daemon.count("has completed its"), 1, "only once:\n{}", daemon.transcript());
            let line = daemon.line(&format!("log {} has completed its ", old[1]));
            let limit = line.split(' ').find_map(|word| word.parse::<u64>().ok().filter(|&limit| limit > ALLOWED));
            assert!(limit.is_some_and(|limit| limit <= MAX_REQUESTS), "{line}");
        }),
        Scenario::reporting("only_the_pool_with_max_requests_is_recycled", jobs_complete_requests, |daemon| {
            daemon.wait_for_times(" has completed its request, replacing it", 2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let transcript = daemon.transcript();
            let mut recycled = transcript.lines().filter(|line| line.contains(" has completed its request"));
            assert!(recycled.all(|line| line.starts_with("log jobs child 0 ")), "{transcript}");
        }),
        Scenario::threading("a_late_unit_counts_for_no_later_thread", ends_units_late, |daemon| {
            daemon.wait_for("log child 0 (thread worker-0.0) exited with status 101 with 1 unit of work in progress,");
            daemon.wait_for("log child 0 (thread worker-0.1) exited with status 101 with 2 units of work in progress,");
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
    ]
}

fn print_work(event: &Event) {
    let line = match event {
        Event::Exited { process, work_in_progress, .. } => {
            format!("event exited {}/{} with {work_in_progress}", process.id, process.generation)
        }
        Event::Restarting { process, work_in_progress, .. } => {
            format!("event restarting {}/{} with {work_in_progress}", process.id, process.generation)
        }
        _ => return,
    };
    say(&line);
}

/// Begins a unit that never ends.
fn begin_endless(worker: &Worker) {
    mem::forget(worker.begin_work());
}

/// The first process has three units in progress: one that it has begun in each of two threads, and one that it has
/// begun between completed ones.
fn first_has_work() -> Report {
    let service = Prefork::new().workers(1).on_event(|event, _| print_work(event));
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        for _ in 0..1000 {
            drop(worker.begin_work());
        }
        let unit = worker.begin_work();
        thread::spawn(move || drop(unit)).join().expect("a thread");
        if worker.generation() == 0 {
            begin_endless(&worker);
            drop(worker.begin_work());
            begin_endless(&worker);
            thread::scope(|scope| {
                scope.spawn(|| begin_endless(&worker));
            });
        }
        up(worker.id());
        drain(&worker);
    })
}

/// The first process has two units in progress. Two processes that it forks, before and after its first unit, begin
/// more units, and the second one ends its copies of all units.
#[cfg(target_os = "linux")]
fn forks_with_work() -> Report {
    serve(Prefork::new().workers(1), |worker| {
        assert!(!worker.stop_requested());
        if worker.generation() == 0 {
            assert_eq!(in_child(|| begin_endless(&worker)), 0);
            let units = RefCell::new(vec![worker.begin_work(), worker.begin_work()]);
            let status = in_child(|| {
                begin_endless(&worker);
                drop(worker.begin_work());
                units.borrow_mut().clear();
            });
            assert_eq!(status, 0);
            mem::forget(units);
        }
        up(worker.id());
        drain(&worker);
    })
}

const MAX_REQUESTS: u64 = 100_000;
/// The largest number of requests that every process may complete.
const ALLOWED: u64 = MAX_REQUESTS / 4 * 3 - 1;

/// The first process of worker 1 works at SIGUSR2 in two threads, until its stop request. All other processes complete
/// as many requests as they may.
fn complete_requests() -> Report {
    let service = Prefork::new().workers(2).max_restarts(0).ready_timeout(EVER).max_requests(MAX_REQUESTS);
    let report = serve(service, |worker| {
        assert!(!worker.stop_requested());
        worker.ready();
        for _ in 0..ALLOWED {
            drop(worker.begin_work());
        }
        if (worker.id(), worker.generation()) != (1, 0) {
            up(worker.id());
            return drain(&worker);
        }
        up_until_signal(1, Signal::SIGUSR2);
        let work = || {
            while !worker.stop_requested() {
                drop(worker.begin_work());
            }
        };
        thread::scope(|scope| {
            scope.spawn(work);
            work();
        });
        drain(&worker);
    });
    say(&format!("in all: {} restarts", report.restarts()));
    report
}

/// Every worker completes three units of work at its start. In the second pool, one unit is enough.
fn jobs_complete_requests() -> Report {
    serve_pools(web_and_jobs(pool(1), pool(1).max_requests(1)), |worker| {
        (0..3).for_each(|_| drop(worker.begin_work()));
        be_ready_and_drain(&worker);
    })
}

/// The first thread leaves a unit behind, which the second thread ends.
fn ends_units_late() -> Report {
    static LATE: Mutex<Option<WorkGuard>> = Mutex::new(None);

    serve(Prefork::new().workers(1), |worker| {
        assert!(!worker.stop_requested());
        match worker.generation() {
            0 => *LATE.lock().expect("a unit") = Some(worker.begin_work()),
            1 => {
                begin_endless(&worker);
                drop(LATE.lock().expect("a unit").take());
                begin_endless(&worker);
            }
            _ => {
                up(worker.id());
                return drain(&worker);
            }
        }
        fail(1)
    })
}
