//! Process tests: each scenario runs a service in real processes and checks what an operator sees.
//!
//! A scenario consists of a program and a check. The program runs in a fresh process (this binary, executed again),
//! because taskfork refuses to fork a process with other threads, such as those of a test harness.

#[cfg(target_os = "linux")]
mod census;
mod daemon;
#[cfg(target_os = "linux")]
mod interposed;
mod os;
#[cfg(target_os = "linux")]
mod procfs;
mod program;
#[cfg(target_os = "linux")]
mod room;
mod scenarios;
#[cfg(target_os = "linux")]
mod seccomp;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Termination};

use daemon::Daemon;
use libtest_mimic::{Arguments, Trial};
use os::{BACKENDS, Signal};

/// The first argument that makes this binary a scenario's program. The scenario's name follows it.
const PROGRAM: &str = "--program";

/// The environment variable with the kind of worker that the program uses.
const BACKEND: &str = "TASKFORK_TEST_BACKEND";
/// The value of [`BACKEND`] for worker threads.
const THREAD: &str = "thread";
/// The environment variable with the scratch directory of the program.
const SCRATCH: &str = "TASKFORK_TEST_SCRATCH";

/// The exit status of a worker that panics.
const PANICKED: i32 = 101;

/// Returns the path of a file. A worker thread has no pid, so the test creates this file to signal the thread of this
/// name.
fn signal_file(scratch: &Path, thread: &str, signal: Signal) -> PathBuf {
    scratch.join(format!("{thread}-{signal:?}"))
}

struct Scenario {
    name: &'static str,
    program: Program,
    check: fn(&mut Daemon),
    /// Returns what the machine lacks to run this scenario, or `None` if it lacks nothing.
    lacks: fn() -> Option<&'static str>,
    /// The kinds of workers that the scenario runs with.
    backends: Vec<&'static str>,
}

/// The program's `main`.
enum Program {
    Plain(fn()),
    Reports(fn() -> taskfork::Report),
}

impl Scenario {
    fn new(name: &'static str, program: fn(), check: fn(&mut Daemon)) -> Scenario {
        Scenario { name, program: Program::Plain(program), check, lacks: || None, backends: vec![BACKENDS[0]] }
    }

    /// Makes a scenario for every kind of worker. The parent prints the reason in its report, and exits with the
    /// report's status.
    fn reporting(name: &'static str, program: fn() -> taskfork::Report, check: fn(&mut Daemon)) -> Scenario {
        Scenario { name, program: Program::Reports(program), check, lacks: || None, backends: BACKENDS.to_vec() }
    }

    fn needs(self, lacks: fn() -> Option<&'static str>) -> Scenario {
        Scenario { lacks, ..self }
    }

    /// Runs the scenario with forked workers only. Used if the scenario requires forked workers, or if it takes long
    /// and tests the same code with every kind of worker.
    #[cfg(target_os = "linux")]
    fn forking(self) -> Scenario {
        Scenario { backends: vec![BACKENDS[0]], ..self }
    }

    /// Makes a scenario for spawned workers only.
    fn spawning(name: &'static str, program: fn() -> taskfork::Report, check: fn(&mut Daemon)) -> Scenario {
        Scenario { backends: vec!["spawn"], ..Scenario::reporting(name, program, check) }
    }

    /// Makes a scenario for worker threads only.
    fn threading(name: &'static str, program: fn() -> taskfork::Report, check: fn(&mut Daemon)) -> Scenario {
        Scenario { backends: vec![THREAD], ..Scenario::reporting(name, program, check) }
    }

    /// Leaves out worker threads. Used if the scenario requires workers with their own pids, exit statuses, signals or
    /// memory.
    fn for_processes(mut self) -> Scenario {
        self.backends.retain(|&backend| backend != THREAD);
        self
    }

    /// Leaves out forked workers. Used if the scenario's parent has several threads, because taskfork then refuses to
    /// fork.
    fn for_parents_with_threads(mut self) -> Scenario {
        self.backends.retain(|&backend| backend != "fork");
        self
    }

    /// Adds worker threads to a scenario made by `new`.
    fn for_threads_too(mut self) -> Scenario {
        self.backends.push(THREAD);
        self
    }

    /// Makes one test for each kind of worker.
    fn into_trials(self) -> impl Iterator<Item = Trial> {
        let lacks = (self.lacks)();
        if let Some(lacks) = lacks {
            eprintln!("ignored: {} needs {lacks}", self.name);
        }
        self.backends.into_iter().map(move |backend| {
            let trial = Trial::test(format!("{backend}::{}", self.name), move || {
                (self.check)(&mut Daemon::start(self.name, backend));
                Ok(())
            });
            trial.with_ignored_flag(lacks.is_some())
        })
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(PROGRAM) {
        let name = args.next().unwrap_or_default();
        let scenario = scenarios::all().into_iter().find(|scenario| scenario.name == name).expect("a scenario");
        os::begin();
        return match scenario.program {
            Program::Plain(main) => {
                main();
                ExitCode::SUCCESS
            }
            Program::Reports(main) => {
                let report = main();
                program::say(&format!("report: {}", report.reason()));
                report.report()
            }
        };
    }
    let scenarios = scenarios::all();
    check_names(&scenarios);
    let trials = scenarios.into_iter().flat_map(Scenario::into_trials).collect();
    let mut arguments = Arguments::from_args();
    // Runs many scenarios at the same time even with few CPUs, because most scenarios wait most of the time. Under Wine,
    // a process costs more.
    arguments.test_threads.get_or_insert(if cfg!(windows) { 8 } else { 12 });
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Refuses two scenarios with the same name, because the program of a scenario is found by the name.
fn check_names(scenarios: &[Scenario]) {
    let mut names: Vec<&str> = scenarios.iter().map(|scenario| scenario.name).collect();
    names.sort_unstable();
    let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(twice, None, "two scenarios have this name");
}
