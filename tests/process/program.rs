//! What the programs of the scenarios have in common.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use taskfork::{Backend, Error, Prefork, Report, Role, WorkResult, Worker};

use crate::os::{self, Signal, watch};

/// No process lives longer than this many seconds.
const WATCHDOG: u32 = 60;
/// Longer than the watchdog: what is waited for comes, or the test fails.
pub const EVER: Duration = Duration::from_secs(600);

/// The call at the top of `main`, with its log where everything is said. An error is said, and ends the program.
pub fn fork(n: usize, max_restarts: u32) -> usize {
    try_fork(n, max_restarts).unwrap_or_else(|error| {
        say(&format!("error {error:?}"));
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
pub fn serve(prefork: Prefork, work: impl Fn(Worker) + Send + Sync + 'static) -> Report {
    serve_watched(prefork, WATCHDOG, work)
}

/// The same for one that has so much to do that it may take longer than others.
pub fn serve_watched(prefork: Prefork, seconds: u32, work: impl Fn(Worker) + Send + Sync + 'static) -> Report {
    prepare();
    watch(seconds);
    let started = match backend() {
        Some(backend) => prefork.backend(backend).start(),
        None => {
            let work = move |worker| {
                work(worker);
                Ok(())
            };
            return prefork.run_threads(work).unwrap_or_else(|error| end_with(&error));
        }
    };
    match started {
        Ok(Role::Parent(report)) => report,
        Ok(Role::Worker(worker)) => {
            watch(seconds);
            work(worker);
            std::process::exit(0)
        }
        Ok(role) => panic!("{role:?} is no side of the call"),
        Err(error) => end_with(&error),
    }
}

fn end_with(error: &Error) -> ! {
    say(&format!("error {error:?}"));
    std::process::exit(1)
}

/// Runs the service with the backend of this round of tests.
pub fn run(service: Prefork, work: impl Fn(Worker) -> WorkResult + Send + Sync + 'static) -> taskfork::Result<Report> {
    match backend() {
        Some(backend) => service.backend(backend).run(work),
        None => service.run_threads(work),
    }
}

/// So many that drain, each after it has done this.
pub fn serve_drained(n: usize, first: impl Fn() + Send + Sync + 'static) {
    let report = serve(Prefork::new().workers(n), move |worker| {
        assert!(!worker.stop_requested());
        first();
        up(worker.id());
        drain(&worker);
    });
    assert!(report.is_success(), "{report:?}");
}

/// So many that hear that they are to stop, and do not.
pub fn serve_deaf(n: usize) {
    let report = serve(Prefork::new().workers(n), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        os::idle();
    });
    assert!(report.is_success(), "{report:?}");
}

/// What this round of tests is about.
pub fn backend() -> Option<Backend> {
    os::backend(&std::env::var(crate::BACKEND).expect("a backend"))
}

pub fn has_threads() -> bool {
    backend().is_none()
}

/// Ends this worker, abnormally: with this status, or by a panic, of which nothing is printed.
pub fn fail(status: i32) -> ! {
    if has_threads() { resume_unwind(Box::new(format!("status {status}"))) } else { std::process::exit(status) }
}

/// What that is to the parent.
pub fn status_of(status: i32) -> i32 {
    if has_threads() { crate::PANICKED } else { status }
}

/// Until it is asked to stop, which it says.
pub fn drain(worker: &Worker) {
    while has_threads() && !worker.wait_for_stop(Some(LOOK)) {
        was_sent(Signal::SIGKILL);
    }
    assert!(worker.wait_for_stop(None));
    say(&format!("drained {}", worker.id()));
}

/// How often a thread looks for what the operator has sent to it.
const LOOK: Duration = Duration::from_millis(10);

/// In a worker thread, whether the operator has sent this to it, which is told by a file. What would kill a process makes
/// it fail.
fn was_sent(signal: Signal) -> bool {
    let thread = thread::current();
    let is_there = |signal| is_sent(thread.name().expect("a worker"), signal);
    if is_there(Signal::SIGKILL) {
        fail(9);
    }
    is_there(signal)
}

fn is_sent(thread: &str, signal: Signal) -> bool {
    crate::letter(&scratch(), thread, signal).exists()
}

/// Until the operator has sent this to the thread of this name, which need not be there any more.
#[cfg(unix)]
pub fn wait_for_signal(name: &str, awaited: Signal) {
    while !is_sent(name, awaited) {
        thread::sleep(LOOK);
    }
}

/// Says that it is up, and waits for this signal, which may come as soon as it has said so.
pub fn up_until_signal(id: usize, awaited: Signal) {
    if !has_threads() {
        return os::up_until_signal(id, awaited);
    }
    up(id);
    while !was_sent(awaited) {
        thread::sleep(LOOK);
    }
}

/// Says that it is up, and waits until this is true, which a signal to a process may bring about.
pub fn up_until(id: usize, done: impl Fn() -> bool) {
    if !has_threads() {
        return os::up_until(id, done);
    }
    up(id);
    while !done() {
        thread::yield_now();
    }
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

/// With its pid, or with its generation, which is what the name of a thread ends with.
pub fn up(id: usize) {
    let number = if has_threads() { generation() } else { std::process::id() };
    say(&format!("up {id} {number}"));
}

fn generation() -> u32 {
    let thread = thread::current();
    let generation = thread.name().and_then(|name| name.rsplit('.').next()?.parse().ok());
    generation.expect("a worker")
}

/// What all processes of the program find there, whichever way they were started.
pub fn scratch() -> PathBuf {
    PathBuf::from(std::env::var_os(crate::SCRATCH).expect("a directory"))
}

/// An address that is only for the program whose parent has this pid, where the machine has several: on one that all have,
/// a port that is free may be another's by the time it is asked for.
pub fn own_host(pid: u32) -> Ipv4Addr {
    if cfg!(not(any(target_os = "linux", windows))) {
        return Ipv4Addr::LOCALHOST;
    }
    let [_, high, middle, low] = pid.to_be_bytes();
    Ipv4Addr::new(127, high | 128, middle, low)
}

/// A count that all processes of the program share. Each call adds one.
pub fn start_count() -> impl Fn() -> u64 + Send + Sync {
    let file = File::options().create(true).append(true).open(scratch().join("count")).expect("a file");
    move || {
        (&file).write_all(b".").expect("a count");
        file.metadata().expect("a count").len()
    }
}
