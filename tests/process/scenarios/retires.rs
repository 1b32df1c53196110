//! Tests of `Worker::retire`: a worker requests its own replacement.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use taskfork::{Connection, Prefork, Report, RestartPolicy};

use crate::Scenario;
use crate::os::Signal;
use crate::program::{EVER, drain, own_host, say, serve, up, up_until_signal};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_retiring_worker_is_replaced_new_process_first", first_retires, |daemon| {
            let old = daemon.workers(2);
            daemon.send(old[1], Signal::SIGUSR2);
            let new = daemon.worker();
            assert_eq!(new.id, 1);
            daemon.wait_for_times("drained 1", 1);
            assert_eq!(daemon.count(&format!("log {} has retired, replacing it", old[1])), 1);
            daemon.wait_for_times(&format!("log {} exited normally", old[1]), 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("has retired"), 1, "further calls have no effect:\n{}", daemon.transcript());
            assert!(daemon.said("in all: 0 restarts"), "{}", daemon.transcript());
            assert!(daemon.said("worker 0: 1 processes") && daemon.said("worker 1: 2 processes"));
        }),
        Scenario::reporting("policy_never_does_not_prevent_a_retirement", first_retires_never_restarted, |daemon| {
            let old = daemon.workers(2);
            daemon.send(old[1], Signal::SIGUSR2);
            assert_eq!(daemon.worker().id, 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("in all: 0 restarts"), "{}", daemon.transcript());
        }),
        Scenario::reporting("retirement_waits_until_the_process_is_ready", retires_before_ready, |daemon| {
            let old = daemon.worker();
            daemon.send(old, Signal::SIGUSR2);
            daemon.worker();
            daemon.wait_for("drained 0");
            let retires = format!("{old} has retired");
            assert!(daemon.said_before(&format!("{old} is ready"), &retires), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("a_worker_that_retires_and_exits_is_replaced", retires_and_exits, |daemon| {
            daemon.worker();
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("in all: 0 restarts"), "{}", daemon.transcript());
            assert!(daemon.said("worker 0: 2 processes"), "{}", daemon.transcript());
        }),
        Scenario::reporting("a_hundred_retirements_cost_no_restart", all_retire, |daemon| {
            daemon.wait_for_times("has retired", GENERATIONS * WORKERS);
            daemon.wait_for_times("up ", (GENERATIONS + 1) * WORKERS);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("has retired"), GENERATIONS * WORKERS);
            assert_eq!(daemon.count("drained "), (GENERATIONS + 1) * WORKERS);
            assert!(daemon.said("in all: 0 restarts"), "{}", daemon.transcript());
        }),
        Scenario::reporting("retiring_in_a_stop_has_no_effect", retires_in_a_stop, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("has retired"), "{}", daemon.transcript());
            assert_eq!(daemon.count("up "), 2);
        }),
        Scenario::reporting("retiring_under_load_loses_no_request", serves_and_retires, |daemon| {
            let line = daemon.wait_for("address ");
            let address = line.trim_start_matches("address ").parse().expect("an address");
            let clients = Clients::start(address);
            daemon.wait_for_times("has retired", 12);
            let answers = clients.stop();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(answers > 0);
            assert!(daemon.said("in all: 0 restarts"), "{}", daemon.transcript());
        }),
    ]
}

fn print_report(report: Report) -> Report {
    say(&format!("in all: {} restarts", report.restarts()));
    for (id, worker) in report.workers().iter().enumerate() {
        say(&format!("worker {id}: {} processes", worker.processes()));
    }
    report
}

/// The first process of worker 1 retires at SIGUSR2, very often, and then goes on until its stop request.
fn serve_with_retirement(service: Prefork) -> Report {
    print_report(serve(service.max_restarts(0).ready_timeout(EVER), |worker| {
        assert!(!worker.stop_requested());
        worker.ready();
        if (worker.id(), worker.generation()) != (1, 0) {
            up(worker.id());
            return drain(&worker);
        }
        up_until_signal(1, Signal::SIGUSR2);
        for _ in 0..100_000 {
            worker.retire();
        }
        drain(&worker);
    }))
}

fn first_retires() -> Report {
    serve_with_retirement(Prefork::new().workers(2))
}

fn first_retires_never_restarted() -> Report {
    serve_with_retirement(Prefork::new().workers(2).restart_policy(RestartPolicy::Never))
}

fn retires_before_ready() -> Report {
    serve(Prefork::new().workers(1).ready_timeout(EVER), |worker| {
        assert!(!worker.stop_requested());
        if worker.generation() == 0 {
            worker.retire();
            up_until_signal(0, Signal::SIGUSR2);
        } else {
            up(0);
        }
        worker.ready();
        drain(&worker);
    })
}

/// The first process exits with status 0 right after its request, so the parent notices both at the same time.
fn retires_and_exits() -> Report {
    print_report(serve(Prefork::new().workers(1).max_restarts(0), |worker| {
        assert!(!worker.stop_requested());
        up(0);
        if worker.generation() == 0 {
            worker.retire();
        } else {
            drain(&worker);
        }
    }))
}

const WORKERS: usize = 25;
const GENERATIONS: usize = 4;

/// Each process retires at its start, until each worker has had enough processes.
fn all_retire() -> Report {
    print_report(serve(Prefork::new().workers(WORKERS).max_restarts(0).ready_timeout(EVER), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        if (worker.generation() as usize) < GENERATIONS {
            worker.retire();
        }
        worker.ready();
        drain(&worker);
    }))
}

fn retires_in_a_stop() -> Report {
    serve(Prefork::new().workers(2), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
        worker.retire();
    })
}

/// Each process retires after its tenth request.
fn serves_and_retires() -> Report {
    let own = SocketAddr::from((own_host(std::process::id()), 0));
    print_report(serve(Prefork::new().workers(4).max_restarts(0).listen(own), |worker| {
        worker.enable_graceful_stop();
        let listener = &worker.listeners()[0];
        if worker.generation() == 0 {
            say(&format!("address {}", listener.as_tcp().expect("TCP").local_addr().expect("an address")));
        }
        worker.ready();
        for requests in 1.. {
            match listener.accept() {
                Err(error) if error.kind() == ErrorKind::Interrupted => return,
                accepted => answer(accepted.expect("a connection").0),
            }
            if requests >= 10 {
                worker.retire();
            }
        }
    }))
}

pub(super) fn answer(mut client: Connection) {
    let mut line = String::new();
    BufReader::new(&mut client).read_line(&mut line).expect("a request");
    write!(client, "{line}").expect("a client");
}

/// Threads of the test that send one request after the other, and fail if a request gets no answer.
pub(super) struct Clients {
    is_over: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Clients {
    pub fn start(address: SocketAddr) -> Clients {
        let is_over = Arc::<AtomicBool>::default();
        let answers = Arc::<AtomicUsize>::default();
        let threads = (0..4).map(|_| {
            let flag = Arc::clone(&is_over);
            let counter = Arc::clone(&answers);
            thread::spawn(move || {
                while !flag.load(Ordering::Relaxed) {
                    request(address);
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Clients { is_over, answers, threads }
    }

    pub fn stop(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|client| client.join().expect("every request is answered"));
        self.answers.load(Ordering::Relaxed)
    }
}

fn request(address: SocketAddr) {
    let client = TcpStream::connect(address).expect("a listening socket");
    writeln!(&client, "hello").expect("a connection");
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).expect("an answer");
    assert_eq!(line, "hello\n", "the worker answers every connection that it accepts");
}
