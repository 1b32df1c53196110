//! Tests with real candidates. The test binary runs itself again, with only the test [`program`]. That process is an
//! old parent. It starts itself once more as a candidate, which makes the call.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{self, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::backend::candidate::{Candidate, FORMATS, StartedCandidate, TrialRequest};
use crate::exit::{Exit, Process};
use crate::listener::{Passed, Spec};
use crate::prefork::{Backend, Prefork, Role};
use crate::scoreboard::Scoreboard;
use crate::service::Supervisor;
use crate::sys::{self, ChildHandle, NewProgram, Signals, SupervisorLock, WorkerKind};

/// The environment variables that name the scenario and the scratch directory.
const SCENARIO: &str = "TASKFORK_TEST_CANDIDATE";
const SCRATCH: &str = "TASKFORK_TEST_SCRATCH";
/// Set if the candidate has executed its program again.
const AGAIN: &str = "TASKFORK_TEST_AGAIN";

/// What the processes of a scenario have written to standard output.
struct Outcome {
    output: String,
    scratch: PathBuf,
}

impl Outcome {
    /// Runs a scenario in fresh processes.
    fn of(scenario: &str) -> Outcome {
        let name = format!("taskfork-candidate-{}-{}", process::id(), scenario.replace(' ', "-"));
        let scratch = env::temp_dir().join(name);
        fs::create_dir(&scratch).expect("a directory");
        let mut command = Command::new(env::current_exe().expect("the test binary"));
        command.args(["--exact", "start::candidate::tests::program", "--nocapture", "--test-threads=1"]);
        let output = command.env(SCENARIO, scenario).env(SCRATCH, &scratch).output().expect("a process");
        let output = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Outcome { output, scratch }
    }

    /// Returns the rest of the only line that begins with `who` and a colon.
    #[track_caller]
    fn line(&self, who: &str) -> &str {
        let rest = |line: &'_ str| line.find(&format!("<{who}> ")).map(|at| at + who.len() + 3);
        let mut lines = self.output.lines().filter_map(|line| Some(&line[rest(line)?..]));
        match (lines.next(), lines.next()) {
            (Some(line), None) => line,
            _ => panic!("not one line of {who}:\n{}", self.output),
        }
    }

