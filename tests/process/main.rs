//! What an operator would notice, in real processes.
//!
//! A scenario is a program and what is to be seen of it. The program runs in a fresh process, this binary executed once
//! more, because fork refuses where libtest's threads are.

#[cfg(target_os = "linux")]
mod census;
mod daemon;
#[cfg(target_os = "linux")]
mod procfs;
mod program;
#[cfg(target_os = "linux")]
mod room;
mod scenarios;

use std::process::{ExitCode, Termination};

use daemon::Daemon;
use libtest_mimic::{Arguments, Trial};

/// With this as the first argument, and a name, the binary is the program of that scenario.
const PROGRAM: &str = "--program";

struct Scenario {
    name: &'static str,
    program: Program,
    check: fn(&mut Daemon),
    /// What it needs of the machine, if that is not there.
    lacks: fn() -> Option<&'static str>,
}

/// What `main` is, and what it returns.
enum Program {
    Plain(fn()),
    Reports(fn() -> taskfork::Report),
}

impl Scenario {
    fn new(name: &'static str, program: fn(), check: fn(&mut Daemon)) -> Scenario {
        Scenario { name, program: Program::Plain(program), check, lacks: || None }
    }

    /// The parent says why it ended, and exits as its report says.
    fn reporting(name: &'static str, program: fn() -> taskfork::Report, check: fn(&mut Daemon)) -> Scenario {
        Scenario { name, program: Program::Reports(program), check, lacks: || None }
    }

    #[cfg(target_os = "linux")]
    fn needs(self, lacks: fn() -> Option<&'static str>) -> Scenario {
        Scenario { lacks, ..self }
    }

    fn into_trial(self) -> Trial {
        let lacks = (self.lacks)();
        let trial = Trial::test(self.name, move || {
            (self.check)(&mut Daemon::start(self.name));
            Ok(())
        });
        match lacks {
            Some(lacks) => {
                eprintln!("ignored: {} needs {lacks}", self.name);
                trial.with_ignored_flag(true)
            }
            None => trial,
        }
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(PROGRAM) {
        let name = args.next().unwrap_or_default();
        let scenario = scenarios::all().into_iter().find(|scenario| scenario.name == name).expect("a scenario");
        program::reset_signals();
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
    let trials = scenarios::all().into_iter().map(Scenario::into_trial).collect();
    let mut arguments = Arguments::from_args();
    // Most of them wait for something most of the time.
    arguments.test_threads.get_or_insert(8);
    libtest_mimic::run(&arguments, trials).exit_code()
}
