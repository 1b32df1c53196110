//! All scenarios, one module for each subject.

mod aborted;
mod broken;
mod carried;
mod chaos;
mod differences;
mod files;
mod leaks;
mod reaping;
mod sockets;
mod starts;
mod state;
mod stops;
mod systemd;
mod trials;
mod upgrades;
mod windows;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use crate::build::{self, Workers};

pub struct Scenario {
    name: &'static str,
    check: fn(Workers),
    /// Returns what the machine lacks to run this scenario, or `None` if it lacks nothing.
    lacks: fn() -> Option<&'static str>,
    workers: &'static [Workers],
}

impl Scenario {
    /// Makes a scenario for forked and for spawned workers.
    fn new(name: &'static str, check: fn(Workers)) -> Scenario {
        Scenario { name, check, lacks: || None, workers: &[Workers::Forked, Workers::Spawned] }
    }

    /// Makes a scenario for forked workers only.
    fn forking(name: &'static str, check: fn(Workers)) -> Scenario {
        Scenario { workers: &[Workers::Forked], ..Scenario::new(name, check) }
    }

    fn needs(self, lacks: fn() -> Option<&'static str>) -> Scenario {
        Scenario { lacks, ..self }
    }

    /// Makes one test for each kind of worker.
    fn into_trials(self) -> impl Iterator<Item = Trial> {
        let lacks = (self.lacks)();
        if let Some(lacks) = lacks {
            eprintln!("ignored: {} needs {lacks}", self.name);
        }
        self.workers.iter().map(move |&workers| {
            let prefix = match workers {
                Workers::Forked => "fork",
                Workers::Spawned => "spawn",
                Workers::Threads => "thread",
            };
            let check = self.check;
            let trial = Trial::test(format!("{prefix}::{}", self.name), move || {
                check(workers);
                Ok(())
            });
            trial.with_ignored_flag(lacks.is_some())
        })
    }
}

pub fn run() -> ExitCode {
    let scenarios = [
        aborted::scenarios(),
        broken::scenarios(),
        carried::scenarios(),
        chaos::scenarios(),
        differences::scenarios(),
        files::scenarios(),
        leaks::scenarios(),
        reaping::scenarios(),
        sockets::scenarios(),
        starts::scenarios(),
        state::scenarios(),
        stops::scenarios(),
        systemd::scenarios(),
        trials::scenarios(),
        upgrades::scenarios(),
        windows::scenarios(),
    ];
    // The portable implementation cannot upgrade.
    let scenarios = scenarios.into_iter().filter(|_| cfg!(not(taskfork_portable)));
    let trials = scenarios.flatten().flat_map(Scenario::into_trials).collect();
    let mut arguments = Arguments::from_args();
    // Runs several scenarios at the same time even with few CPUs, because most scenarios wait most of the time.
    arguments.test_threads.get_or_insert(8);
    let conclusion = libtest_mimic::run(&arguments, trials);
    build::clean_up();
    conclusion.exit_code()
}

fn not_root() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("root")
}
