//! Spawned workers whose program forks, executes itself again, or loses what it was passed, before it makes the call.
//! None of them may become a parent.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio, exit};
use std::thread;

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, close, fork};
use taskfork::Prefork;

use crate::program::{say, scratch, serve};
use crate::{BACKEND, SCRATCH, Scenario};

const VARIABLE: &str = "TASKFORK_WORKER";

/// The argument of a program that has executed itself again.
const AGAIN: &str = "again";

/// The number of processes after which a test of one deviation ends. A fork bomb would have more.
const LIMIT: u64 = 40;

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("no_deviation_before_the_call_makes_a_second_parent", tests_all_deviations, |daemon| {
        daemon.ends_with(0);
        let steps = STEPS.len();
        assert_eq!(daemon.count("tested "), steps + steps * steps + 1, "{}", daemon.transcript());
        assert_eq!(daemon.count("a second parent"), 0, "{}", daemon.transcript());
    })]
}

/// The deviations.
const STEPS: [&str; 7] =
    ["daemonize", "fork-and-wait", "clear-environment", "reopen", "execute-cleanly", "execute", "execute-by-thread"];

/// The worker executes another file with the same program, as after an update. This is tested alone, because a fork
/// that executes another file cannot be recognized.
const COPY: &str = "execute-a-copy";

/// Tests each deviation and each combination of two. Each test is a service of its own, with one worker.
fn tests_all_deviations() {
    let mut arguments = std::env::args().skip(3);
    if let Some(steps) = arguments.next() {
        serve_with_deviation(&steps, arguments.next().as_deref() == Some(AGAIN));
        return;
    }
    let pairs = STEPS.iter().flat_map(|first| STEPS.map(|then| format!("{first},{then}")));
    for steps in STEPS.map(String::from).into_iter().chain(pairs).chain([COPY.to_owned()]) {
        let starts = File::create(scratch().join("starts")).expect("a file");
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        // Every process of the test holds the pipes, so the output ends when all of them have ended.
        let output =
            command.args(std::env::args().skip(1)).arg(&steps).env(BACKEND, "spawn").stdin(Stdio::null()).output();
        let output = String::from_utf8(output.expect("a program").stderr).expect("text");
        let parents = output.matches("log Starting 1 processes").count();
        let is_refused = output.contains("error backend: ");
        let is_worker = output.contains("worker Some(0)");
        let starts = starts.metadata().expect("a file").len();
        // A process without its environment variable is still recognized.
        let may_work = steps.split(',').all(|step| step == "clear-environment");
        if parents != 1 || starts > LIMIT || is_worker != may_work || is_refused == may_work {
            say(&format!("a second parent after {steps} ({parents}, {starts}):\n{output}"));
        }
        say(&format!("tested {steps}"));
    }
}

/// Runs a service with one worker, which takes these steps before its call.
fn serve_with_deviation(steps: &str, is_again: bool) {
    let mut starts = OpenOptions::new().append(true).create(true).open(scratch().join("starts")).expect("a file");
    starts.write_all(b".").expect("a file");
    if starts.metadata().expect("a file").len() > LIMIT {
        exit(1);
    }
    if is_again || std::env::var_os(VARIABLE).is_some() {
        let mut steps = steps;
        while !steps.is_empty() {
            let (step, later) = steps.split_once(',').unwrap_or((steps, ""));
            take_step(step, later);
            steps = later;
        }
    }
    serve(Prefork::new().workers(1).max_restarts(0), |_| say(&format!("worker {:?}", taskfork::task_id())));
}

fn take_step(step: &str, later: &str) {
    match step {
        "daemonize" => {
            if fork_now().is_some() {
                exit(0);
            }
        }
        "fork-and-wait" => {
            if let Some(child) = fork_now() {
                waitpid(child, None).expect("the child");
                exit(1);
            }
        }
        "clear-environment" => clear_environment(),
        "reopen" => {
            for number in 3..256 {
                let _ = close(number);
            }
            std::mem::forget([(); 60].map(|()| File::open("/dev/zero").expect("a file")));
        }
        "execute-cleanly" => execute(later, true),
        "execute" => execute(later, false),
        COPY => {
            let copy = scratch().join("copy");
            std::fs::copy(std::env::current_exe().expect("this binary"), &copy).expect("a copy");
            execute_file(&copy, later, true);
        }
        "execute-by-thread" => {
            let later = later.to_owned();
            let _ = thread::spawn(move || execute(&later, true)).join();
        }
        other => panic!("unknown step {other}"),
    }
}

/// Executes this program again, with the steps that are left.
fn execute(later: &str, is_clean: bool) {
    execute_file(&std::env::current_exe().expect("this binary"), later, is_clean);
}

fn execute_file(file: &Path, later: &str, is_clean: bool) {
    let mut command = Command::new(file);
    command.args(std::env::args().skip(1).take(2)).args([later, AGAIN]);
    if is_clean {
        keep_two_variables(&mut command);
    }
    panic!("{}", command.exec());
}

fn keep_two_variables(command: &mut Command) {
    let kept = [BACKEND, SCRATCH].map(|name| (name, std::env::var_os(name).expect("a variable")));
    command.env_clear().envs(kept);
}

/// Forks. Returns the child in its parent.
fn fork_now() -> Option<nix::unistd::Pid> {
    // SAFETY: this process has no other thread, so the child inherits no lock that another thread holds (fork(2)).
    match unsafe { fork() }.expect("a fork") {
        ForkResult::Parent { child } => Some(child),
        ForkResult::Child => None,
    }
}

fn clear_environment() {
    for (name, _) in std::env::vars_os() {
        if name != BACKEND && name != SCRATCH {
            // SAFETY: this process has no other thread that could read the environment.
            unsafe { std::env::remove_var(name) };
        }
    }
}
