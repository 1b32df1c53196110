//! The measured service: its parent touches memory before the call, and logs each event.

use std::io::{self, Write};
use std::time::Duration;

use taskfork::{Backend, Prefork, Role};

/// The number of workers.
pub const WORKERS: usize = 4;

/// The bytes of a page.
const PAGE: usize = 4096;

/// The parameters of a measured program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub backend: Backend,
    /// MiB of memory to which the parent writes before the call.
    pub mebibytes: usize,
}

impl Settings {
    pub fn arguments(self) -> [String; 3] {
        let backend = if self.backend == Backend::Fork { "fork" } else { "spawn" };
        ["program".into(), backend.into(), self.mebibytes.to_string()]
    }

    pub fn from_arguments(arguments: &[String]) -> Option<Settings> {
        let [_, _, mebibytes] = arguments else { return None };
        let mebibytes = mebibytes.parse().ok()?;
        let all = [Backend::Fork, Backend::Spawn].map(|backend| Settings { backend, mebibytes });
        all.into_iter().find(|settings| settings.arguments()[..] == *arguments)
    }
}

/// The lines before and after the program's own code. The process's pid follows.
pub const BEGINS: &str = "begins ";
pub const CALLS: &str = "calls ";

pub fn run(settings: Settings) -> io::Result<()> {
    let pid = std::process::id();
    eprintln!("{BEGINS}{pid}");
    env_logger::Builder::new()
        .filter_module("taskfork", log::LevelFilter::Debug)
        .format(|line, record| writeln!(line, "{}", record.args()))
        .init();
    let memory = touched(settings.mebibytes);
    eprintln!("{CALLS}{pid}");
    let service = Prefork::new().workers(WORKERS).listen("127.0.0.1:0").ready_timeout(Duration::from_secs(60));
    let role = service.backend(settings.backend).start().map_err(io::Error::other)?;
    if let Role::Worker(worker) = role {
        worker.enable_graceful_stop();
        worker.ready();
        worker.wait_for_stop(None);
    }
    drop(memory);
    Ok(())
}

/// Returns memory of which each page was written. A candidate and a spawned worker have none, because only the memory
/// of the parent makes the exec slower.
fn touched(mebibytes: usize) -> Vec<u8> {
    if std::env::var_os("TASKFORK_WORKER").is_some() {
        return Vec::new();
    }
    let mut memory = vec![0; mebibytes << 20];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    std::hint::black_box(memory)
}
