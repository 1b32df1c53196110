//! What an operator would notice, in real processes.
//!
//! A scenario is a program and what is to be seen of it. The program runs in a fresh process, this binary executed once
//! more, because fork refuses where libtest's threads are.

#[cfg(target_os = "linux")]
mod census;
mod daemon;
mod os;
#[cfg(target_os = "linux")]
mod procfs;
mod program;
#[cfg(target_os = "linux")]
mod room;
mod scenarios;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Termination};

use daemon::Daemon;
use libtest_mimic::{Arguments, Trial};
use os::{BACKENDS, Signal};

/// With this as the first argument, and a name, the binary is the program of that scenario.
const PROGRAM: &str = "--program";

/// Tells the program what its workers are, where it has a choice.
const BACKEND: &str = "TASKFORK_TEST_BACKEND";
/// The backend whose workers have no processes of their own.
const THREAD: &str = "thread";
/// Tells the program of a directory of its own.
const SCRATCH: &str = "TASKFORK_TEST_SCRATCH";

/// The status of who panics.
const PANICKED: i32 = 101;

/// By the existence of which the operator sends a signal to the worker thread of this name.
fn letter(scratch: &Path, thread: &str, signal: Signal) -> PathBuf {
    scratch.join(format!("{thread}-{signal:?}"))
}

struct Scenario {
    name: &'static str,
    program: Program,
    check: fn(&mut Daemon),
    /// What it needs of the machine, if that is not there.
    lacks: fn() -> Option<&'static str>,
    /// What its workers may be.
    backends: Vec<&'static str>,
}

/// What `main` is, and what it returns.
enum Program {
    Plain(fn()),
    Reports(fn() -> taskfork::Report),
}

impl Scenario {
    fn new(name: &'static str, program: fn(), check: fn(&mut Daemon)) -> Scenario {
        Scenario { name, program: Program::Plain(program), check, lacks: || None, backends: vec![BACKENDS[0]] }
    }

    /// The parent says why it ended, and exits as its report says.
    fn reporting(name: &'static str, program: fn() -> taskfork::Report, check: fn(&mut Daemon)) -> Scenario {
        Scenario { name, program: Program::Reports(program), check, lacks: || None, backends: BACKENDS.to_vec() }
    }

    fn needs(self, lacks: fn() -> Option<&'static str>) -> Scenario {
        Scenario { lacks, ..self }
    }

    /// The same for one that is as good for one kind of worker as for the other, and takes long.
    #[cfg(target_os = "linux")]
    fn forking(self) -> Scenario {
        Scenario { backends: vec![BACKENDS[0]], ..self }
    }

    /// The same for one whose workers are spawned in any case.
    fn spawning(name: &'static str, program: fn() -> taskfork::Report, check: fn(&mut Daemon)) -> Scenario {
        Scenario { backends: vec!["spawn"], ..Scenario::reporting(name, program, check) }
    }

    /// The same for one whose workers are threads in any case.
    fn threading(name: &'static str, program: fn() -> taskfork::Report, check: fn(&mut Daemon)) -> Scenario {
        Scenario { backends: vec![THREAD], ..Scenario::reporting(name, program, check) }
    }

    /// The same for what threads have not: pids, statuses, signals and memory of their own.
    fn for_processes(mut self) -> Scenario {
        self.backends.retain(|&backend| backend != THREAD);
        self
    }

    /// The same for what takes a parent that has threads.
    fn for_parents_with_threads(mut self) -> Scenario {
        self.backends.retain(|&backend| backend != "fork");
        self
    }

    /// The same for a plain one whose workers may be threads as well.
    fn for_threads_too(mut self) -> Scenario {
        self.backends.push(THREAD);
        self
    }

    /// One for each kind of worker.
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
    let trials = scenarios::all().into_iter().flat_map(Scenario::into_trials).collect();
    let mut arguments = Arguments::from_args();
    // Most of them wait for something most of the time.
    arguments.test_threads.get_or_insert(8);
    libtest_mimic::run(&arguments, trials).exit_code()
}
