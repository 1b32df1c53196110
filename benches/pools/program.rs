//! The two compared services. Both have the same number of workers, in several pools or in one.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use taskfork::{Prefork, Supervisor, Worker};

use crate::common::record::{Record, Role, end_with_parent, now};

/// The names of the pools of the service with several pools.
const POOLS: [&str; 8] = ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"];

pub fn run(role: Role, workers: usize) -> io::Result<Infallible> {
    end_with_parent()?;
    let pools = match role {
        Role::Ours => &POOLS[..],
        Role::Bare => &POOLS[..1],
    };
    let each = workers / pools.len();
    let settings = || Prefork::new().workers(each).ready_timeout(Duration::from_secs(60));
    let called = now();
    let service = pools.iter().fold(Supervisor::new(), |service, &name| service.pool(name, settings()));
    let started = service.start();
    let ran = now();
    match started.map_err(io::Error::other)? {
        taskfork::Role::Worker(worker) => {
            Record { id: number(&worker, each), pid: std::process::id().into(), called, ran }.write()?;
            worker.ready();
            idle()
        }
        end => Err(io::Error::other(format!("the service has ended: {end:?}"))),
    }
}

/// Returns the position of the worker among the workers of all pools.
fn number(worker: &Worker, each: usize) -> u64 {
    let pool = POOLS.iter().position(|&name| name == worker.pool()).unwrap_or_default();
    (pool * each + worker.id()) as u64
}

/// Idles until this process is killed.
fn idle() -> io::Result<Infallible> {
    loop {
        // SAFETY: pause(2) only waits for a signal.
        unsafe { libc::pause() };
    }
}
