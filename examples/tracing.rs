//! Logs with tracing, in the parent and in the workers. Each line contains the pid, and the id of the worker.
//!
//! ```text
//! $ cargo run --example tracing
//! $ RUST_LOG=debug cargo run --example tracing
//! ```

use std::fmt;
use std::io;
use std::process;
use std::time::Duration;

use taskfork::{Prefork, Report};
use tracing::{info, info_span, level_filters::LevelFilter};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Writes the time and the process at the beginning of each line.
struct TimeAndProcess;

impl FormatTime for TimeAndProcess {
    fn format_time(&self, line: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(line)?;
        // Each line asks for the pid again, because a worker has a copy of everything that the parent has computed.
        match taskfork::task_id() {
            Some(id) => write!(line, " [{} worker {id}]", process::id()),
            None => write!(line, " [{} parent]", process::id()),
        }
    }
}

fn main() -> taskfork::Result<Report> {
    let levels = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    // `init` also passes the messages of the crate log to tracing, so that the parent's messages appear.
    tracing_subscriber::fmt().with_timer(TimeAndProcess).with_writer(io::stderr).with_env_filter(levels).init();
    Prefork::new().workers(2).run(|worker| {
        worker.enable_graceful_stop();
        for number in 1.. {
            info_span!("job", number).in_scope(|| info!("done"));
            if worker.wait_for_stop(Some(Duration::from_secs(1))) {
                break;
            }
        }
        info!("stops");
        Ok(())
    })
}
