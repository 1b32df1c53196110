//! Tests of services with several pools: how a pool ends, and how it ends the service.

use std::time::Duration;

use taskfork::{Report, Worker};

use super::pools::{be_ready_and_drain, drain, member, members, pool, say_up, serve_pools, two_and_two, web_and_jobs};
use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Gate, Signal, idle};
use crate::program::{EVER, fail};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("term_stops_all_pools_with_their_own_deadlines", with_two_deadlines, |daemon| {
            members(daemon, 2);
            daemon.wait_for_times("is ready", 2);
            daemon.signal(Signal::SIGTERM);
            let late = daemon.wait_for("did not stop in time");
            assert!(late.starts_with("log web child 0 "), "{late}");
            Gate::of(daemon.scratch()).open(1);
            daemon.ends_with(0);
            assert!(daemon.said("jobs drained 0"), "the other deadline is later:\n{}", daemon.transcript());
            assert_eq!(daemon.count("did not stop in time"), 1, "{}", daemon.transcript());
            assert!(daemon.said("log web: Stopping 1 processes") && daemon.said("log jobs: Stopping 1 processes"));
        })
        .for_processes(),
        Scenario::reporting("a_second_term_kills_the_workers_of_all_pools", unresponsive, |daemon| {
            members(daemon, 2);
            daemon.wait_for_times("is ready", 2);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for_times("Stopping 1 processes", 2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for pool in ["web", "jobs"] {
                let line = format!("log {pool}: Second stop request, killing 1 processes");
                assert_eq!(daemon.count(&line), 1, "{}", daemon.transcript());
            }
        })
        .for_processes(),
        Scenario::reporting("a_pool_whose_workers_are_done_is_done", jobs_finish, |daemon| {
            daemon.wait_for("log jobs: The pool has ended: finished");
            daemon.signal(Signal::SIGTTIN);
            daemon.wait_for("log web child 1 ");
            daemon.wait_for("is ready");
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log web: Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("started, generation 1"), 2, "only web is replaced:\n{}", daemon.transcript());
            assert!(daemon.said("pool jobs: finished, 2 workers, 0 restarts, success true"), "{}", daemon.transcript());
            assert!(!daemon.said("jobs: Rolling restart"), "{}", daemon.transcript());
        }),
        Scenario::reporting("the_service_ends_when_every_pool_is_done", both_finish, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("report: finished"), "{}", daemon.transcript());
        }),
        Scenario::reporting("a_pool_that_gives_up_ends_the_service", jobs_give_up, |daemon| {
            members(daemon, 3);
            daemon.wait_for_times("is ready", 3);
            Gate::of(daemon.scratch()).open(1);
            daemon.ends_with(1);
            assert_eq!(daemon.count("log jobs: Too many child restarts (0), giving up"), 1, "{}", daemon.transcript());
            assert!(daemon.said("report: gave up after 0 restarts: jobs child 0 "), "{}", daemon.transcript());
            assert_eq!(daemon.count("web drained"), 2, "{}", daemon.transcript());
            let jobs = daemon.line("pool jobs: gave up after 0 restarts: jobs child 0 ");
            assert!(jobs.ends_with("success false"), "{}", daemon.transcript());
        }),
        Scenario::reporting("a_pool_that_cannot_start_ends_the_service", jobs_cannot_start, |daemon| {
            daemon.ends_with(3);
            assert!(daemon.said("log Startup failed: jobs child 0 "), "{}", daemon.transcript());
            assert!(daemon.said("report: failed to start: jobs child 0 "), "{}", daemon.transcript());
        }),
        Scenario::reporting("the_others_go_on_if_an_optional_pool_gives_up", optional_jobs_give_up, |daemon| {
            members(daemon, 3);
            daemon.wait_for_times("is ready", 3);
            Gate::of(daemon.scratch()).open(1);
            goes_on_without_jobs(daemon, 1, "gave up after 0 restarts: jobs child 0 ");
        }),
        Scenario::reporting(
            "the_others_go_on_if_an_optional_pool_cannot_start",
            optional_jobs_cannot_start,
            |daemon| {
                goes_on_without_jobs(daemon, 0, "failed to start: jobs child 0 ");
            },
        ),
        Scenario::reporting("optional_pools_that_all_fail_fail_the_service", all_optional_pools_fail, |daemon| {
            assert!(!daemon.end().success(), "{}", daemon.transcript());
            assert_eq!(daemon.count(": The pool has ended: failed to start: "), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("stop_pool_stops_the_workers_of_its_own_pool", stops_own_pool, |daemon| {
            members(daemon, 4);
            daemon.wait_for_times("is ready", 4);
            Gate::of(daemon.scratch()).open(1);
            let ended = daemon.wait_for("log jobs: The pool has ended: ");
            assert!(ended.contains("stopped, as jobs child 1 ") && ended.ends_with(" requested"), "{ended}");
            assert_eq!(daemon.count("jobs drained"), 2, "{}", daemon.transcript());
            assert!(!daemon.said("web drained"), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTTIN);
            assert_eq!(member(daemon).pool, "web");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("log jobs: Stopping 2 processes, as jobs child 1 "), 1, "{}", daemon.transcript());
            assert!(daemon.said("pool jobs: stopped, as jobs child 1 "), "{}", daemon.transcript());
            assert!(daemon.said("report: stopped"), "{}", daemon.transcript());
            assert!(!daemon.said("killing") && !daemon.said("restarting"), "{}", daemon.transcript());
        }),
        Scenario::reporting("stop_all_in_one_pool_stops_all_pools", stops_all, |daemon| {
            members(daemon, 4);
            daemon.wait_for_times("is ready", 4);
            Gate::of(daemon.scratch()).open(1);
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped, as jobs child 1 "), "{}", daemon.transcript());
            assert_eq!(daemon.count("drained "), 4, "{}", daemon.transcript());
        }),
        Scenario::reporting("the_death_of_the_parent_ends_all_pools", two_and_two, |daemon| {
            members(daemon, 4);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
        })
        .for_processes(),
    ]
}

