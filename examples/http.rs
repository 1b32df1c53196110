//! An HTTP daemon with several worker processes on one port. No request is lost when workers are replaced, added or
//! removed.
//!
//! ```text
//! $ cargo run --example http -- --workers 2
//! $ curl localhost:8000         # worker 1 (pid 71)
//! $ kill -9 71                  # the worker is restarted at once; only requests that it had accepted are lost
//! $ kill -HUP <the parent>      # replaces every worker, one at a time; the old process stops when the new one is ready
//! $ kill -USR2 <the parent>     # upgrades to the program that is on disk now, under the same pid (Linux)
//! $ kill -TTIN <the parent>     # adds a worker; TTOU removes one
//! $ kill <the parent>           # or ^C: the workers finish their requests, then it exits with status 0
//! ```

use std::error::Error;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::process::{self, ExitCode, Termination};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::middleware::map_response_with_state;
use axum::response::Response;
use axum::routing::get;
use axum::serve::Listener;
use clap::Parser;
use log::info;
use taskfork::{ListenConfig, Prefork, Stopped, WorkResult, Worker};

/// A worker that takes longer to start is assumed to have failed.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// The time from the stop request until idle connections are closed. On a connection that was accepted just before the
/// stop request, the client's request may still be on its way.
const LINGER: Duration = Duration::from_millis(200);

/// Answers HTTP requests from several processes that share one port.
#[derive(Parser)]
struct Args {
    /// Worker processes; 0 means one per CPU
    #[arg(long, env = "WEB_CONCURRENCY", default_value_t = 0)]
    workers: usize,
    /// Address to listen on; with port 0, on any free port
    #[arg(long, default_value = "127.0.0.1:8000")]
    bind: SocketAddr,
    /// Restarts of failed workers, after which the daemon stops; no limit by default
    #[arg(long)]
    max_restarts: Option<u32>,
    /// Seconds that a stopping worker has to finish its requests
    #[arg(long, default_value_t = 30)]
    graceful_timeout: u64,
    /// Seconds that a new program has to prove itself in an upgrade (Linux)
    #[arg(long, default_value_t = 60)]
    upgrade_timeout: u64,
    /// Open a socket for each worker, instead of one for all (Linux)
    #[arg(long)]
    per_worker: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("Error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    // The parent owns the sockets, with and without `--per-worker`. So queued connections survive a worker's exit.
    let listen = ListenConfig::from(args.bind);
    let mut prefork = Prefork::new()
        .listen(if args.per_worker { listen.per_worker() } else { listen })
        .workers(args.workers)
        .graceful_timeout(Duration::from_secs(args.graceful_timeout))
        .upgrade_timeout(Duration::from_secs(args.upgrade_timeout))
        .ready_timeout(READY_TIMEOUT);
    if let Some(max) = args.max_restarts {
        prefork = prefork.max_restarts(max);
    }
    Ok(prefork.run(work)?.report())
}

fn work(worker: Worker) -> WorkResult {
    // Each worker creates its own runtime, because all workers would share the epoll instance of a runtime that was
    // created before the fork.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Leaks the worker, because the handlers need it until the process exits.
    Ok(runtime.block_on(serve(Box::leak(Box::new(worker))))?)
}

async fn serve(worker: &'static Worker) -> io::Result<()> {
    let listener = worker.tcp(0)?;
    let address = listener.local_addr()?;
    let listener = UntilStop { listener: Some(tokio::net::TcpListener::from_std(listener)?), address, worker };
    let router = Router::new()
        .route("/", get(who).post(count))
        .layer(map_response_with_state(worker, announce_close))
        .with_state(worker);
    // From here on, SIGTERM is a stop request and does not kill the process. An earlier SIGTERM kills the process, but
    // loses no request, because the process serves no client yet.
    let stopped = worker.stopped();
    // From here on, the start of the worker cannot fail. Clients that have connected meanwhile wait in the listener's
    // queue.
    worker.ready();
    info!("{} is serving", name(worker));
    axum::serve(listener, router).with_graceful_shutdown(drain(worker, stopped)).await?;
    info!("{} has drained", name(worker));
    Ok(())
}

async fn drain(worker: &Worker, stopped: Stopped) {
    stopped.await;
    tokio::time::sleep(LINGER).await;
    // Requests may have arrived in time, but were not read because this process got no CPU time. Lets the tasks read
    // these requests now.
    tokio::task::yield_now().await;
    info!("{} is draining", name(worker));
}

async fn who(State(worker): State<&'static Worker>) -> String {
    format!("{}\n", name(worker))
}

async fn count(State(worker): State<&'static Worker>, body: Bytes) -> String {
    format!("{} received {} bytes\n", name(worker), body.len())
}

/// Adds `Connection: close` to responses after the stop request, so that clients open a new connection for their next
/// request before this one is closed.
async fn announce_close(State(worker): State<&'static Worker>, mut answer: Response) -> Response {
    if worker.stop_requested() {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

fn name(worker: &Worker) -> String {
    format!("worker {} (pid {})", worker.id(), process::id())
}

/// A listener that accepts connections until the stop request, and leaves later clients to the other workers. Without
/// it, axum would accept until its graceful shutdown begins, and then close accepted connections whose requests it has
/// not begun to read.
struct UntilStop {
    /// `None` after the stop request.
    listener: Option<tokio::net::TcpListener>,
    address: SocketAddr,
    worker: &'static Worker,
}

impl Listener for UntilStop {
    type Io = tokio::net::TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        if let Some(listener) = &mut self.listener {
            tokio::select! {
                biased;
                () = self.worker.stopped() => {}
                accepted = Listener::accept(listener) => return accepted,
            }
        }
        // If the service stops, clients are refused when the last worker has closed its descriptors of the socket:
        // these two.
        self.listener = None;
        self.worker.stop_listening();
        pending().await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}
