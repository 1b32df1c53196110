//! An echo server with tokio: one runtime with one thread per worker, and hundreds of connections in it.
//!
//! ```text
//! $ cargo run --example tokio_tcp -- --workers 2
//! $ nc localhost 7000           # sends every line back
//! $ kill -HUP <the parent>      # replaces every worker; the old ones serve their connections for up to 30 s
//! $ kill <the parent>           # or ^C: active connections may finish, then it exits with status 0
//! ```

use std::io;
use std::process::{self, ExitCode, Termination};
use std::time::Duration;

use clap::Parser;
use log::{info, warn};
use taskfork::{Prefork, Report, WorkResult, Worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// The delay after a failed accept, for example because no descriptor is left, until the next attempt.
const RETRY: Duration = Duration::from_millis(100);

/// Sends back whatever it receives, from several processes that share one port.
#[derive(Parser)]
struct Args {
    /// Worker processes; 0 means one per CPU
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Address to listen on; with port 0, on any free port
    #[arg(long, default_value = "127.0.0.1:7000")]
    bind: String,
    /// Seconds that a stopping worker gives its connections to finish
    #[arg(long, default_value_t = 30)]
    graceful_timeout: u64,
    /// Milliseconds of silence after which a stopping worker closes a connection
    #[arg(long, default_value_t = 200)]
    idle_timeout: u64,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(report) => report.report(),
        Err(error) => {
            eprintln!("Error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> taskfork::Result<Report> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let idle_timeout = Duration::from_millis(args.idle_timeout);
    Prefork::new()
        .workers(args.workers)
        .listen(args.bind)
        .graceful_timeout(Duration::from_secs(args.graceful_timeout))
        .ready_timeout(Duration::from_secs(10))
        .run(move |worker| work(worker, idle_timeout))
}

fn work(worker: Worker, idle_timeout: Duration) -> WorkResult {
    // Each worker creates its own runtime, because all workers would share the epoll instance of a runtime that was
    // created before the fork.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(serve(worker, idle_timeout))?)
}

async fn serve(worker: Worker, idle_timeout: Duration) -> io::Result<()> {
    let name = format!("worker {} (pid {})", worker.id(), process::id());
    let listener = worker.tcp(0)?;
    let listener = TcpListener::from_std(listener)?;
    // From here on, SIGTERM is a stop request and does not kill the process.
    let mut stopped = worker.stopped();
    worker.ready();
    info!("{name} is serving");
    // The task of each connection has a receiver of this channel. The receiver notifies the task of the stop request.
    // As long as a receiver exists, its connection is still open.
    let (stopping, is_stopping) = watch::channel(false);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // The task ignores errors, because an error means that the client is gone.
            Ok((client, _)) => _ = tokio::spawn(echo(client, is_stopping.clone(), idle_timeout)),
            Err(error) => {
                warn!("cannot accept: {error}");
                sleep(RETRY).await;
            }
        }
    }
    // Clients that wait in the listener's queue are left to the other workers and to the replacement. If the service
    // stops, clients are refused when the last worker has closed its descriptors of the socket: these two.
    drop(listener);
    worker.stop_listening();
    drop(is_stopping);
    stopping.send_replace(true);
    info!("{name} is draining");
    stopping.closed().await;
    info!("{name} has drained");
    Ok(())
}

/// Sends back everything that the client sends. Stops reading from a client that does not read its answers.
async fn echo(mut client: TcpStream, mut stopping: watch::Receiver<bool>, idle_timeout: Duration) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = tokio::select! {
            // Polls the read first. So data that arrived in time is read, even if this process gets CPU time only after
            // the timeout.
            biased;
            read = client.read(&mut buffer) => read?,
            () = silence(&mut stopping, idle_timeout) => 0,
        };
        if length == 0 {
            return Ok(());
        }
        client.write_all(&buffer[..length]).await?;
    }
}

/// Returns when both the stop request and the client's last data are at least `idle_timeout` ago. The caller calls this
/// function again after each read.
async fn silence(stopping: &mut watch::Receiver<bool>, idle_timeout: Duration) {
    let _ = stopping.wait_for(|&is_stopping| is_stopping).await;
    sleep(idle_timeout).await;
}
