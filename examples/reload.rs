//! A service that reads its configuration again when the parent gets HUP.
//!
//! ```text
//! $ echo '{"workers": 2, "greeting": "hello"}' > reload.json
//! $ cargo run --example reload -- reload.json
//! $ nc localhost 8000           # hello from worker 1
//! $ kill -HUP <the parent>      # after a change of the file
//! ```

use std::cell::RefCell;
use std::error::Error;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use log::error;
use serde::Deserialize;
use taskfork::{Event, Handle, Prefork, Report, WorkResult, Worker};

const MAX_WORKERS: usize = 64;

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    workers: usize,
    greeting: String,
}

impl Config {
    fn read(path: &Path) -> Result<Config, Box<dyn Error + Send + Sync>> {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let config: Config = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        if !(1..=MAX_WORKERS).contains(&config.workers) {
            return Err(format!("{}: workers must be from 1 to {MAX_WORKERS}", path.display()).into());
        }
        Ok(config)
    }
}

fn main() -> Result<Report, Box<dyn Error + Send + Sync>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let mut args = std::env::args_os().skip(1);
    let path = PathBuf::from(args.next().unwrap_or_else(|| "reload.json".into()));
    let address = args.next().map_or("[::]:8000".into(), |address| address.to_string_lossy().into_owned());
    let config = Rc::new(RefCell::new(Config::read(&path)?)); // If the file has errors, the service does not start.
    let workers = config.borrow().workers;
    let service = Prefork::new()
        .workers(workers)
        .max_workers(MAX_WORKERS)
        .listen(address)
        .ready_timeout(Duration::from_secs(10))
        .on_event(reload(path, Rc::clone(&config)));
    // Every process begins with a copy of the parent's memory, so it has the configuration that the parent has now.
    Ok(service.run(move |worker| serve(&worker, &config.borrow()))?)
}

/// Returns a callback that replaces the parent's configuration when a rolling restart begins.
fn reload(path: PathBuf, current: Rc<RefCell<Config>>) -> impl FnMut(&Event, &Handle) {
    let mut previous = current.borrow().clone();
    move |event, handle| match event {
        // No replacement has been forked yet, so all of them get the new configuration.
        Event::RollingRestartStarted { .. } => {
            previous = current.borrow().clone();
            match Config::read(&path) {
                Ok(config) => _ = current.replace(config),
                Err(error) => error!("The configuration stays as it was: {error}"),
            }
        }
        Event::RollingRestartFinished { .. } => handle.scale(current.borrow().workers),
        // A replacement has failed with the new configuration.
        Event::RollingRestartAborted { .. } => _ = current.replace(previous.clone()),
        _ => {}
    }
}

fn serve(worker: &Worker, config: &Config) -> WorkResult {
    worker.enable_graceful_stop();
    // Whatever can fail with a wrong configuration belongs before this call, for example a login to a database.
    worker.ready();
    loop {
        match worker.listeners()[0].accept() {
            Ok((mut client, _)) => _ = writeln!(client, "{} from worker {}", config.greeting, worker.id()),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()), // A stop was requested.
            Err(error) => return Err(error.into()),
        }
    }
}
