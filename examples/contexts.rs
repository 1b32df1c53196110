//! Gives each worker its own data. The data is an array with one entry per worker id, created once before the workers
//! start.
//!
//! ```text
//! $ cargo run --example contexts
//! $ kill -TTIN <the parent>     # adds a worker for the third shard; there is no fourth
//! $ kill -TTOU <the parent>     # removes a worker
//! $ kill -HUP <the parent>      # replaces every worker; no two processes serve one shard at the same time
//! ```

use std::error::Error;

use log::info;
use taskfork::{Prefork, Report};

/// The part of the data that a worker is responsible for.
struct Shard {
    name: &'static str,
    first_letters: &'static str,
}

fn main() -> Result<Report, Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let shards = [
        Shard { name: "north", first_letters: "A to I" },
        Shard { name: "middle", first_letters: "J to R" },
        Shard { name: "south", first_letters: "S to Z" },
    ];
    // max_workers keeps every id within the array, however many workers TTIN adds. A restarted worker has the id of its
    // predecessor, and so the same shard.
    //
    // By default, the replacement of a process starts before the old process has stopped, so two processes would serve
    // one shard for some time. With these limits, the old process stops first. This does not cover the workers of an
    // earlier parent that was killed: if that matters, each worker should also lock a file for its shard.
    let service = Prefork::new().workers(2).max_workers(shards.len()).max_surge(0).max_unavailable(1);
    Ok(service.run(move |worker| {
        worker.enable_graceful_stop();
        let shard = &shards[worker.id()];
        info!("worker {} serves {} ({})", worker.id(), shard.name, shard.first_letters);
        worker.wait_for_stop(None);
        info!("worker {} leaves {}", worker.id(), shard.name);
        Ok(())
    })?)
}
