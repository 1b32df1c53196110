//! The service with taskfork. It calls `start()`, and has one listener for all workers. Each worker calls `ready`. The
//! workers send heartbeats only for the measurement of a hung worker.

mod worker;

use std::error::Error;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use nix::poll::PollTimeout;
use taskfork::{Backend, Prefork, Role, Worker};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let mut service = Prefork::new().workers(4).listen(worker::address()).ready_timeout(Duration::from_secs(10));
    if worker::setting("PEERS_BACKEND") == "spawn" {
        service = service.backend(Backend::Spawn);
    }
    let beats = worker::setting("PEERS_HEARTBEAT").parse().ok().map(Duration::from_secs);
    if let Some(timeout) = beats {
        service = service.heartbeat_timeout(timeout);
    }
    match service.start()? {
        Role::Parent(report) => Ok(report.report()),
        Role::Worker(worker) => work(&worker, beats.is_some()).map(|()| ExitCode::SUCCESS),
        role => Err(format!("{role:?} is no side of the call").into()),
    }
}

fn work(worker: &Worker, beats: bool) -> Result<(), Box<dyn Error>> {
    worker::begin()?;
    let listener = worker.tcp(0)?;
    let stop = worker.stop_fd()?;
    worker.ready();
    let beat = || {
        worker.heartbeat();
        if beats { PollTimeout::from(1000_u16) } else { PollTimeout::NONE }
    };
    Ok(worker::serve(&listener, Some(stop), beat)?)
}
