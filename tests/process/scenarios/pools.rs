//! Tests of services with several pools: what belongs to each pool, and requests to one pool or to all.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::exit;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use taskfork::{Error, Event, Prefork, Report, Role, Supervisor, Worker};

use crate::Scenario;
use crate::daemon::{Daemon, kill};
use crate::os::{Gate, Signal, idle, watch};
use crate::program::{EVER, answer_clients, backend, end_with, fail, prepare, say};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("ids_count_from_zero_in_each_pool", two_and_three, |daemon| {
            let members = members(daemon, 5);
            let ids = members.iter().map(|member| (member.pool.as_str(), member.id));
            assert!(ids.eq([("jobs", 0), ("jobs", 1), ("jobs", 2), ("web", 0), ("web", 1)]), "{members:?}");
            daemon.wait_for_times("is ready", 5);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("one of 2 in web"), 2, "{}", daemon.transcript());
            assert_eq!(daemon.count("one of 3 in jobs"), 3, "{}", daemon.transcript());
            assert!(daemon.said("log web: Starting 2 processes"), "{}", daemon.transcript());
            assert!(daemon.said("log jobs: Starting 3 processes"), "{}", daemon.transcript());
            for member in members {
                for what in ["started, generation 0", "is ready", "exited normally"] {
                    assert_eq!(daemon.count(&format!("log {} {what}", member.name)), 1, "{}", daemon.transcript());
                }
            }
            assert!(daemon.said("report: stopped"), "{}", daemon.transcript());
            assert!(daemon.said("pool web: stopped, 2 workers, 0 restarts, success true"), "{}", daemon.transcript());
            assert!(daemon.said("pool jobs: stopped, 3 workers, 0 restarts, success true"), "{}", daemon.transcript());
        }),
        Scenario::reporting("a_named_pool_is_named_even_if_it_is_alone", one_named_pool, |daemon| {
            let member = member(daemon);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said(&format!("log {} started, generation 0", member.name)), "{}", daemon.transcript());
            assert!(daemon.said("log web: Stopping 1 processes"), "{}", daemon.transcript());
        }),
        Scenario::reporting("a_killed_worker_is_restarted_in_its_own_pool", two_and_three, |daemon| {
            let before = members(daemon, 5);
            daemon.wait_for_times("is ready", 5);
            for killed in [&before[1], &before[3]] {
                kill(killed.pid, Signal::SIGKILL);
                let new = member(daemon);
                assert_eq!((&new.pool, new.id, new.generation), (&killed.pool, killed.id, 1));
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count(" is up"), 7, "{}", daemon.transcript());
            assert!(daemon.said("pool web: stopped, 2 workers, 1 restarts, success true"), "{}", daemon.transcript());
            assert!(daemon.said("pool jobs: stopped, 3 workers, 1 restarts, success true"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("each_pool_has_its_own_restart_limit", each_fails_once, |daemon| {
            daemon.wait_for_times(" is up", 4);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("restarting"), 2, "{}", daemon.transcript());
            assert!(!daemon.said("giving up"), "{}", daemon.transcript());
        }),
        Scenario::reporting("only_the_pool_with_heartbeats_must_send_them", web_hangs, |daemon| {
            let first = members(daemon, 2);
            daemon.wait_for(&format!("{} has sent no heartbeat in time", first[1].name));
            assert_eq!(member(daemon).pool, "web");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("no heartbeat in time"), 1, "{}", daemon.transcript());
        }),
        Scenario::reporting("heartbeats_count_in_each_pool", one_job_worker_hangs, |daemon| {
            let hanging = members(daemon, 3).into_iter().find(|member| member.pool == "jobs" && member.id == 1);
            daemon.wait_for(&format!("{} has sent no heartbeat in time", hanging.expect("a worker").name));
            assert_eq!(member(daemon).pool, "jobs");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("no heartbeat in time"), 1, "{}", daemon.transcript());
        }),
        Scenario::reporting("only_the_pool_with_a_lifetime_is_recycled", jobs_live_shortly, |daemon| {
            daemon.wait_for_times("has reached its maximum lifetime", 3);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let ups = daemon.transcript().lines().filter(|line| is_up_in(line, "web")).count();
            assert_eq!(ups, 1, "{}", daemon.transcript());
        }),
        Scenario::reporting("each_pool_serves_its_own_listener", with_listeners, |daemon| {
            let web = address(daemon, "web");
            let jobs = address(daemon, "jobs");
            members(daemon, 2);
            assert_eq!(ask(web), "web");
            assert_eq!(ask(jobs), "jobs");
            Gate::of(daemon.scratch()).open(1);
            daemon.wait_for("log jobs: The pool has ended: ");
            TcpStream::connect(jobs).expect_err("the listener of the ended pool is closed");
            assert_eq!(ask(web), "web", "the other pool goes on");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("hup_rolls_the_pools_one_after_another", two_and_two, |daemon| {
            let old = members(daemon, 4);
            daemon.signal(Signal::SIGHUP);
            let new: Vec<Member> = (0..4).map(|_| member(daemon)).collect();
            daemon.wait_for("log jobs: Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let pools: Vec<&str> = new.iter().map(|member| member.pool.as_str()).collect();
            assert_eq!(pools, ["web", "web", "jobs", "jobs"]);
            assert!(new.iter().all(|new| new.generation == 1 && !old.contains(new)));
            assert!(daemon.said_before("log web: Rolling restart done", "log jobs: Rolling restart"));
            assert_eq!(daemon.count("Rolling restart done"), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("a_failed_roll_does_not_keep_the_next_pool", web_cannot_be_replaced, |daemon| {
            members(daemon, 4);
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log web: Rolling restart aborted: the replacement of worker 0 failed");
            assert_eq!(members(daemon, 2).iter().filter(|member| member.pool == "jobs").count(), 2);
            daemon.wait_for("log jobs: Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("web drained"), 2, "the old workers stay:\n{}", daemon.transcript());
        }),
        Scenario::reporting("ttin_and_ttou_scale_the_first_pool", two_and_two, |daemon| {
            members(daemon, 4);
            daemon.wait_for_times("is ready", 4);
            daemon.signal(Signal::SIGTTIN);
            let added = member(daemon);
            assert_eq!((added.pool.as_str(), added.id), ("web", 2));
            daemon.wait_for(&format!("{} is ready", added.name));
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("web drained 2");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("log web: Scaled to 3 workers"), "{}", daemon.transcript());
            assert!(daemon.said("log web: Scaled to 2 workers"), "{}", daemon.transcript());
            assert!(!daemon.said("jobs: Scaled"), "{}", daemon.transcript());
        }),
        Scenario::reporting("requests_in_a_pool_concern_this_pool_only", requests_in_pools, |daemon| {
            daemon.ends_with(0);
            for line in [
                "log jobs: Scaled to 3 workers",
                "log A request has no effect: it is for the pool \"mail\", which does not exist",
                "was requested to be replaced, replacing it",
                "log jobs: Rolling restart done",
                "log jobs: Stopping 3 processes",
                "log jobs: The pool has ended: stopped",
                "log A request has no effect: it is for the pool \"jobs\", which is stopping or has ended",
                "log web: Scaled to 3 workers",
                "report: stopped",
            ] {
                assert_eq!(daemon.count(line), 1, "{line}:\n{}", daemon.transcript());
            }
            let ups = |pool: &str| daemon.transcript().lines().filter(|line| is_up_in(line, pool)).count();
            assert_eq!(ups("web"), 2 + 1 + 1, "one was replaced, one was added:\n{}", daemon.transcript());
            assert_eq!(ups("jobs"), 2 + 1 + 3, "one was added, three were replaced:\n{}", daemon.transcript());
        }),
    ]
}

/// A process or a thread of a pool that is up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub pool: String,
    pub id: usize,
    pub generation: u32,
    /// The pid of a process, or of the process of a thread.
    pub pid: u32,
    /// The name in the log, for example `web child 0 (pid 71)`.
    pub name: String,
}

/// Waits until the next worker is up.
pub fn member(daemon: &mut Daemon) -> Member {
    let line = daemon.wait_for(" is up");
    let (name, rest) = line.split_once(": ").expect("a name");
    let (pool, rest_of_name) = name.split_once(" child ").expect("a pool");
    let (id, _) = rest_of_name.split_once(' ').expect("an id");
    let mut numbers = rest.split(' ').filter_map(|word| word.parse().ok());
    let generation = numbers.next().expect("a generation");
    let pid = numbers.next().expect("a pid");
    Member { pool: pool.to_owned(), id: id.parse().expect("an id"), generation, pid, name: name.to_owned() }
}

/// Waits until `n` workers are up, and returns them in the order of their pools and ids.
pub fn members(daemon: &mut Daemon, n: usize) -> Vec<Member> {
    let mut members: Vec<Member> = (0..n).map(|_| member(daemon)).collect();
    members.sort();
    members
}

fn is_up_in(line: &str, pool: &str) -> bool {
    line.starts_with(&format!("{pool} child ")) && line.ends_with(" is up")
}

/// Prints that the worker is up.
pub fn say_up(worker: &Worker) {
    let pid = std::process::id();
    let name = match thread::current().name() {
        Some(thread) if thread.starts_with(&format!("{}-", worker.pool())) => format!("thread {thread}"),
        _ => format!("pid {pid}"),
    };
    let generation = worker.generation();
    say(&format!("{} child {} ({name}): generation {generation} pid {pid} is up", worker.pool(), worker.id()));
}

/// Prints that the worker is up, reports that it is ready, and waits for a stop request.
pub fn be_ready_and_drain(worker: &Worker) {
    worker.enable_graceful_stop();
    say_up(worker);
    worker.ready();
    drain(worker);
}

pub fn drain(worker: &Worker) {
    assert!(worker.wait_for_stop(None));
    say(&format!("{} drained {}", worker.pool(), worker.id()));
}

/// Returns a pool with the kind of worker under test.
pub fn pool(workers: usize) -> Prefork {
    let pool = Prefork::new().workers(workers).ready_timeout(EVER);
    match backend() {
        Some(backend) => pool.backend(backend),
        None => pool,
    }
}

/// Runs a service with the kind of worker under test, and prints the report of each pool.
pub fn serve_pools(service: Supervisor, work: impl Fn(Worker) + Send + Sync + 'static) -> Report {
    const WATCHDOG: u32 = 60;
    prepare();
    let started = match backend() {
        Some(_) => service.start(),
        None => {
            let run = move |worker| {
                work(worker);
                Ok(())
            };
            return say_pools(service.run_threads(run).unwrap_or_else(|error| end_with_pool(&error)));
        }
    };
    match started {
        Ok(Role::Parent(report)) => say_pools(report),
        Ok(Role::Worker(worker)) => {
            watch(WATCHDOG);
            work(worker);
            exit(0)
        }
        Ok(role) => panic!("unknown role {role:?}"),
        Err(error) => end_with_pool(&error),
    }
}

fn end_with_pool(error: &Error) -> ! {
    say(&format!("error in pool {:?}", error.pool()));
    end_with(error)
}

fn say_pools(report: Report) -> Report {
    for pool in report.pools() {
        let workers = pool.workers().len();
        assert!(pool.workers().iter().all(|worker| worker.pool() == pool.name()));
        let result = format!("{} restarts, success {}", pool.restarts(), pool.is_success());
        say(&format!("pool {}: {}, {workers} workers, {result}", pool.name(), pool.reason()));
    }
    report
}

pub fn web_and_jobs(web: Prefork, jobs: Prefork) -> Supervisor {
    Supervisor::new().pool("web", web).pool("jobs", jobs)
}

fn two_and_three() -> Report {
    serve_pools(web_and_jobs(pool(2), pool(3)), |worker| {
        say(&format!("one of {} in {}", worker.worker_count(), worker.pool()));
        be_ready_and_drain(&worker);
    })
}

pub fn two_and_two() -> Report {
    serve_pools(web_and_jobs(pool(2), pool(2)), |worker| be_ready_and_drain(&worker))
}

fn one_named_pool() -> Report {
    serve_pools(Supervisor::new().pool("web", pool(1)), |worker| be_ready_and_drain(&worker))
}

/// The first process of each pool fails after it was ready. Both pools together have more failures than one may have.
fn each_fails_once() -> Report {
    let one = || pool(1).max_restarts(1);
    serve_pools(web_and_jobs(one(), one()), |worker| {
        if worker.generation() > 0 {
            return be_ready_and_drain(&worker);
        }
        say_up(&worker);
        worker.ready();
        fail(3);
    })
}

/// No worker sends heartbeats, except the second process of the pool `web`.
fn web_hangs() -> Report {
    let web = pool(1).heartbeat_timeout(Duration::from_secs(1));
    serve_pools(web_and_jobs(web, pool(1)), |worker| {
        if worker.pool() == "jobs" {
            return be_ready_and_drain(&worker);
        }
        beat_or_hang(&worker, worker.generation() == 0);
    })
}

/// All workers of the second pool send heartbeats, except the first process of worker 1.
fn one_job_worker_hangs() -> Report {
    let jobs = pool(2).heartbeat_timeout(Duration::from_secs(1));
    serve_pools(web_and_jobs(pool(1), jobs), |worker| {
        if worker.pool() == "web" {
            return be_ready_and_drain(&worker);
        }
        beat_or_hang(&worker, worker.id() == 1 && worker.generation() == 0);
    })
}

fn beat_or_hang(worker: &Worker, hangs: bool) {
    worker.enable_graceful_stop();
    say_up(worker);
    worker.ready();
    if hangs {
        idle();
    }
    while !worker.wait_for_stop(Some(Duration::from_millis(100))) {
        worker.heartbeat();
    }
}

fn jobs_live_shortly() -> Report {
    let jobs = pool(1).max_lifetime(Duration::from_millis(200));
    serve_pools(web_and_jobs(pool(1), jobs), |worker| be_ready_and_drain(&worker))
}

/// Returns the address that the pool listens on, as the log names it.
fn address(daemon: &mut Daemon, pool: &str) -> SocketAddr {
    let line = daemon.wait_for(&format!("log {pool}: Listening on "));
    line.rsplit(' ').next().expect("an address").parse().expect("an address")
}

fn ask(address: SocketAddr) -> String {
    let client = TcpStream::connect(address).expect("a listening socket");
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).expect("an answer");
    line.trim_end().to_owned()
}

/// Each worker answers its clients with the name of its pool. The pool `jobs` stops when the gate opens.
fn with_listeners() -> Report {
    let gate = Gate::new();
    let one = || pool(1).listen("127.0.0.1:0");
    serve_pools(web_and_jobs(one(), one()), move |worker| {
        worker.enable_graceful_stop();
        assert_eq!(worker.listeners().len(), 1);
        let worker = Arc::new(worker);
        let clients = answer_clients(&worker, worker.pool().to_owned());
        say_up(&worker);
        worker.ready();
        if worker.pool() == "jobs" {
            gate.pass();
            worker.stop_pool();
        }
        drain(&worker);
        clients.join().expect("a thread");
    })
}

fn web_cannot_be_replaced() -> Report {
    serve_pools(web_and_jobs(pool(2), pool(2)), |worker| {
        if worker.pool() == "web" && worker.generation() > 0 {
            fail(7);
        }
        be_ready_and_drain(&worker);
    })
}

/// Each request is made when the one before has taken effect.
fn requests_in_pools() -> Report {
    let mut ready = 0;
    let service = web_and_jobs(pool(2), pool(2)).on_event(move |event, handle| {
        let jobs = handle.in_pool("jobs");
        match event {
            Event::Ready { process } => {
                ready += 1;
                if ready == 4 {
                    handle.in_pool("mail").scale(9);
                    jobs.scale(3);
                } else if (process.pool, process.id, process.generation) == ("jobs", 2, 0) {
                    handle.in_pool("web").replace(1);
                } else if (process.pool, process.id) == ("web", 2) {
                    handle.stop();
                }
            }
            Event::Exited { process, .. } if (process.pool, process.id, process.generation) == ("web", 1, 0) => {
                jobs.roll();
            }
            Event::RollingRestartFinished { .. } if event.pool() == "jobs" => jobs.stop(),
            Event::PoolEnded { pool: "jobs", .. } => {
                jobs.scale(2);
                handle.scale(3);
            }
            _ => {}
        }
    });
    serve_pools(service, |worker| be_ready_and_drain(&worker))
}
