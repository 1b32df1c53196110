//! Tests of `max_memory` and `max_requests`: the parent replaces a worker that uses too much memory, or that has
//! completed enough requests.

use std::hint::black_box;
#[cfg(target_os = "linux")]
use std::io::ErrorKind;
#[cfg(target_os = "linux")]
use std::net::SocketAddr;
#[cfg(target_os = "linux")]
use std::time::Duration;

#[cfg(target_os = "linux")]
use taskfork::ListenConfig;
use taskfork::{Prefork, Report};

#[cfg(target_os = "linux")]
use super::privileges::{CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE, drop_capability};
#[cfg(target_os = "linux")]
use super::retires::{Clients, answer};
use crate::Scenario;
#[cfg(target_os = "linux")]
use crate::daemon::{Daemon, Up};
use crate::os::Signal;
use crate::program::{EVER, drain, say, serve, up, up_until_signal};
#[cfg(target_os = "linux")]
use crate::program::{own_host, serve_watched};
#[cfg(target_os = "linux")]
use crate::room::lacks_room;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_worker_that_fills_its_memory_is_replaced", first_grows, |daemon| {
            let old = daemon.workers(2);
            daemon.send(old[1], Signal::SIGUSR2);
            assert_eq!(daemon.worker().id, 1);
            daemon.wait_for_times(&format!("log {} exited normally", old[1]), 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let line = daemon.line(&format!("log {} uses ", old[1])).to_owned();
            assert!(line.ends_with(" MiB of private memory, replacing it"), "{line}");
            // The parent may look before the worker has filled all of it.
            let size = line.split(' ').find_map(|word| word.parse::<usize>().ok().filter(|&size| size >= LIMIT));
            assert!(size.is_some_and(|size| size < 2 * GROWTH), "{line}");
            assert_eq!(daemon.count(" of private memory"), 1, "{}", daemon.transcript());
            assert!(daemon.said("in all: 0 restarts"), "{}", daemon.transcript());
        })
        .for_processes(),
        #[cfg(target_os = "linux")]
        Scenario::reporting("memory_of_the_parent_replaces_no_forked_worker", first_grows_in_large_service, |daemon| {
            // The parent checks the last worker first. So it has checked worker 2 once it replaces worker 1.
            let old = daemon.workers(3);
            daemon.send(old[1], Signal::SIGUSR2);
            assert_eq!(daemon.worker().id, 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count(" of private memory"), 1, "{}", daemon.transcript());
        })
        .forking(),
        #[cfg(target_os = "linux")]
        Scenario::reporting("a_refused_reading_of_memory_is_logged_once", workers_hide_their_memory, |daemon| {
            let old = daemon.workers(2);
            daemon.wait_for_times("sampled", 3);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("log cannot read the memory of "), 1, "{}", daemon.transcript());
            let end = "so it is not replaced if it exceeds max_memory: Permission denied (os error 13)";
            let is_warned = |worker: &Up| daemon.said(&format!("log cannot read the memory of {worker}, {end}"));
            assert!(old.iter().any(is_warned), "{}", daemon.transcript());
            assert!(!daemon.said("replacing it"), "{}", daemon.transcript());
        })
        .for_processes(),
        #[cfg(target_os = "linux")]
        Scenario::reporting("a_thousand_recycles_under_load_lose_no_request", many_serve_few_requests, |daemon| {
            recycles_lose_no_request(daemon, 1000);
        })
        .needs(|| lacks_room(700, 256 << 20))
        .forking(),
        #[cfg(target_os = "linux")]
        Scenario::reporting("recycles_with_a_shared_socket_lose_no_request", share_a_socket, |daemon| {
            recycles_lose_no_request(daemon, 60);
        })
        .forking(),
        Scenario::threading("max_memory_is_refused_for_worker_threads", first_grows, |daemon| {
            daemon.ends_with(1);
            assert!(daemon.said("error max_memory: worker threads share their memory with the parent"));
        }),
    ]
}

/// The memory that a worker may have, in MiB.
const LIMIT: usize = 128;
/// The memory that the growing worker fills, in MiB.
const GROWTH: usize = 192;

