//! Runs the load generator wrk, and reads its report.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use crate::server;

/// If a connection has had neither a request nor an answer for longer than this when wrk ends, it counts as one loss.
/// wrk uses the same limit for its timeouts.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Generator {
    pub program: PathBuf,
    /// The number of wrk's connections. Half of them are used for many requests. Each of the others is closed and
    /// opened again for each request.
    pub connections: usize,
}

pub struct Load(Child);

/// The report that `report.lua` writes.
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
    /// Requests that were answered after more than 2 s.
    pub timeout: u64,
    /// Requests that were answered with a status of 400 or more.
    pub status: u64,
}

#[derive(Debug, Deserialize)]
struct Connection {
    keeps: bool,
    /// Microseconds from the connection's last request or answer to the end of the run.
    silent: u64,
    losses: Vec<Loss>,
}

/// A request without an answer. Times are microseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Loss {
    pub asked: u64,
    /// The time when the client sent its next request, although it had received no answer to this one.
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
        let mut output = String::new();
        self.0.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?.read_to_string(&mut output)?;
        let status = self.0.wait()?;
        serde_json::from_str(&output).map_err(|error| io::Error::other(format!("wrk, {status}: {output:?}: {error}")))
    }
}

/// Kills wrk, if `finish` has not waited for it.
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

    /// Counts all losses: every error that wrk has counted, and every silent connection.
    pub fn lost(&self) -> u64 {
        let Errors { connect, read, write, timeout, status } = self.errors;
        connect + read + write + timeout + status + self.silent()
    }

    /// Counts the connections that still wait for an answer, or on which no more requests are sent.
    pub fn silent(&self) -> u64 {
        let is_silent = |connection: &&Connection| Duration::from_micros(connection.silent) > PATIENCE;
        self.connections.iter().filter(is_silent).count() as u64
    }

    /// Counts the requests without an answer, on kept connections or on new ones. (wrk's own error count also includes
    /// kept connections that the server closed before their next request.)
    pub fn unanswered(&self, keeps: bool) -> usize {
        let connections = self.connections.iter().filter(|connection| connection.keeps == keeps);
        connections.map(|connection| connection.losses.len()).sum()
    }

    pub fn losses(&self) -> impl Iterator<Item = Loss> + '_ {
        self.connections.iter().flat_map(|connection| connection.losses.iter().copied())
    }
}
