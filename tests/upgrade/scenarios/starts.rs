//! Ways to start the program. Each upgrade runs the program that the same command would start now.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Scenario, not_root};
use crate::build::{Before, Build, Workers};
use crate::daemon::{Daemon, until};
use crate::procfs;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("program_started_by_a_relative_path_is_upgraded", relative),
        Scenario::new("program_that_changes_its_directory_is_upgraded", changes_directory),
        Scenario::new("renamed_start_directory_is_entered_again_by_name", renamed_directory),
        Scenario::new("program_found_in_path_is_upgraded", in_path),
        Scenario::new("symlink_that_points_elsewhere_is_followed_again", by_symlink),
        Scenario::new("symlinked_directory_that_points_elsewhere_is_followed", by_directory_symlink),
        Scenario::new("program_run_by_the_linker_is_upgraded", by_linker),
        Scenario::new("arguments_and_environment_stay_the_same", arguments),
        Scenario::new("program_setting_names_the_program", chosen_program),
        Scenario::new("pid_1_of_a_namespace_is_upgraded", |workers| as_pid_1(workers, &["-pf", "--mount-proc"]))
            .needs(not_root),
        Scenario::new("pid_1_with_the_proc_of_its_host_is_upgraded", |workers| as_pid_1(workers, &["-pf"]))
            .needs(not_root),
        Scenario::new("pid_1_that_hangs_in_the_window_ends", pid_1_hangs).needs(not_root),
    ]
}

/// Upgrades twice. `deploy` installs a build where the operator would.
fn is_upgraded(daemon: &mut Daemon, workers: Workers, deploy: impl Fn(&Path, &Build)) {
    daemon.ready_workers("old", 2);
    for name in ["new", "third"] {
        let build = Build::new(name, workers);
        deploy(daemon.scratch(), &build);
        daemon.signal(nix::sys::signal::Signal::SIGUSR2);
        daemon.wait_for_end_of_upgrade(&build);
        daemon.assert_runs(&[&format!("{name} - 0"), &format!("{name} - 1")]);
    }
    daemon.stop();
}

fn install(scratch: &Path, build: &Build) {
    build.install(&scratch.join("program"));
}

fn relative(workers: Workers) {
    let mut daemon = Daemon::start_by(|scratch| {
        install(scratch, &Build::new("old", workers));
        let mut command = Command::new("./program");
        command.current_dir(scratch);
        command
    });
    is_upgraded(&mut daemon, workers, install);
}

fn changes_directory(workers: Workers) {
    let elsewhere = |name: &str| Build { directory: Some("/".into()), ..Build::new(name, workers) };
    let mut daemon = Daemon::start_by(|scratch| {
        install(scratch, &elsewhere("old"));
        let mut command = Command::new("./program");
        command.current_dir(scratch);
        command
    });
    is_upgraded(&mut daemon, workers, |scratch, build| install(scratch, &elsewhere(&build.name)));
}

/// The directory of the start was replaced by another one of the same name, as by a deployment of whole directories.
/// `$PWD` names it.
fn renamed_directory(workers: Workers) {
    let mut daemon = Daemon::start_by(|scratch| {
        let directory = scratch.join("current");
        std::fs::create_dir(&directory).expect("a directory");
        install(&directory, &Build::new("old", workers));
        let mut command = Command::new("./program");
        command.current_dir(&directory).env("PWD", directory);
        command
    });
    is_upgraded(&mut daemon, workers, |scratch, build| {
        let directory = scratch.join("current");
        std::fs::rename(&directory, scratch.join(format!("before-{}", build.name))).expect("a directory");
        std::fs::create_dir(&directory).expect("a directory");
        install(&directory, build);
    });
}

fn in_path(workers: Workers) {
    let mut daemon = Daemon::start_by(|scratch| {
        install(scratch, &Build::new("old", workers));
        let mut command = Command::new("sh");
        command.args(["-c", "exec program"]);
        let path = std::env::var("PATH").expect("a path");
        command.env("PATH", format!("{}:{path}", scratch.display()));
        command
    });
    is_upgraded(&mut daemon, workers, install);
}

/// Makes `link` point to this target, by rename(2).
fn point(link: &Path, target: &Path) {
    let new = link.with_extension("new-link");
    symlink(target, &new).expect("a link");
    std::fs::rename(new, link).expect("a link");
}