fn filled(mebibytes: usize) -> Vec<u8> {
    black_box(vec![1; mebibytes << 20])
}

/// The first process of worker 1 fills memory at SIGUSR2, and then waits for its stop request.
fn serve_growing(workers: usize) -> Report {
    let service = Prefork::new().workers(workers).max_restarts(0).ready_timeout(EVER);
    let report = serve(service.max_memory((LIMIT << 20) as u64), |worker| {
        assert!(!worker.stop_requested());
        worker.ready();
        if (worker.id(), worker.generation()) != (1, 0) {
            up(worker.id());
            return drain(&worker);
        }
        up_until_signal(1, Signal::SIGUSR2);
        let memory = filled(GROWTH);
        drain(&worker);
        drop(memory);
    });
    say(&format!("in all: {} restarts", report.restarts()));
    report
}

/// The workers forbid other processes to read their memory, and the parent lacks the capabilities to do so anyway. Forked
/// workers inherit both from the parent. Prints `sampled` at each new sample.
#[cfg(target_os = "linux")]
fn workers_hide_their_memory() -> Report {
    // Newer kernels also accept the last two.
    [CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON].into_iter().for_each(drop_capability);
    // SAFETY: prctl(2) takes integers here.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, 0);
    let mut last_age = Duration::MAX;
    let service = Prefork::new().workers(2).max_memory(1).on_interval(Duration::from_millis(10), move |status, _| {
        // There is no worker yet if the first interval is over before the first start.
        let first = status.pools()[0].workers().first();
        let Some(sample) = first.and_then(|worker| worker.last_private_memory()) else { return };
        if sample.age() < last_age {
            say("sampled");
        }
        last_age = sample.age();
    });
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

#[cfg(target_os = "linux")]
fn recycles_lose_no_request(daemon: &mut Daemon, recycles: usize) {
    let line = daemon.wait_for("address ");
    let address = line.trim_start_matches("address ").parse().expect("an address");
    let clients = Clients::start(address);
    daemon.wait_for_times("requests, replacing it", recycles);
    let answers = clients.stop();
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
    assert!(answers >= 3 * recycles, "{answers} answers");
    assert!(daemon.said("in all: 0 restarts"), "{}", daemon.transcript());
    // The stop request at the end may reach a process that has not enabled the graceful stop yet.
    assert!(!daemon.said("killed by signal 9"), "{}", daemon.transcript());
}

/// Each process is replaced after three or four requests, but not before it is a second old.
#[cfg(target_os = "linux")]
fn serve_few_requests(workers: usize, set_up: fn(ListenConfig) -> ListenConfig) -> Report {
    let own = SocketAddr::from((own_host(std::process::id()), 0));
    let service = Prefork::new().workers(workers).max_surge(workers).max_restarts(0).ready_timeout(EVER);
    let report = serve_watched(service.max_requests(4).listen(set_up(own.into())), 180, |worker| {
        worker.enable_graceful_stop();
        let listener = &worker.listeners()[0];
        if (worker.id(), worker.generation()) == (0, 0) {
            say(&format!("address {}", listener.as_tcp().expect("TCP").local_addr().expect("an address")));
        }
        worker.ready();
        loop {
            match listener.accept() {
                Err(error) if error.kind() == ErrorKind::Interrupted => return,
                accepted => {
                    let unit = worker.begin_work();
                    answer(accepted.expect("a connection").0);
                    drop(unit);
                }
            }
        }
    });
    say(&format!("in all: {} restarts", report.restarts()));
    report
}

/// Each worker has its own socket, because each client wakes all workers that share one.
#[cfg(target_os = "linux")]
fn many_serve_few_requests() -> Report {
    serve_few_requests(340, ListenConfig::per_worker)
}

#[cfg(target_os = "linux")]
fn share_a_socket() -> Report {
    serve_few_requests(20, |listener| listener)
}

fn first_grows() -> Report {
    serve_growing(2)
}

/// Each worker shares more memory with the parent than it may have.
#[cfg(target_os = "linux")]
fn first_grows_in_large_service() -> Report {
    let shared = filled(GROWTH);
    let report = serve_growing(3);
    drop(black_box(shared));
    report
}
