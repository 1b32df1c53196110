//! What the programs of the scenarios have in common.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;

use taskfork::{Backend, Prefork, Report, Role, Worker};

use crate::os::{self, watch};

/// No process lives longer than this many seconds.
const WATCHDOG: u32 = 60;

/// The call at the top of `main`, with its log where everything is said. An error is said, and ends the program.
pub fn fork(n: usize, max_restarts: u32) -> usize {
    try_fork(n, max_restarts).unwrap_or_else(|error| {
        say(&format!("error {error}"));
        std::process::exit(1)
    })
}

pub fn try_fork(n: usize, max_restarts: u32) -> taskfork::Result<usize> {
    prepare();
    let id = taskfork::fork_processes(n, max_restarts)?;
    watch(WATCHDOG);
    Ok(id)
}

/// The same with everything that can be chosen; in the parent, how it all went.
pub fn serve(prefork: Prefork, work: impl FnOnce(Worker)) -> Report {
    serve_watched(prefork, WATCHDOG, work)
}

/// The same for one that has so much to do that it may take longer than others.
pub fn serve_watched(prefork: Prefork, seconds: u32, work: impl FnOnce(Worker)) -> Report {
    prepare();
    watch(seconds);
    match prefork.backend(backend()).start() {
        Ok(Role::Parent(report)) => report,
        Ok(Role::Worker(worker)) => {
            watch(seconds);
            work(worker);
            std::process::exit(0)
        }
        Err(error) => {
            say(&format!("error {error}"));
            std::process::exit(1)
        }
    }
}

/// What this round of tests is about.
pub fn backend() -> Backend {
    os::backend(&std::env::var(crate::BACKEND).expect("a backend"))
}

/// Until it is asked to stop, which it says.
pub fn drain(worker: &Worker) {
    assert!(worker.wait_for_stop(None));
    say(&format!("drained {}", worker.id()));
}

pub fn prepare() {
    watch(WATCHDOG);
    let _ = env_logger::Builder::new()
        .filter_module("taskfork", log::LevelFilter::Debug)
        .format(|line, record| {
            let text = record.args().to_string();
            for (part, hook) in HOOKS.lock().expect("hooks").iter() {
                if text.contains(part) {
                    hook();
                }
            }
            writeln!(line, "log {text}")
        })
        .try_init();
}

type Hook = (&'static str, fn());

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Runs this in the parent, as a logger might, before a line that contains `part` is written.
pub fn on_log(part: &'static str, hook: fn()) {
    HOOKS.lock().expect("hooks").push((part, hook));
}

/// One line, in one write and past every buffer, so that those of several processes do not mix.
pub fn say(line: &str) {
    let line = format!("{line}\n");
    let written = std::io::stderr().write(line.as_bytes());
    assert_eq!(written.expect("somebody who listens"), line.len());
}

pub fn up(id: usize) {
    say(&format!("up {id} {}", std::process::id()));
}

/// What all processes of the program find there, whichever way they were started.
pub fn scratch() -> PathBuf {
    PathBuf::from(std::env::var_os(crate::SCRATCH).expect("a directory"))
}

/// A count that all processes of the program share. Each call adds one.
pub fn start_count() -> impl Fn() -> u64 {
    let file = File::options().create(true).append(true).open(scratch().join("count")).expect("a file");
    move || {
        (&file).write_all(b".").expect("a count");
        file.metadata().expect("a count").len()
    }
}
