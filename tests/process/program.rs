//! Functions that the programs of the scenarios share.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use taskfork::{Backend, Error, Prefork, Report, Role, Supervisor, WorkResult, Worker};

use crate::os::{self, Signal, watch};

/// The watchdog ends a process after this many seconds, unless the scenario sets another time.
const WATCHDOG: u32 = 60;
/// A timeout that never expires, because the watchdog ends the process earlier.
pub const EVER: Duration = Duration::from_secs(600);

/// Calls `fork_processes`, with the log on standard error and a watchdog. Prints an error and exits with status 1 if
/// the call fails.
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

/// Runs a service with the kind of worker under test. Each worker calls `work`. Returns the report in the parent.
pub fn serve(prefork: Prefork, work: impl Fn(Worker) + Send + Sync + 'static) -> Report {
    serve_watched(prefork, WATCHDOG, work)
}

/// Runs a service like `serve`, but sets the watchdog to `seconds`.
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

pub fn end_with(error: &Error) -> ! {
    say(&format!("error {error:?}"));
    std::process::exit(1)
}

/// Runs the service with the kind of worker under test, by `Prefork::run` or `Prefork::run_threads`.
pub fn run(service: Prefork, work: impl Fn(Worker) -> WorkResult + Send + Sync + 'static) -> taskfork::Result<Report> {
    match backend() {
        Some(backend) => service.backend(backend).run(work),
        None => service.run_threads(work),
    }
}

/// Sets the backend of a pool to the kind of worker under test.
pub fn own_backend(pool: Prefork) -> Prefork {
    backend().into_iter().fold(pool, Prefork::backend)
}

/// Runs a service whose pools have the kind of worker under test. Returns the report in the parent.
pub fn run_pools(service: Supervisor, work: impl Fn(Worker) -> WorkResult + Send + Sync + 'static) -> Report {
    let report = if has_threads() { service.run_threads(work) } else { service.run(work) };
    report.unwrap_or_else(|error| end_with(&error))
}

/// Runs `n` workers. Each calls `first`, and then waits for a stop request.
pub fn serve_drained(n: usize, first: impl Fn() + Send + Sync + 'static) {
    let report = serve(Prefork::new().workers(n), move |worker| {
        assert!(!worker.stop_requested());
        first();
        up(worker.id());
        drain(&worker);
    });
    assert!(report.is_success(), "{report:?}");
}

/// Runs `n` workers that enable graceful stop and then ignore every stop request.
pub fn serve_unresponsive(n: usize) {
    let report = serve(Prefork::new().workers(n), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        os::idle();
    });
    assert!(report.is_success(), "{report:?}");
}

/// Returns the backend under test, or `None` for threads.
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

/// Sends the same answer to each client of the first listener, in a thread that ends at a stop request.
pub fn answer_clients(worker: &Arc<Worker>, answer: String) -> thread::JoinHandle<()> {
    let worker = Arc::clone(worker);
    thread::spawn(move || {
        let listener = &worker.listeners()[0];
        let answer_one = || match listener.as_udp() {
            Some(socket) => {
                let (_, client) = listener.recv_from(&mut [0; 100])?;
                socket.send_to(answer.as_bytes(), client).map(drop)
            }
            None => {
                let (mut client, _) = listener.accept()?;
                let _ = writeln!(client, "{answer}");
                Ok(())
            }
        };
        while answer_one().is_ok() {}
    })
}

/// Waits for a stop request, and then prints `drained`.
pub fn drain(worker: &Worker) {
    while has_threads() && !worker.wait_for_stop(Some(POLL_INTERVAL)) {
        was_sent(Signal::SIGKILL);
    }
    assert!(worker.wait_for_stop(None));
    say(&format!("drained {}", worker.id()));
}

/// The interval at which a worker thread checks for the files that stand for signals.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Returns whether the test has sent this signal to this worker thread by creating a file. If there is a file for
/// SIGKILL, ends the thread with a failure, because SIGKILL would kill a process.
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

/// Waits until the test has sent this signal to the thread of this name, even if that thread has already ended.
#[cfg(unix)]
pub fn wait_for_signal(name: &str, awaited: Signal) {
    while !is_sent(name, awaited) {
        thread::sleep(POLL_INTERVAL);
    }
}

/// Prints that the worker is up, and waits for this signal. A signal that arrives right after the line is not missed.
pub fn up_until_signal(id: usize, awaited: Signal) {
    if !has_threads() {
        return os::up_until_signal(id, awaited);
    }
    up(id);
    while !was_sent(awaited) {
        thread::sleep(POLL_INTERVAL);
    }
}

/// Prints that the worker is up, and waits until `done` returns true. A signal to this process may change what `done`
/// returns.
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

/// Makes the logger call `hook` before each line that contains `part`, in the parent and in forked workers. A program's
/// own logger could run such code too.
pub fn on_log(part: &'static str, hook: fn()) {
    HOOKS.lock().expect("hooks").push((part, hook));
}

/// Prints a line by one unbuffered write, so that lines of several processes do not mix.
pub fn say(line: &str) {
    let line = format!("{line}\n");
    let written = std::io::stderr().write(line.as_bytes());
    assert_eq!(written.expect("a reader"), line.len());
}

/// Prints that this worker is up, with the pid of a process or the generation of a thread.
pub fn up(id: usize) {
    let number = if has_threads() { generation() } else { std::process::id() };
    say(&format!("up {id} {number}"));
}

/// Returns the generation of this worker thread, which is the end of its name.
fn generation() -> u32 {
    let thread = thread::current();
    let generation = thread.name().and_then(|name| name.rsplit('.').next()?.parse().ok());
    generation.expect("a worker")
}

/// Returns the scratch directory, which all processes of the program share.
pub fn scratch() -> PathBuf {
    PathBuf::from(std::env::var_os(crate::SCRATCH).expect("a directory"))
}

/// Returns a loopback address that only the program with this parent uses. On a shared address, another test could take
/// a port between the moment it is found free and the moment it is bound. macOS and FreeBSD have only 127.0.0.1.
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
