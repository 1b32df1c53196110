//! Rolling restarts with `max_surge` and `max_unavailable`.

use std::fs::{self, File};
use std::net::TcpListener;

use taskfork::{Prefork, Report, Worker};

use crate::Scenario;
use crate::os::{Gate, Signal};
use crate::program::{EVER, drain, fail, own_host, say, scratch, serve, start_count, up};

const WORKERS: usize = 4;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("long_drains_do_not_delay_a_rolling_restart", long_polls, |daemon| {
            let old = daemon.workers(WORKERS);
            daemon.signal(Signal::SIGHUP);
            let new = daemon.workers(WORKERS);
            daemon.wait_for("log Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for (old, new) in old.iter().zip(new) {
                assert_eq!(old.id, new.id);
                let drained = format!("drained {}", old.id);
                assert!(daemon.said_before(&format!("draining {}", WORKERS - 1), &drained), "{}", daemon.transcript());
            }
            assert!(!daemon.said("restarting"), "{}", daemon.transcript());
        }),
        Scenario::reporting("max_surge_workers_are_replaced_together", all_at_once, |daemon| {
            daemon.workers(WORKERS);
            daemon.wait_for_times("is ready", WORKERS);
            daemon.signal(Signal::SIGHUP);
            daemon.workers(WORKERS);
            daemon.wait_for("log Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("workers_that_own_a_lock_roll_without_surge", with_locks, |daemon| {
            let old = daemon.workers(2);
            daemon.signal(Signal::SIGHUP);
            for old in old {
                let new = daemon.worker();
                assert_eq!(new.id, old.id);
                assert!(daemon.said(&format!("drained {}", old.id)), "{}", daemon.transcript());
            }
            daemon.wait_for("log Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("restarting"), "{}", daemon.transcript());
        }),
        Scenario::reporting("workers_that_own_a_port_roll_without_surge", with_ports, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGHUP);
            daemon.workers(2);
            daemon.wait_for("log Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("restarting"), "{}", daemon.transcript());
        })
        .needs(|| cfg!(not(any(target_os = "linux", windows))).then_some("loopback addresses for each program")),
        Scenario::reporting("without_surge_a_failed_new_process_is_restarted", second_fails, |daemon| {
            let old = daemon.workers(2);
            daemon.wait_for_times("is ready", 2);
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log Rolling restart aborted: the replacement of worker ");
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("restarting"), 1, "{}", daemon.transcript());
            assert!(daemon.said_before("log Rolling restart aborted", &format!("log {} exited normally", old[1])));
        }),
    ]
}

/// On a stop request, each first process waits until all four first processes have got one, as if each had a client
/// with a long poll.
fn long_polls() -> Report {
    let gate = Gate::new();
    let drains = start_count();
    serve(Prefork::new().workers(WORKERS).ready_timeout(EVER).graceful_timeout(EVER), move |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        worker.ready();
        wait_for_stop(&worker);
        if worker.generation() == 0 {
            say(&format!("draining {}", worker.id()));
            if drains() == WORKERS as u64 {
                gate.open(WORKERS);
            }
            gate.pass();
        }
        say(&format!("drained {}", worker.id()));
    })
}

/// Each new process becomes ready only when all new processes have started.
fn all_at_once() -> Report {
    let gate = Gate::new();
    let starts = start_count();
    serve(Prefork::new().workers(WORKERS).ready_timeout(EVER).max_surge(WORKERS), move |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        if worker.generation() == 1 {
            if starts() == WORKERS as u64 {
                gate.open(WORKERS);
            }
            gate.pass();
        }
        worker.ready();
        drain(&worker);
    })
}

/// A worker fails if the file that it creates exists already. The file is removed before the worker exits.
fn with_locks() -> Report {
    serve(one_after_the_other(), |worker| {
        worker.enable_graceful_stop();
        let lock = scratch().join(format!("lock-{}", worker.id()));
        File::options().write(true).create_new(true).open(&lock).expect("a lock that no other process holds");
        up(worker.id());
        worker.ready();
        drain(&worker);
        fs::remove_file(lock).expect("the lock");
    })
}

/// Each worker listens on a port of its own.
fn with_ports() -> Report {
    serve(one_after_the_other(), |worker| {
        worker.enable_graceful_stop();
        let listener = own_port(worker.id());
        up(worker.id());
        worker.ready();
        drain(&worker);
        drop(listener);
    })
}

/// Listens on the port of this worker. The first process chooses the port, and the next ones find it in a file.
fn own_port(id: usize) -> TcpListener {
    let file = scratch().join(format!("port-{id}"));
    if let Ok(address) = fs::read_to_string(&file) {
        return TcpListener::bind(address).expect("a port that no other process has");
    }
    let listener = TcpListener::bind((own_host(std::process::id()), 0)).expect("a port");
    fs::write(&file, listener.local_addr().expect("an address").to_string()).expect("a file");
    listener
}

fn second_fails() -> Report {
    let starts = start_count();
    serve(one_after_the_other(), move |worker| {
        worker.enable_graceful_stop();
        if starts() == 3 {
            fail(7);
        }
        up(worker.id());
        worker.ready();
        drain(&worker);
    })
}

fn one_after_the_other() -> Prefork {
    Prefork::new().workers(2).ready_timeout(EVER).max_surge(0).max_unavailable(1)
}

fn wait_for_stop(worker: &Worker) {
    assert!(worker.wait_for_stop(None));
}
