//! An HTTP daemon: one port, several worker processes, and no request lost when it stops, reloads or loses a worker.
//!
//! ```text
//! $ cargo run --example http -- --workers 2
//! $ curl localhost:8000         # worker 1 (pid 71)
//! $ kill -9 71                  # is replaced at once
//! $ kill -HUP <the parent>      # every worker is replaced, one at a time
//! $ kill <the parent>           # or ^C: requests in hand are finished, then it exits 0
//! ```

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::process::{self, ExitCode};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::get;
use axum::serve::Listener;
use clap::Parser;
use log::info;
use tokio::signal::unix::{Signal, SignalKind, signal};

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
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    // Bound once, so that the workers share one queue: a connection that waits in it outlives any of them.
    let listener = listen(args.bind).map_err(|error| format!("cannot listen on {}: {error}", args.bind))?;
    info!("listening on http://{}", listener.local_addr()?);
    let id = taskfork::fork_processes(args.workers, args.max_restarts)?;
    // A runtime made before the call would be one runtime in all the processes: its epoll is shared across a fork.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(serve(id, listener))?)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve(id: usize, listener: TcpListener) -> io::Result<()> {
    // Before the first accept: a TERM that comes sooner ends the process, and costs nobody an answer.
    let mut stop = Stop::new()?;
    let listener = Door { listener: tokio::net::TcpListener::from_std(listener)?, stop: Stop::new()?, closed: false };
    let name: &str = format!("worker {id} (pid {})", process::id()).leak();
    let router = Router::new().route("/", get(who).post(count)).with_state(name);
    info!("{name} is serving");
    let drain = async move {
        poll_fn(|cx| stop.poll(cx)).await;
        tokio::time::sleep(LINGER).await;
        info!("{name} is draining");
    };
    axum::serve(listener, router).with_graceful_shutdown(drain).await?;
    info!("{name} has drained");
    Ok(())
}

async fn who(State(name): State<&'static str>) -> String {
    format!("{name}\n")
}

async fn count(State(name): State<&'static str>, body: Bytes) -> String {
    format!("{name} received {} bytes\n", body.len())
}

/// TERM comes from the parent; ^C comes from the terminal, to the workers as well as to the parent.
struct Stop(Signal, Signal);

impl Stop {
    fn new() -> io::Result<Stop> {
        Ok(Stop(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.poll_recv(cx).is_ready() || self.1.poll_recv(cx).is_ready() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Accepts until the worker is to stop, and leaves those who come later to the other workers. To go on accepting until
/// the graceful shutdown begins would be too long: it closes connections whose request it has not begun to read.
struct Door {
    listener: tokio::net::TcpListener,
    stop: Stop,
    closed: bool,
}

impl Listener for Door {
    type Io = tokio::net::TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let mut accepted = pin!(Listener::accept(&mut self.listener));
        poll_fn(|cx| {
            self.closed = self.closed || self.stop.poll(cx).is_ready();
            if self.closed { Poll::Pending } else { accepted.as_mut().poll(cx) }
        })
        .await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
