//! wrk, and what it says.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use crate::server;

/// Who has had no answer for so long when wrk ends waits for ever. It is also what wrk takes for a timeout.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Generator {
    pub program: PathBuf,
    /// Half of them are kept, the others are new ones for each request.
    pub connections: usize,
}

pub struct Load(Child);

/// What `report.lua` writes.
#[derive(Debug, Deserialize)]
pub struct Report {
    pub requests: u64,
    microseconds: u64,
    pub errors: Errors,
    connections: Vec<Connection>,
}

/// wrk's own counters.
#[derive(Debug, Deserialize)]
pub struct Errors {
    pub connect: u64,
    pub read: u64,
    pub write: u64,
    /// Answered, but later than after 2 s.
    pub timeout: u64,
    /// Answered with 400 or more.
    pub status: u64,
}

#[derive(Debug, Deserialize)]
struct Connection {
    keeps: bool,
    /// In microseconds, before the end.
    silent: u64,
    losses: Vec<Loss>,
}

/// A request without an answer, in microseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Loss {
    pub asked: u64,
    /// When the next request was asked instead.
    pub noticed: u64,
}

impl Generator {
    pub fn start(&self, address: SocketAddr, duration: Duration) -> io::Result<Load> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/load/report.lua");
        let mut command = Command::new(&self.program);
        let connections = self.connections;
        command.args([format!("-t{connections}"), format!("-c{connections}"), format!("-d{}s", duration.as_secs())]);
        command.arg("-s").arg(script).arg(format!("http://{address}/"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        server::end_with_driver(&mut command);
        let spawned = command.spawn();
        spawned.map(Load).map_err(|error| io::Error::other(format!("{}: {error}", self.program.display())))
    }
}

impl Load {
    pub fn finish(mut self) -> io::Result<Report> {
        let mut said = String::new();
        self.0.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?.read_to_string(&mut said)?;
        let status = self.0.wait()?;
        serde_json::from_str(&said).map_err(|error| io::Error::other(format!("wrk, {status}: {said:?}: {error}")))
    }
}

/// If it was not waited for, nobody wants to know any more.
impl Drop for Load {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("load: wrk: {error}");
        }
    }
}

impl Report {
    pub fn per_second(&self) -> f64 {
        self.requests as f64 * 1e6 / self.microseconds as f64
    }

    /// Whatever went wrong counts as a loss.
    pub fn lost(&self) -> u64 {
        let Errors { connect, read, write, timeout, status } = self.errors;
        connect + read + write + timeout + status + self.silent()
    }

    /// Connections that wait for an answer that does not come, or do not even ask any more.
    pub fn silent(&self) -> u64 {
        let is_silent = |connection: &&Connection| Duration::from_micros(connection.silent) > PATIENCE;
        self.connections.iter().filter(is_silent).count() as u64
    }

    /// Requests that were asked for nothing, on connections that are kept or on new ones. wrk counts the kept ones too that
    /// were closed before they asked again.
    pub fn unanswered(&self, keeps: bool) -> usize {
        let connections = self.connections.iter().filter(|connection| connection.keeps == keeps);
        connections.map(|connection| connection.losses.len()).sum()
    }

    pub fn losses(&self) -> impl Iterator<Item = Loss> + '_ {
        self.connections.iter().flat_map(|connection| connection.losses.iter().copied())
    }
}
