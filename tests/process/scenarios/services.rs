//! Async services whose worker ends while a client is connected.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use taskfork::{Prefork, Report, RestartPolicy, WorkResult, Worker};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::stopped::single;
use crate::Scenario;
use crate::os::Signal;
use crate::program::{end_with, prepare, run};

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario::reporting("async_service_that_ends_is_restarted_for_its_clients", end_thrice, |daemon| {
        let line = daemon.wait_for("log Listening on ");
        let address: SocketAddr = line.rsplit(' ').next().expect("an address").parse().expect("an address");
        for generation in 0..=ENDS.len() {
            assert_eq!(answer(address, "/"), format!("generation {generation}"));
            if generation < ENDS.len() {
                assert_eq!(answer(address, "/end"), "");
            }
        }
        daemon.signal(Signal::SIGTERM);
        daemon.ends_with(0);
    })]
}

/// Sends a request, and reads until the service closes the connection. Returns the body of the answer. The connection
/// may wait in the queue of the listener until the next process serves.
fn answer(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").as_bytes())
        .expect("sent");
    let mut answer = String::new();
    // A reset means as much as the end: the worker is gone.
    let _ = stream.read_to_string(&mut answer);
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

/// The ways in which the worker ends while a client waits for its answer, by generation.
const ENDS: [fn() -> WorkResult; 3] = [|| Err("an error".into()), || panic!("a panic"), || Ok(())];

fn end_thrice() -> Report {
    prepare();
    let service = Prefork::new().workers(1).restart_policy(RestartPolicy::Always).listen("127.0.0.1:0");
    let report = run(service, |worker| {
        prepare();
        single().block_on(serve(worker))
    });
    report.unwrap_or_else(|error| end_with(&error))
}

/// Serves as the service of the guide does, until a client asks for the end.
async fn serve(worker: Worker) -> WorkResult {
    let listener = worker.tcp(0)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let generation = worker.generation();
    let end = Arc::new(Notify::new());
    let end_router = Arc::clone(&end);
    let router = Router::new().route("/", get(move || async move { format!("generation {generation}") })).route(
        "/end",
        get(move || async move {
            end_router.notify_one();
            std::future::pending::<()>().await;
        }),
    );
    let service = axum::serve(listener, router).with_graceful_shutdown(worker.stopped());
    tokio::spawn(send_heartbeats(worker));
    tokio::select! {
        served = service => Ok(served?),
        () = end.notified() => ENDS[usize::try_from(generation)?](),
    }
}

async fn send_heartbeats(worker: Worker) {
    worker.ready();
    loop {
        worker.heartbeat();
        sleep(Duration::from_secs(1)).await;
    }
}
