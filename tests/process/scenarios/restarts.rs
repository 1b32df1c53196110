//! Failures that must not end a service, and failures that must.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use taskfork::{Prefork, Report, Worker};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::Signal;
use crate::program::{EVER, drain, fail, own_host, say, scratch, serve, up};

/// The default limit of `fork_processes` and of Tornado.
const TORNADO_LIMIT: usize = 100;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("an_unavailable_dependency_does_not_end_the_service", needs_a_dependency, |daemon| {
            let workers = daemon.workers(4);
            let away = daemon.scratch().join(AWAY);
            File::create(&away).expect("a file");
            for worker in workers {
                daemon.send(worker, Signal::SIGKILL);
            }
            daemon.wait_for_times("restarting", TORNADO_LIMIT + 20);
            fs::remove_file(away).expect("the file");
            daemon.workers(4);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped"), "{}", daemon.transcript());
        }),
        Scenario::reporting("requests_that_crash_workers_do_not_end_the_service", answers_after_ready, |daemon| {
            daemon.wait_for_times("is ready", 2);
            survives_crashing_requests(daemon);
        })
        .for_processes(),
        Scenario::reporting("after_ten_seconds_crashes_do_not_end_the_service", answers, |daemon| {
            // The rule under test begins when a process is 10 s old. The parent has replaced an older one.
            daemon.wait_for("started, generation 1");
            survives_crashing_requests(daemon);
        })
        .for_processes(),
        Scenario::reporting("ten_failures_in_a_row_fail_the_startup", second_cannot_start, |daemon| {
            daemon.ends_with(3);
            let failed = daemon.failed(7);
            assert_eq!(daemon.count(&format!("{failed}, restarting")), 9, "{}", daemon.transcript());
            assert!(daemon.said("log Startup failed: child 1 ("), "{}", daemon.transcript());
            assert!(daemon.said(&format!("{failed}, 10 failures in a row")), "{}", daemon.transcript());
            assert!(daemon.said("report: failed to start: child 1 ("), "{}", daemon.transcript());
            assert!(daemon.said("drained 0"), "the other worker drains, as in any stop");
        }),
        Scenario::reporting("an_added_worker_that_fails_ten_times_is_removed", added_cannot_start, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTTIN);
            daemon.wait_for("log Worker 1 could not start, removing it");
            daemon.wait_for("log Scaled to 1 workers");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("exits_with_0_at_once_never_fail_the_startup", exits_normally_at_once, |daemon| {
            daemon.wait_for_times("exited normally, restarting", 30);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
    ]
}

/// The name of the file that exists while the dependency is away.
const AWAY: &str = "away";

const SOON: Duration = Duration::from_millis(1);
const LATER: Duration = Duration::from_millis(10);

/// A worker fails at its start while its dependency is away.
fn needs_a_dependency() -> Report {
    let service = Prefork::new().workers(4).ready_timeout(EVER).restart_backoff(SOON, LATER);
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        if scratch().join(AWAY).exists() {
            fail(1);
        }
        worker.ready();
        up(worker.id());
        drain(&worker);
    })
}

/// The parent replaces the only process after three quarters of the lifetime at the earliest. The old process exits
/// first, so each request reaches a process that the parent restarts.
fn answers() -> Report {
    let service = http_service().workers(1).max_lifetime(Duration::from_secs(14));
    serve(service.max_surge(0).max_unavailable(1), |worker| answer(&worker))
}

fn answers_after_ready() -> Report {
    serve(http_service().ready_timeout(EVER), |worker| {
        worker.ready();
        answer(&worker);
    })
}

fn http_service() -> Prefork {
    let own = SocketAddr::from((own_host(std::process::id()), 0));
    let service = Prefork::new().workers(2).listen(own).restart_backoff(SOON, LATER);
    service.on_event(|event, _| {
        if let taskfork::Event::Listening { address, .. } = event {
            say(&format!("address {address}"));
        }
    })
}

/// Answers HTTP requests. The request for `/crash` ends the process.
fn answer(worker: &Worker) {
    loop {
        let (mut client, _) = worker.listeners()[0].accept().expect("a client");
        let mut request = [0; 256];
        let length = client.read(&mut request).unwrap_or(0);
        if request[..length].starts_with(b"GET /crash ") {
            fail(1);
        }
        let _ = client.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nOK");
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut client = TcpStream::connect(address).expect("a listening socket");
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    client.write_all(request.as_bytes()).expect("a connection");
    let mut answer = String::new();
    // A worker that crashes may reset the connection.
    let _ = client.read_to_string(&mut answer);
    answer
}

fn survives_crashing_requests(daemon: &mut Daemon) {
    let address = daemon.line("address ").trim_start_matches("address ").parse().expect("an address");
    for crashes in 1..=TORNADO_LIMIT + 1 {
        assert_eq!(get(address, "/crash"), "");
        // Also reads the log, because the parent would otherwise wait until the test reads it.
        daemon.wait_for_times("exited with status 1, restarting", crashes);
    }
    assert!(get(address, "/").ends_with("OK"));
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
    assert!(!daemon.said("Startup failed"), "{}", daemon.transcript());
}

fn second_cannot_start() -> Report {
    serve(Prefork::new().workers(2).restart_backoff(SOON, LATER), |worker| {
        assert!(!worker.stop_requested());
        if worker.id() == 1 {
            fail(7);
        }
        up(worker.id());
        drain(&worker);
    })
}

fn added_cannot_start() -> Report {
    serve(Prefork::new().workers(1).restart_backoff(SOON, LATER), |worker| {
        assert!(!worker.stop_requested());
        if worker.id() == 1 {
            fail(7);
        }
        up(worker.id());
        drain(&worker);
    })
}

fn exits_normally_at_once() -> Report {
    let service = Prefork::new().workers(1).restart_policy(taskfork::RestartPolicy::Always);
    serve(service.restart_backoff(SOON, LATER), |_| {})
}
