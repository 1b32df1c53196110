//! Replaces `handover` on systems on which a parent cannot execute another program.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::listener::Given;
use crate::pid_file::PidFile;
use crate::policy::{Config, ServiceSnapshot};
use crate::scoreboard::{Scoreboard, Waker};
use crate::sys::{WakeReceiver, WorkerKind};

/// The service that a program takes over. This type has no values on this system.
#[derive(Debug)]
pub(crate) enum Adoption {}

/// The signals that the program before has passed. This type has no values on this system.
#[derive(Debug)]
pub(crate) enum HandedOverSignals {}

impl Adoption {
    pub fn take() -> Result<Option<Box<Adoption>>> {
        Ok(None)
    }

    pub fn pid_file(&mut self, _: Option<&Path>) -> Result<Option<PidFile>> {
        match *self {}
    }

    pub fn take_sockets(&mut self) -> Result<Vec<Given>> {
        match *self {}
    }

    pub fn snapshot(&self) -> ServiceSnapshot {
        match *self {}
    }

    pub fn taken(&self) -> Instant {
        match *self {}
    }

    pub fn uptime(&self) -> Duration {
        match *self {}
    }

    pub fn removed_pools(&self, _: &[&str]) -> Vec<Config> {
        match *self {}
    }

    pub fn take_signals(&mut self) -> Result<HandedOverSignals> {
        match *self {}
    }

    pub fn take_doorbell(&mut self) -> Result<Option<(WakeReceiver, Waker)>> {
        match *self {}
    }

    pub fn scoreboard(&mut self, _: &'static str, _: usize, _: WorkerKind, _: &Arc<Waker>) -> Result<Scoreboard> {
        match *self {}
    }
}
