//! A service that changes its number of workers with its load. Each worker serves one client at a time.
//!
//! ```text
//! $ RUST_LOG=info cargo run --example autoscale
//! $ nc localhost 7000           # in several terminals: each client gets its lines back
//! ```

use std::io::{self, ErrorKind};
use std::time::Duration;

use taskfork::{ListenerStatus, Prefork, Report};

const MAX_WORKERS: usize = 16;

fn main() -> taskfork::Result<Report> {
    env_logger::init();
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:7000".into());
    let period = arguments.next().map_or(1000, |period| period.parse().expect("the period in milliseconds"));
    let mut calm = 0; // The number of calls in a row that have found too many workers.
    let service = Prefork::new().workers(1).max_workers(MAX_WORKERS).graceful_timeout(Duration::from_secs(300));
    let service = service.listen(address).on_interval(Duration::from_millis(period), move |status, handle| {
        let pool = &status.pools()[0];
        let queued: u32 = pool.listeners().iter().filter_map(ListenerStatus::queued).sum();
        let clients = pool.work_in_progress().saturating_add(queued.into());
        let needed = clients.min(MAX_WORKERS as u64 - 1) as usize + 1; // One worker is idle.
        calm = if needed < pool.wanted() { calm + 1 } else { 0 };
        if needed > pool.wanted() {
            handle.scale(needed); // Clients wait, so add all workers at once.
        } else if calm == 5 {
            handle.scale(pool.wanted() - 1); // Remove one worker at a time, because the load may rise again.
            calm = 0;
        }
    });
    service.run(|worker| {
        worker.enable_graceful_stop(); // A removed worker first serves its client to the end.
        loop {
            let (connection, _) = match worker.listeners()[0].accept() {
                Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()), // A stop was requested.
                accepted => accepted?,
            };
            let _unit = worker.begin_work(); // Counts as work in progress until it is dropped.
            let _ = io::copy(&mut &connection, &mut &connection); // The client may be gone.
        }
    })
}
