//! Something of its own for each worker: an entry for each id, made once, before the workers are started.
//!
//! ```text
//! $ cargo run --example contexts
//! $ kill -TTIN <the parent>     # one more worker, for the third shard; there is no fourth
//! $ kill -TTOU <the parent>     # one fewer
//! ```

use std::error::Error;

use log::info;
use taskfork::{Prefork, Report};

/// What a worker is responsible for.
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
    // Whatever the parent is asked for, no id is beyond the last shard. A restarted worker has the id of its predecessor,
    // and so its shard.
    let service = Prefork::new().workers(2).max_workers(shards.len());
    Ok(service.run(move |worker| {
        let shard = &shards[worker.id()];
        info!("worker {} serves {} ({})", worker.id(), shard.name, shard.first_letters);
        worker.wait_for_stop(None);
        Ok(())
    })?)
}
