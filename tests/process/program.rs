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

/// The watchdog ends a process after this many seconds.
const WATCHDOG: u32 = 60;
/// Longer than the watchdog allows: a wait for this long either succeeds or fails the test.
pub const EVER: Duration = Duration::from_secs(600);

/// Calls `fork_processes` with the log on standard error. Prints an error, and exits with status 1.
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

/// Runs a service with the backend of this round of tests. Returns the report in the parent.
pub fn serve(prefork: Prefork, work: impl Fn(Worker) + Send + Sync + 'static) -> Report {
    serve_watched(prefork, WATCHDOG, work)
}

/// Runs a service, with a watchdog of its own for a scenario that takes long.
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
        Ok(role) => panic!("unknown role {role:?}"),
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

/// Runs `n` workers. Each calls `first`, and then drains.
pub fn serve_drained(n: usize, first: impl Fn() + Send + Sync + 'static) {
    let report = serve(Prefork::new().workers(n), move |worker| {
        assert!(!worker.stop_requested());
        first();
        up(worker.id());
        drain(&worker);
    });
    assert!(report.is_success(), "{report:?}");
}

/// Runs `n` workers that enable the graceful stop and then ignore every request.
pub fn serve_unresponsive(n: usize) {
    let report = serve(Prefork::new().workers(n), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        os::idle();
    });
    assert!(report.is_success(), "{report:?}");
}

/// Returns the backend of this round of tests; `None` for threads.
pub fn backend() -> Option<Backend> {
    os::backend(&std::env::var(crate::BACKEND).expect("a backend"))
}

pub fn has_threads() -> bool {
    backend().is_none()
}

/// Ends this worker abnormally: with this status, or with a panic that prints nothing.
pub fn fail(status: i32) -> ! {
    if has_threads() { resume_unwind(Box::new(format!("status {status}"))) } else { std::process::exit(status) }
}

/// Returns the status that the parent sees after [`fail`].
pub fn status_of(status: i32) -> i32 {
    if has_threads() { crate::PANICKED } else { status }
}

/// Waits for a stop request, and prints a line then.
pub fn drain(worker: &Worker) {
    while has_threads() && !worker.wait_for_stop(Some(POLL_INTERVAL)) {
        was_sent(Signal::SIGKILL);
    }
    assert!(worker.wait_for_stop(None));
    say(&format!("drained {}", worker.id()));
}

/// How often a thread looks for the operator's signals.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Returns whether the operator has sent this signal to this worker thread, which a file shows. SIGKILL makes the
/// thread fail.
fn was_sent(signal: Signal) -> bool {
    let thread = thread::current();
    let is_there = |signal| is_sent(thread.name().expect("a worker"), signal);
    if is_there(Signal::SIGKILL) {
        fail(9);
    }
    is_there(signal)
}

fn is_sent(thread: &str, signal: Signal) -> bool {
    crate::signal_file(&scratch(), thread, signal).exists()
}

/// Waits until the operator has sent this signal to the thread of this name, which may have ended meanwhile.
#[cfg(unix)]
pub fn wait_for_signal(name: &str, awaited: Signal) {
    while !is_sent(name, awaited) {
        thread::sleep(POLL_INTERVAL);
    }
}

/// Prints that it is up, and waits for this signal. A signal that arrives right after the line is not missed.
pub fn up_until_signal(id: usize, awaited: Signal) {
    if !has_threads() {
        return os::up_until_signal(id, awaited);
    }
    up(id);
    while !was_sent(awaited) {
        thread::sleep(POLL_INTERVAL);
    }
}

/// Prints that it is up, and waits until `done` returns true. A signal to this process may be the cause.
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

/// Runs `hook` in the parent, as a logger could, before each log line that contains `part`.
pub fn on_log(part: &'static str, hook: fn()) {
    HOOKS.lock().expect("hooks").push((part, hook));
}

/// Prints a line in one write, past every buffer, so that lines of several processes do not mix.
pub fn say(line: &str) {
    let line = format!("{line}\n");
    let written = std::io::stderr().write(line.as_bytes());
    assert_eq!(written.expect("a reader"), line.len());
}

/// Prints that this worker is up, with its pid, or with the generation of a thread.
pub fn up(id: usize) {
    let number = if has_threads() { generation() } else { std::process::id() };
    say(&format!("up {id} {number}"));
}

/// Returns the generation, with which the name of a worker thread ends.
fn generation() -> u32 {
    let thread = thread::current();
    let generation = thread.name().and_then(|name| name.rsplit('.').next()?.parse().ok());
    generation.expect("a worker")
}

/// Returns the directory that all processes of the program know.
pub fn scratch() -> PathBuf {
    PathBuf::from(std::env::var_os(crate::SCRATCH).expect("a directory"))
}

/// Returns an address for this program alone, where the machine has several. On a common address another test could
/// take a port between its choice and its use.
pub fn own_host(pid: u32) -> Ipv4Addr {
    if cfg!(not(any(target_os = "linux", windows))) {
        return Ipv4Addr::LOCALHOST;
    }
    let [_, high, middle, low] = pid.to_be_bytes();
    Ipv4Addr::new(127, high | 128, middle, low)
}

/// Returns a function that adds one to a counter and returns the new value. All processes of the program share the
/// counter.
pub fn start_count() -> impl Fn() -> u64 + Send + Sync {
    let file = File::options().create(true).append(true).open(scratch().join("count")).expect("a file");
    move || {
        (&file).write_all(b".").expect("a count");
        file.metadata().expect("a count").len()
    }
}
