//! An echo server with tokio: a runtime of one thread in each worker, and hundreds of connections in it.
//!
//! ```text
//! $ cargo run --example tokio_tcp -- --workers 2
//! $ nc localhost 7000           # says what you say
//! $ kill -HUP <the parent>      # every worker is replaced; who is connected may talk on with the old one, for 30 s
//! $ kill <the parent>           # or ^C: who talks may finish, then it exits 0
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

/// When the system refuses a connection, for want of descriptors for example, until it is asked again.
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
    /// Seconds that connections in hand may take when a worker is to stop
    #[arg(long, default_value_t = 30)]
    graceful_timeout: u64,
    /// Milliseconds of silence after which a connection is closed when a worker is to stop
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
    // A runtime made before the fork would be one runtime in all the processes: its epoll is shared across it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The thread that waits for the stop wants it for as long as the process lives.
    Ok(runtime.block_on(serve(Box::leak(Box::new(worker)), idle_timeout))?)
}

async fn serve(worker: &'static Worker, idle_timeout: Duration) -> io::Result<()> {
    let name = format!("worker {} (pid {})", worker.id(), process::id());
    let listener = worker.listeners()[0].as_tcp().ok_or(io::ErrorKind::Unsupported)?.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    // The first question makes TERM a request; the thread may ask later than somebody sends one.
    worker.stop_requested();
    let mut stop = tokio::task::spawn_blocking(|| worker.wait_for_stop(None));
    worker.ready();
    info!("{name} is serving");
    // Each connection has a receiver: it hears of the stop by it, and what is left of them are the connections in hand.
    let (stopping, is_stopping) = watch::channel(false);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // An error is the client's: it is gone.
            Ok((client, _)) => _ = tokio::spawn(echo(client, is_stopping.clone(), idle_timeout)),
            Err(error) => {
                warn!("cannot accept: {error}");
                sleep(RETRY).await;
            }
        }
    }
    // Those who wait are left to the other workers, and to the one that comes in this one's place.
    drop(listener);
    drop(is_stopping);
    stopping.send_replace(true);
    info!("{name} is draining");
    stopping.closed().await;
    info!("{name} has drained");
    Ok(())
}

/// A client that does not take back what it said is not read from meanwhile.
async fn echo(mut client: TcpStream, mut stopping: watch::Receiver<bool>, idle_timeout: Duration) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = tokio::select! {
            // What came in time comes first, however late this process is.
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

/// Ends so long after both the worker was asked to stop and the client has said something, the later of them.
async fn silence(stopping: &mut watch::Receiver<bool>, idle_timeout: Duration) {
    let _ = stopping.wait_for(|&is_stopping| is_stopping).await;
    sleep(idle_timeout).await;
}
