//! The service of the guide: an HTTP server with one worker per CPU.

use std::env;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use taskfork::{ListenConfig, Prefork, Report, WorkResult, Worker};
use tokio::time::sleep;

fn main() -> taskfork::Result<Report> {
    env_logger::init();
    let address = env::args().nth(1).unwrap_or("[::]:8000".into());
    let service = Prefork::new()
        .listen(ListenConfig::from(address).name("http")) // The parent binds it once; all workers share it.
        .ready_timeout(Duration::from_secs(10))
        .heartbeat_timeout(Duration::from_secs(30))
        .graceful_timeout(Duration::from_secs(25));
    #[cfg(unix)]
    let service = service.socket_activation().notify_systemd();
    service.run(|worker| {
        // This runs in a worker. Each worker creates its own runtime.
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(worker))
    })
}

async fn serve(worker: Worker) -> WorkResult {
    let stopped = worker.stopped(); // From now on SIGTERM is a request and does not kill the worker.
    let listener = tokio::net::TcpListener::from_std(worker.tcp("http")?)?;
    let name = format!("worker {}, pid {}\n", worker.id(), process::id());
    let router = Router::new().route("/", get(move || async { name }).post(echo));
    let worker = Arc::new(worker);
    tokio::spawn(send_heartbeats(Arc::clone(&worker)));
    worker.ready();
    let drain = async move {
        stopped.await;
        worker.stop_listening(); // New clients go to other workers. If the service stops, they are refused.
    };
    axum::serve(listener, router).with_graceful_shutdown(drain).await?;
    Ok(())
}

/// Sends back the body of the request.
async fn echo(body: String) -> String {
    body
}

/// Sends heartbeats. Runs on the event loop, so that the heartbeats stop if the event loop hangs.
async fn send_heartbeats(worker: Arc<Worker>) {
    loop {
        worker.heartbeat();
        sleep(Duration::from_secs(10)).await;
    }
}
