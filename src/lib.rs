//! crate docs
#![deny(unsafe_code)]

mod backend;
mod error;
mod event;
mod exit;
mod policy;
mod prefork;
mod supervisor;
mod sys;
mod worker;

pub use error::{Error, Result};
pub use exit::Exit;

use prefork::MAX_RESTARTS;
use supervisor::Role;

/// fork
pub fn fork_processes(n: impl Into<Option<usize>>, max_restarts: impl Into<Option<u32>>) -> Result<usize> {
    let config = prefork::configure(n.into().unwrap_or(0), max_restarts.into().unwrap_or(MAX_RESTARTS))?;
    worker::check_no_worker()?;
    match supervisor::supervise(config)? {
        Role::Worker(id) => Ok(id),
        Role::Parent(end) => {
            end.into_result()?;
            std::process::exit(0)
        }
    }
}

/// id
pub fn task_id() -> Option<usize> {
    worker::task_id()
}