/// Asserts that the pool `jobs` has ended for this reason, and that the pool `web` goes on until it is stopped. `ready`
/// is the number of processes of `jobs` that were ready.
fn goes_on_without_jobs(daemon: &mut Daemon, ready: usize, reason: &str) {
    daemon.wait_for(&format!("log jobs: The pool has ended: {reason}"));
    assert!(!daemon.said("web drained"), "{}", daemon.transcript());
    daemon.signal(Signal::SIGTTIN);
    daemon.wait_for_times("is ready", ready + 3);
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
    assert_eq!(daemon.count("web drained"), 3, "{}", daemon.transcript());
    assert!(daemon.said("report: stopped"), "{}", daemon.transcript());
    assert!(daemon.line(&format!("pool jobs: {reason}")).ends_with("success false"), "{}", daemon.transcript());
}

/// The worker of `web` ignores the stop request. The worker of `jobs` obeys it when the gate opens.
fn with_two_deadlines() -> Report {
    let gate = Gate::new();
    let web = pool(1).graceful_timeout(Duration::from_millis(100));
    serve_pools(web_and_jobs(web, pool(1).graceful_timeout(EVER)), move |worker| {
        worker.enable_graceful_stop();
        say_up(&worker);
        worker.ready();
        if worker.pool() == "web" {
            idle();
        }
        gate.pass();
        drain(&worker);
    })
}

fn unresponsive() -> Report {
    let one = || pool(1).graceful_timeout(EVER);
    serve_pools(web_and_jobs(one(), one()), |worker| {
        worker.enable_graceful_stop();
        say_up(&worker);
        worker.ready();
        idle();
    })
}

fn jobs_finish() -> Report {
    serve_pools(web_and_jobs(pool(1), pool(2)), |worker| match worker.pool() {
        "web" => be_ready_and_drain(&worker),
        _ => worker.ready(),
    })
}

fn both_finish() -> Report {
    serve_pools(web_and_jobs(pool(1), pool(2)), |worker| worker.ready())
}

/// The worker of `jobs` fails when the gate opens.
fn serve_with_failing_jobs(is_optional: bool) -> Report {
    let gate = Gate::new();
    let jobs = pool(1).max_restarts(0);
    let jobs = if is_optional { jobs.optional() } else { jobs };
    serve_pools(web_and_jobs(pool(2), jobs), move |worker| {
        if worker.pool() == "web" {
            return be_ready_and_drain(&worker);
        }
        say_up(&worker);
        worker.ready();
        gate.pass();
        fail(3);
    })
}

fn jobs_give_up() -> Report {
    serve_with_failing_jobs(false)
}

fn optional_jobs_give_up() -> Report {
    serve_with_failing_jobs(true)
}

fn jobs_cannot_start() -> Report {
    serve_pools(web_and_jobs(pool(2), pool(1)), |worker| match worker.pool() {
        "web" => be_ready_and_drain(&worker),
        _ => fail(3),
    })
}

fn optional_jobs_cannot_start() -> Report {
    serve_pools(web_and_jobs(pool(2), pool(1).optional()), |worker| match worker.pool() {
        "web" => be_ready_and_drain(&worker),
        _ => fail(3),
    })
}

fn all_optional_pools_fail() -> Report {
    serve_pools(web_and_jobs(pool(1).optional(), pool(1).optional()), |_| fail(3))
}

fn stops_own_pool() -> Report {
    stopped_by_worker(|worker| {
        worker.stop_pool();
        worker.stop_pool();
    })
}

fn stops_all() -> Report {
    stopped_by_worker(Worker::stop_all)
}

/// Worker 1 of the pool `jobs` makes this stop request.
fn stopped_by_worker(request: fn(&Worker)) -> Report {
    let gate = Gate::new();
    serve_pools(web_and_jobs(pool(2), pool(2)), move |worker| {
        worker.enable_graceful_stop();
        say_up(&worker);
        worker.ready();
        if worker.pool() == "jobs" && worker.id() == 1 {
            gate.pass();
            request(&worker);
        }
        drain(&worker);
    })
}