    /// Asserts what the old parent has found out about the program at its own path.
    #[track_caller]
    fn assert_reason(&self, reason: &str) {
        let program = env::current_exe().expect("the test binary");
        assert_eq!(self.line("parent"), format!("the program {} {reason}", program.display()));
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// The program of all scenarios. Does nothing as an ordinary test.
#[test]
fn program() {
    let Ok(scenario) = env::var(SCENARIO) else { return };
    if env::var_os(AGAIN).is_some() || env::var_os("TASKFORK_WORKER").is_some() {
        candidate(&scenario);
    } else {
        let found = parent(&scenario);
        println!("\n<parent> {found}");
    }
}

/// A value of the program that must not be dropped in a checker.
struct Undroppable;

impl Drop for Undroppable {
    fn drop(&mut self) {
        println!("\n<dropped> a value of the program");
    }
}

/// The new program, up to its call.
fn candidate(scenario: &str) {
    // The test harness has a thread of its own, so forked workers are refused.
    let web = Prefork::new().workers(3).listen("127.0.0.1:0").backend(Backend::Spawn);
    match scenario {
        "exits" => process::exit(7),
        "has no call" => process::exit(0),
        "is killed" => process::abort(),
        "executes itself" if env::var_os(AGAIN).is_none() => execute_again(),
        _ => {}
    }
    let undroppable = Undroppable;
    print!("<candidate> written ");
    let result = match scenario {
        "passes" => {
            let bound = crate::bind("127.0.0.1:0").expect("a socket");
            let path = format!("unix:{}", scratch().join("socket").display());
            let jobs = Prefork::new()
                .backend(Backend::Spawn)
                .workers(2)
                .max_surge(0)
                .max_unavailable(1)
                .listen(path.as_str())
                .optional();
            let web = web.ready_timeout(Duration::from_millis(1500));
            let service = Supervisor::new().pool("web", web).pool("jobs", jobs);
            service.on_event(move |_, _| assert!(size_of_val(&undroppable) == 0 && bound.as_tcp().is_some())).start()
        }
        "refuses" => {
            let unix = |name: &str| format!("unix:{}", scratch().join(name).display());
            let bound = crate::bind(unix("bound").as_str()).expect("a socket");
            let web = web.listen(unix("socket").as_str());
            let jobs = Prefork::new().backend(Backend::Spawn).workers(1).listen("unix:/nowhere/of/this/name");
            let result = Supervisor::new().pool("web", web).pool("jobs", jobs).start();
            drop(bound);
            result
        }
        "has no pool" => Supervisor::new().start(),
        "runs threads" => Prefork::new().run_threads(|_| Ok(())).map(Role::Parent),
        "unknown pool" => Supervisor::new().pool("other", web).start(),
        "without reports" => crate::fork_processes(4, 0).map(|id| {
            println!("worker {id}");
            process::exit(3)
        }),
        "has threads" | "executes itself" => web.backend(Backend::Fork).start(),
        _ => web.name("shop").start(),
    };
    match result {
        Ok(Role::Worker(worker)) => work(&worker),
        Ok(Role::Parent(_)) => println!("has become a parent"),
        Err(error) => println!("{error}"),
    }
    process::exit(9)
}

fn scratch() -> PathBuf {
    env::var_os(SCRATCH).expect("a directory").into()
}

fn execute_again() {
    let mut command = Command::new(env::current_exe().expect("the test binary"));
    command.args(env::args_os().skip(1)).env_remove("TASKFORK_WORKER").env(AGAIN, "1");
    panic!("{}", command.exec());
}

fn work(worker: &crate::Worker) {
    let (mut client, _) = worker.listeners()[0].as_tcp().map(accept).expect("a listener");
    worker.ready();
    let name = fs::read_to_string("/proc/self/comm").expect("a name");
    let files = fs::read_dir("/proc/self/fd").expect("a directory").flatten();
    let files = files.filter_map(|file| fs::read_link(file.path()).ok());
    let sockets = files.filter(|file| file.to_string_lossy().starts_with("socket:")).count();
    let nested = Prefork::new().start().expect_err("a nested call");
    let id = worker.id();
    let count = worker.worker_count();
    let facts = format!("{id} {} {count} {} {sockets} {nested}", worker.generation(), name.trim_end());
    client.write_all(facts.as_bytes()).expect("a client");
    drop(client);
    process::exit(0)
}

fn accept(listener: &TcpListener) -> (TcpStream, std::net::SocketAddr) {
    loop {
        match listener.accept() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => thread::yield_now(),
            accepted => return accepted.expect("a client"),
        }
    }
}

/// The old parent: starts a candidate and returns what it has found out.
fn parent(scenario: &str) -> String {
    let lock = SupervisorLock::begin().expect("a lock");
    let _signals = Signals::take(lock, &[WorkerKind::Spawn]).expect("signals");
    let program = NewProgram::open(None).expect("a program");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    let pool = if scenario == "passes" { "web" } else { "" };
    let spec: Spec =
        format!("lt,{},127.0.0.1:0,0,,,,,", if pool.is_empty() { "" } else { "web" }).parse().expect("a spec");
    let passed = || vec![Passed { spec: spec.clone(), fd: listener.as_fd() }];
    let formats = if scenario == "other formats" { 7..=9 } else { FORMATS };
    let is_worker = ["works", "unknown pool", "without reports"].contains(&scenario);
    let StartedCandidate { child, mut candidate } = if is_worker {
        let (_receiver, waker) = sys::doorbell().expect("a doorbell");
        let mut scoreboard = Scoreboard::new(1, WorkerKind::Spawn, Arc::new(waker)).expect("memory");
        let slot = scoreboard.allocate().expect("a slot");
        let slot_handle = (scenario != "without reports").then(|| scoreboard.slot_handle(slot));
        let request = TrialRequest { pool: "", id: 1, generation: 5, count: 4, slot_handle, passed: passed() };
        let started = Candidate::start_worker(&program, &request, formats).expect("a candidate");
        drop(request);
        let process = Process { pool: "", id: 1, generation: 5, pid: Some(started.child.pid()) };
        scoreboard.assign(slot, process);
        if scenario == "works" {
            return talk(started, &listener, &mut scoreboard, process);
        }
        started
    } else {
        Candidate::check(&program, &passed(), formats).expect("a candidate")
    };
    let exit = wait(&child);
    match if is_worker { candidate.has_reached().map(|_| None) } else { candidate.read_answer() } {
        Ok(None) => candidate.explain_exit(exit),
        Err(reason) => reason,
        Ok(Some(answer)) => {
            let path = scratch().join("socket");
            let connected = UnixStream::connect(&path).is_ok();
            let sockets: Vec<String> = answer.new_sockets.iter().map(|given| given.spec.to_string()).collect();
            let pools: Vec<String> = answer.pools.iter().map(|pool| pool.to_string()).collect();
            let tried: Vec<usize> = answer.pools_to_try(&["jobs", "web"]).iter().map(|pool| pool.index).collect();
            let letters: Vec<&str> = sockets.iter().map(|spec| &spec[..2]).collect();
            format!("{exit:?} {} {letters:?} {connected} {tried:?}", pools.join(", "))
        }
    }
}

/// Connects to the trial worker, and returns what the worker has sent and what the parent has seen.
fn talk(started: StartedCandidate, listener: &TcpListener, scoreboard: &mut Scoreboard, process: Process) -> String {
    let StartedCandidate { child, mut candidate } = started;
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a worker");
    let mut facts = String::new();
    client.read_to_string(&mut facts).expect("a worker");
    let exit = wait(&child);
    let reached = candidate.has_reached().expect("no refusal") && scoreboard.has_reached(process);
    let messages = scoreboard.read_messages().len();
    format!("{facts} | {exit:?} {reached} {messages}")
}

fn wait(child: &ChildHandle) -> Exit {
    loop {
        if let Some(status) = child.reap().expect("a child") {
            return status.signal().map_or_else(|| Exit::Code(status.code().unwrap_or(-1)), Exit::Signal);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_checker_answers_without_running_destructors() {
    let outcome = Outcome::of("passes");
    let pools = "pool 776562 3 1 0 1500000000, pool 6a6f6273 2 0 1 -";
    assert_eq!(outcome.line("parent"), format!(r#"Code(0) {pools} ["lx", "bt"] true [1]"#));
    assert_eq!(outcome.line("candidate"), "written ");
    assert!(!outcome.output.contains("<dropped>"), "{}", outcome.output);
}

#[test]
fn a_refusal_reaches_the_parent_as_text() {
    let outcome = Outcome::of("refuses");
    let line = outcome.line("parent");
    assert!(line.contains("refuses its settings: ") && line.contains("/nowhere/of/this/name"), "{line}");
    assert_eq!(fs::read_dir(&outcome.scratch).expect("a directory").count(), 0, "the files of new sockets are removed");
    assert!(!outcome.output.contains("<dropped>"), "{}", outcome.output);
    Outcome::of("has no pool").assert_reason("refuses its settings: pool: the service has no pool");
    Outcome::of("runs threads").assert_reason(
        "refuses its settings: backend: its workers are threads, and only worker processes can be upgraded",
    );
    let line = Outcome::of("has threads").line("parent").to_owned();
    assert!(line.contains("refuses its settings: ") && line.contains("threads"), "{line}");
}

#[test]
fn an_exit_before_the_call_is_the_reason() {
    Outcome::of("exits").assert_reason("exited with status 7 before it reached the call");
    Outcome::of("has no call").assert_reason("exited with status 0 before it reached the call");
    Outcome::of("is killed").assert_reason("was killed by signal 6 before it reached the call");
}

#[test]
fn a_program_without_a_common_format_is_refused() {
    Outcome::of("other formats").assert_reason("reads other formats (1) than this program writes (7-9)");
}

#[test]
fn a_candidate_that_executes_itself_starts_no_service() {
    let outcome = Outcome::of("executes itself");
    assert!(outcome.line("candidate").contains("has executed its program again before the call"), "{}", outcome.output);
    outcome.assert_reason("exited with status 9 before it reached the call");
}

#[test]
fn a_trial_worker_serves_with_the_new_settings() {
    let outcome = Outcome::of("works");
    let nested = "this process is worker 1 already, and a worker cannot start workers";
    // The sockets are the listener, the waker and the client.
    let line = format!("1 5 4 shop/1 3 {nested} | Code(0) true 1");
    assert_eq!(outcome.line("parent"), line);
}

#[test]
fn a_trial_worker_without_its_pool_is_refused() {
    Outcome::of("unknown pool").assert_reason(
        "refuses its settings: backend: the parent has a pool without a name, which this program does not have",
    );
}

#[test]
fn fork_processes_returns_in_a_trial_worker() {
    let outcome = Outcome::of("without reports");
    outcome.assert_reason("exited with status 3 in its trial as a worker");
    assert_eq!(outcome.line("candidate"), "written worker 1");
}
