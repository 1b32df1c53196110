//! The service with the crate supertrees. supertrees runs all workers of one supervisor as tasks of one process. So
//! here each worker has its own supervisor, and runs in its own process. One worker belongs to the root supervisor.
//! Without a worker, the root supervisor would end, because it would find no process in its process group to wait for.

mod worker;

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;

use supertrees::{Restartable, Supertree, Worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Debug)]
struct Server(Arc<TcpListener>);

impl Restartable for Server {}

impl Worker for Server {
    fn init(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        let listener = self.0.clone();
        Box::pin(async move {
            if let Err(error) = serve(&listener).await {
                eprintln!("Error: {error}");
                std::process::exit(1);
            }
        })
    }
}

fn main() -> io::Result<()> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let listener = Arc::new(TcpListener::bind(worker::address())?);
    listener.set_nonblocking(true)?;
    let server = || Server(listener.clone());
    let root = Supertree::new().add_worker(server());
    (1..4).fold(root, |root, _| root.add_supervisor(|node| node.add_worker(server()))).start();
    Ok(())
}

async fn serve(listener: &TcpListener) -> io::Result<()> {
    worker::begin()?;
    let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
    loop {
        let (mut connection, _) = listener.accept().await?;
        let _ = connection.read(&mut [0; 1024]).await;
        let _ = connection.write_all(worker::ANSWER).await;
    }
}
