//! An HTTP daemon: one port, several worker processes, and no request lost when they are replaced, added or removed.
//!
//! ```text
//! $ cargo run --example http -- --workers 2
//! $ curl localhost:8000         # worker 1 (pid 71)
//! $ kill -9 71                  # is replaced at once; only what it had accepted is lost
//! $ kill -HUP <the parent>      # every worker is replaced, one at a time, the new one first
//! $ kill -TTIN <the parent>     # one worker more; TTOU: one fewer
//! $ kill <the parent>           # or ^C: requests in hand are finished, then it exits 0
//! ```

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::{self, ExitCode, Termination};
use std::task::Poll;
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
use taskfork::{ListenConfig, Prefork, WorkResult, Worker};
use tokio::task::{JoinHandle, spawn_blocking};

/// A worker that takes longer to start will not get there.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// From the last accept to the moment when a connection without a request counts as idle, and is closed. One that was
/// accepted just before the worker was asked to stop has its request on the way.
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
    /// How often failed workers are restarted before the daemon gives up
    #[arg(long, default_value_t = 100)]
    max_restarts: u32,
    /// Seconds that requests in hand may take when a worker is to stop
    #[arg(long, default_value_t = 30)]
    graceful_timeout: u64,
    /// A socket with its own queue for each worker, instead of one for all (Linux)
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
    // The parent's in either case: a connection that waits in a queue outlives any worker.
    let listen = ListenConfig::from(args.bind);
    let prefork = Prefork::new()
        .listen(if args.per_worker { listen.per_worker() } else { listen })
        .workers(args.workers)
        .max_restarts(args.max_restarts)
        .graceful_timeout(Duration::from_secs(args.graceful_timeout))
        .ready_timeout(READY_TIMEOUT);
    Ok(prefork.run(work)?.report())
}

fn work(worker: Worker) -> WorkResult {
    // A runtime made before the fork would be one runtime in all the processes: its epoll is shared across it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The handlers want it for as long as the process lives.
    Ok(runtime.block_on(serve(Box::leak(Box::new(worker))))?)
}

async fn serve(worker: &'static Worker) -> io::Result<()> {
    let listener = worker.listeners()[0].as_tcp().ok_or(io::ErrorKind::Unsupported)?.try_clone()?;
    listener.set_nonblocking(true)?;
    let door = Door { listener: tokio::net::TcpListener::from_std(listener)?, worker };
    let router = Router::new()
        .route("/", get(who).post(count))
        .layer(map_response_with_state(worker, say_if_last))
        .with_state(worker);
    // The first question makes TERM a request. One that comes sooner ends the process, and costs nobody an answer.
    worker.stop_requested();
    let stop = spawn_blocking(|| worker.wait_for_stop(None));
    // Nothing can fail any more, and whoever has connected meanwhile is in the queue.
    worker.ready();
    info!("{} is serving", name(worker));
    axum::serve(door, router).with_graceful_shutdown(drain(worker, stop)).await?;
    info!("{} has drained", name(worker));
    Ok(())
}

async fn drain(worker: &Worker, stop: JoinHandle<bool>) {
    let _ = stop.await;
    tokio::time::sleep(LINGER).await;
    // A process that was starved meanwhile has not read yet what came in time.
    tokio::task::yield_now().await;
    info!("{} is draining", name(worker));
}

async fn who(State(worker): State<&'static Worker>) -> String {
    format!("{}\n", name(worker))
}

async fn count(State(worker): State<&'static Worker>, body: Bytes) -> String {
    format!("{} received {} bytes\n", name(worker), body.len())
}

/// A client that keeps its connection for the next request is told to make a new one, before this one is closed.
async fn say_if_last(State(worker): State<&'static Worker>, mut answer: Response) -> Response {
    if worker.stop_requested() {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

fn name(worker: &Worker) -> String {
    format!("worker {} (pid {})", worker.id(), process::id())
}

/// Accepts until the worker is to stop, and leaves those who come later to the other workers. To go on accepting until
/// the graceful shutdown begins would be too long: it closes connections whose request it has not begun to read.
struct Door {
    listener: tokio::net::TcpListener,
    worker: &'static Worker,
}

impl Listener for Door {
    type Io = tokio::net::TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let mut accepted = pin!(Listener::accept(&mut self.listener));
        poll_fn(|cx| if self.worker.stop_requested() { Poll::Pending } else { accepted.as_mut().poll(cx) }).await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