fn by_symlink(workers: Workers) {
    let release = |scratch: &Path, build: &Build| {
        let program = scratch.join(format!("release-{}", build.name));
        build.install(&program);
        point(&scratch.join("current"), &program);
    };
    let mut daemon = Daemon::start_by(|scratch| {
        release(scratch, &Build::new("old", workers));
        Command::new(scratch.join("current"))
    });
    is_upgraded(&mut daemon, workers, release);
}

fn by_directory_symlink(workers: Workers) {
    let release = |scratch: &Path, build: &Build| {
        let name = PathBuf::from(format!("release-{}", build.name));
        std::fs::create_dir(scratch.join(&name)).expect("a directory");
        install(&scratch.join(&name), build);
        point(&scratch.join("current"), &name);
    };
    let mut daemon = Daemon::start_by(|scratch| {
        release(scratch, &Build::new("old", workers));
        Command::new(scratch.join("current/program"))
    });
    is_upgraded(&mut daemon, workers, release);
}

/// Starts the program as an argument of the dynamic linker.
fn by_linker(workers: Workers) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the mappings");
    let linker = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("/ld-"));
    let linker = linker.expect("a dynamic linker").to_owned();
    let mut daemon = Daemon::start_by(|scratch| {
        install(scratch, &Build::new("old", workers));
        let mut command = Command::new(linker);
        command.arg(scratch.join("program"));
        command
    });
    is_upgraded(&mut daemon, workers, install);
}

fn arguments(workers: Workers) {
    let build = |name: &str| Build { prints_start: true, ..Build::new(name, workers) };
    let mut daemon = Daemon::start_by(|scratch| {
        install(scratch, &build("old"));
        let mut command = Command::new(scratch.join("program"));
        command.args(["--flag", "two words", ""]).env("TASKFORK_TEST_VARIABLE", "a\nb").env_remove("PWD");
        command
    });
    daemon.ready_workers("old", 2);
    for name in ["new", "third"] {
        daemon.upgrade(&build(name));
    }
    daemon.stop();
    let start = |name: &str| {
        let prefix = format!("{name} start ");
        let lines = daemon.lines_with(&prefix);
        lines.into_iter().map(|line| line.trim_start_matches(&prefix).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(start("old").len(), 1, "{}", daemon.transcript());
    assert_eq!(start("new"), start("old"), "{}", daemon.transcript());
    assert_eq!(start("third"), start("old"), "{}", daemon.transcript());
}

fn chosen_program(workers: Workers) {
    let other = |name: &str| Build { program: Some("SCRATCH/chosen".into()), ..Build::new(name, workers) };
    let mut daemon = Daemon::start(&other("old"));
    is_upgraded(&mut daemon, workers, |scratch, build| other(&build.name).install(&scratch.join("chosen")));
}

/// Starts the service as pid 1 of a pid namespace by unshare(1).
fn start_as_pid_1(build: &Build, options: &[&str]) -> Daemon {
    let mut daemon = Daemon::start_by(|scratch| {
        install(scratch, build);
        let mut command = Command::new("unshare");
        command.args(options).arg(scratch.join("program"));
        command
    });
    let launcher = daemon.pid();
    daemon.wait_for_times("old up", 2);
    assert!(until(|| procfs::children(launcher).len() == 1));
    daemon.set_parent(procfs::children(launcher).pop_first().expect("pid 1"));
    daemon
}

fn as_pid_1(workers: Workers, options: &[&str]) {
    let mut daemon = start_as_pid_1(&Build::new("old", workers), options);
    for name in ["new", "third"] {
        daemon.upgrade(&Build::new(name, workers));
        let running: Vec<String> = daemon.pids_of_workers().into_iter().map(procfs::build_of).collect();
        assert_eq!(running, [name, name], "{}", daemon.transcript());
    }
    daemon.stop();
}

/// The kernel drops SIGKILL from a timer to pid 1, so another signal ends it, with its own exit status.
fn pid_1_hangs(workers: Workers) {
    let build = |name: &str| Build { upgrade_timeout_ms: Some(5000), ..Build::new(name, workers) };
    let mut daemon = start_as_pid_1(&build("old"), &["-pf", "--mount-proc"]);
    daemon.begin_upgrade(&build("new").window(Before::Hangs));
    daemon.wait_for("new window 1");
    daemon.ends_with(70);
}
