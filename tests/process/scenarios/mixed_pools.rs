//! Services whose pools have different kinds of workers, and what a worker inherits of the other pools. Linux only.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use taskfork::{Backend, Event, ListenConfig, Prefork, Report, RestartPolicy, Role, Supervisor, WorkResult, Worker};

use super::refused_clients::wait_until_refused;
use crate::Scenario;
use crate::daemon::{Daemon, kill};
use crate::interposed::BEFORE_PWRITE;
use crate::os::{Signal, own_descriptors, raise, state};
use crate::program::{backend, drain, end_with, own_host, prepare, say, scratch};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("sigterm_during_a_spawn_stops_all_pools", terminated_during_a_spawn, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("log jobs: Stopping 1 processes"), "{}", daemon.transcript());
            assert!(daemon.said("report: stopped"), "{}", daemon.transcript());
        })
        .forking(),
        Scenario::reporting("forks_next_to_spawned_workers_keep_their_signals", prints_signals, |daemon| {
            daemon.wait_for("web 0 keeps its signals: true");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .forking(),
        Scenario::reporting("exits_in_fork_and_spawn_pools_are_noticed", forks_and_spawns, exits_are_noticed).forking(),
        Scenario::reporting("exits_in_thread_and_spawn_pools_are_noticed", threads_and_spawns, |daemon| {
            daemon.wait_for_times("up ", 2);
            daemon.signal(Signal::SIGUSR1);
            daemon.wait_for("jobs reopened");
            exits_are_noticed(daemon);
        })
        .forking(),
        Scenario::spawning("a_worker_of_a_pool_that_is_gone_is_refused", renames_its_pool, |daemon| {
            daemon.ends_with(3);
            let error = "error backend: the parent has a pool jobs, which this program does not have";
            assert_eq!(daemon.count(error), 1, "{}", daemon.transcript());
            assert!(daemon.said("report: failed to start: jobs child 0 "), "{}", daemon.transcript());
        }),
        Scenario::spawning("a_spawned_program_never_becomes_a_second_parent", forks_instead, |daemon| {
            daemon.ends_with(3);
            let error = "error backend: a parent has started this process as a worker, but this call spawns no workers";
            assert_eq!(daemon.count(error), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("log jobs: Starting"), 1, "{}", daemon.transcript());
        }),
        Scenario::reporting("names_and_errors_of_workers_contain_the_pool", fails_in_a_pool, |daemon| {
            daemon.wait_for("up jobs 1 is shop/jobs/1");
            daemon.wait_for("jobs worker 0: no work");
            daemon.wait_for("the parent is shop");
            daemon.ends_with(1);
        })
        .for_processes(),
        Scenario::reporting("a_stopped_pool_refuses_its_clients", stops_one_pool, |daemon| {
            let line = daemon.wait_for("log web: Listening on ");
            let address: SocketAddr = line.rsplit(' ').next().expect("an address").parse().expect("an address");
            daemon.wait_for_times("up ", 2);
            let client = TcpStream::connect(address).expect("a listener");
            daemon.wait_for("web has stopped listening");
            wait_until_refused(address);
            drop(client);
            daemon.wait_for("log web: The pool has ended");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .forking(),
        Scenario::reporting("a_forked_worker_inherits_no_other_pool", prints_descriptors, |daemon| {
            daemon.ends_with(0);
            let of = |service: &str| daemon.line(service).replacen(service, "", 1);
            assert_eq!(of("among four pools "), of("alone "), "{}", daemon.transcript());
        })
        .forking(),
    ]
}

fn exits_are_noticed(daemon: &mut Daemon) {
    daemon.wait_for_times("up ", 2);
    let line = daemon.line("up jobs 0 ").to_owned();
    let pid: u32 = line.rsplit(' ').next().expect("a pid").parse().expect("a pid");
    kill(pid, Signal::SIGKILL);
    daemon.wait_for("killed by signal 9, restarting");
    daemon.wait_for("up jobs 0 ");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("web: Rolling restart done");
    daemon.wait_for("jobs: Rolling restart done");
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
}

fn pool(workers: usize, backend: Backend) -> Prefork {
    Prefork::new().workers(workers).backend(backend)
}

fn serve(service: Supervisor, work: impl Fn(&Worker)) -> Report {
    prepare();
    match service.start() {
        Ok(Role::Parent(report)) => report,
        Ok(Role::Worker(worker)) => {
            prepare();
            work(&worker);
            std::process::exit(0)
        }
        Ok(role) => panic!("unknown role {role:?}"),
        Err(error) => end_with(&error),
    }
}

fn up(worker: &Worker) {
    say(&format!("up {} {} {}", worker.pool(), worker.id(), std::process::id()));
}

fn serve_and_drain(worker: &Worker) {
    worker.enable_graceful_stop();
    up(worker);
    drain(worker);
}

/// The parent gets SIGTERM while it starts the worker of the second pool.
fn terminated_during_a_spawn() -> Report {
    BEFORE_PWRITE.set(|| raise(Signal::SIGTERM));
    let service = Supervisor::new().pool("web", pool(1, Backend::Fork)).pool("jobs", pool(1, Backend::Spawn));
    serve(service, serve_and_drain)
}

fn prints_signals() -> Report {
    prepare();
    let before = state();
    let service = Supervisor::new().pool("jobs", pool(1, Backend::Spawn)).pool("web", pool(1, Backend::Fork));
    serve(service, move |worker| {
        if worker.pool() == "web" {
            say(&format!("web {} keeps its signals: {}", worker.id(), before == state()));
        }
        drain(worker);
    })
}

fn forks_and_spawns() -> Report {
    let service = Supervisor::new().pool("web", pool(1, Backend::Fork)).pool("jobs", pool(1, Backend::Spawn));
    serve(service, serve_and_drain)
}

fn threads_and_spawns() -> Report {
    prepare();
    let work = |worker: Worker| -> WorkResult {
        worker.enable_graceful_stop();
        if worker.pool() == "jobs" {
            let reopen = || {
                let line = b"jobs reopened\n";
                // SAFETY: write(2) is async-signal-safe, and the buffer is valid for its length.
                unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
            };
            // SAFETY: the handler is async-signal-safe.
            unsafe { signal_hook::low_level::register(libc::SIGUSR1, reopen) }?;
        }
        up(&worker);
        drain(&worker);
        Ok(())
    };
    let service = Supervisor::new().pool("web", Prefork::new().workers(1)).pool("jobs", pool(1, Backend::Spawn));
    service.run_threads(work).unwrap_or_else(|error| end_with(&error))
}

/// The worker of the first pool stops its pool when it has a client, and serves this client until it leaves. The worker
/// of the other pool is forked later.
fn stops_one_pool() -> Report {
    let address = format!("{}:0", own_host(std::process::id()));
    // The parent must not end the worker, because the end of the pool would close the listener as well.
    let web = pool(1, Backend::Fork).listen(address).graceful_timeout(Duration::from_secs(600));
    let service = Supervisor::new().pool("web", web).pool("jobs", pool(1, Backend::Fork));
    serve(service, |worker| {
        worker.enable_graceful_stop();
        up(worker);
        if worker.pool() == "web" {
            let (mut client, _) = worker.listeners()[0].accept().expect("a client");
            worker.stop_pool();
            worker.stop_listening();
            say("web has stopped listening");
            assert_eq!(client.read(&mut [0]).expect("the end"), 0);
        } else {
            drain(worker);
        }
    })
}

/// Prints how many descriptors a worker has: in a service with its pool only, and next to pools with sockets, shared
/// memory and an executable.
fn prints_descriptors() -> Report {
    prepare();
    let jobs = || Supervisor::new().pool("jobs", pool(1, Backend::Fork));
    let print = |service: &str| say(&format!("{service} {}", own_descriptors().len()));
    // A spawned worker of the second service also runs this function.
    if std::env::var_os("TASKFORK_WORKER").is_none() {
        serve(jobs(), |_| print("alone"));
    }
    let web = pool(2, Backend::Fork).listen("127.0.0.1:0").listen(ListenConfig::from("127.0.0.1:0").per_worker());
    let path = scratch().join("socket");
    let spawned = || pool(1, Backend::Spawn).listen("udp:127.0.0.1:0");
    let service = Supervisor::new()
        .pool("web", web)
        .pool("one", spawned())
        .pool("two", spawned().listen(ListenConfig::unix(path)))
        .pool("jobs", pool(1, Backend::Fork));
    serve(service, |worker| {
        if worker.pool() == "jobs" {
            print("among four pools");
            worker.stop_all();
        }
        drain(worker);
    })
}

/// The program has another pool when it runs again as a spawned worker.
fn renames_its_pool() -> Report {
    let name = if std::env::var_os("TASKFORK_WORKER").is_none() { "jobs" } else { "mail" };
    serve(Supervisor::new().pool(name, pool(1, Backend::Spawn)), drain)
}

/// The program forks its workers when it runs again as a spawned worker.
fn forks_instead() -> Report {
    let backend = if std::env::var_os("TASKFORK_WORKER").is_none() { Backend::Spawn } else { Backend::Fork };
    serve(Supervisor::new().pool("jobs", pool(1, backend)), drain)
}

/// Worker 0 returns an error when worker 1 has printed its name. The parent prints its name after the first exit.
fn fails_in_a_pool() -> Report {
    prepare();
    let comm = || fs::read_to_string("/proc/self/comm").expect("a name").trim_end().to_owned();
    let service = Supervisor::new().name("shop").on_event(move |event, _| {
        if let Event::Exited { .. } = event {
            say(&format!("the parent is {}", comm()));
        }
    });
    let jobs = pool(2, backend().expect("processes")).restart_policy(RestartPolicy::Never);
    let report = service.pool("jobs", jobs).run(move |worker| {
        prepare();
        let mark = scratch().join("named");
        if worker.id() == 1 {
            say(&format!("up jobs 1 is {}", comm()));
            fs::write(mark, "").expect("a file");
            return Ok(());
        }
        while !mark.exists() {
            std::thread::yield_now();
        }
        Err("no work".into())
    });
    report.unwrap_or_else(|error| end_with(&error))
}
