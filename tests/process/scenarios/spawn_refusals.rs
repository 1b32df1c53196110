//! Tests of system errors that occur when the parent spawns a worker.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::sys::resource::{Resource, setrlimit};
use taskfork::{Backend, Prefork};

use super::spawn::{copy_of, starts_and_ends};
use crate::Scenario;
use crate::daemon::kill;
use crate::os::Signal;
use crate::program::{prepare, say, scratch};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::spawning("permission_denied_error_names_the_executable", starts_and_ends, |daemon| {
            let (mut copy, path) = copy_of(daemon, "two_spawned_workers_stop_on_term");
            let workers = copy.workers(2);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permissions");
            kill(workers[0].pid, Signal::SIGKILL);
            copy.wait_for(&format!("log cannot start worker 0: cannot run {}: Permission denied", path.display()));
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("permissions");
            assert_eq!(copy.worker().id, 0);
            copy.signal(Signal::SIGTERM);
            copy.ends_with(0);
            daemon.ends_with(0);
        }),
        Scenario::new("error_for_a_missing_working_directory_names_it", starts_in_a_removed_directory, |daemon| {
            let directory = fs::canonicalize(daemon.scratch()).expect("a directory").join(DIRECTORY);
            daemon.ends_with(0);
            let suffix = format!(": it was started in {}: No such file or directory", directory.display());
            assert_eq!(daemon.count(&suffix), 1, "{suffix}:\n{}", daemon.transcript());
            assert!(daemon.said("refused Some(\"posix_spawn\") for Some(0): cannot start worker 0: cannot run /"));
        }),
        Scenario::new("too_long_argument_list_fails_the_call", spawn_with_a_long_environment, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("Argument list too long"), "{}", daemon.transcript());
            assert!(daemon.said("refused Some(\"posix_spawn\") for Some(0): cannot start worker 0: cannot run /"));
        }),
        Scenario::new("spawn_without_free_descriptors_fails_the_call", spawn_with_few_descriptors, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.count("refused ") >= 5, "{}", daemon.transcript());
            assert_eq!(daemon.count("refused "), daemon.count("Too many open files"), "{}", daemon.transcript());
        }),
    ]
}

fn print_result(call: impl FnOnce() -> taskfork::Result<taskfork::Role>) {
    match call() {
        Ok(role) => say(&format!("{role:?}")),
        Err(error) => say(&format!("refused {:?} for {:?}: {error:?}", error.call(), error.worker())),
    }
}

const DIRECTORY: &str = "gone";

/// Executes itself again in a new directory. The executed program removes that directory before it makes the call.
fn starts_in_a_removed_directory() {
    let directory = scratch().join(DIRECTORY);
    if directory.exists() {
        prepare();
        fs::remove_dir(directory).expect("a directory");
        return print_result(|| Prefork::new().workers(1).backend(Backend::Spawn).start());
    }
    fs::create_dir(&directory).expect("a directory");
    let mut program = Command::new(std::env::current_exe().expect("this binary"));
    let status = program.args(std::env::args_os().skip(1)).current_dir(directory).status();
    assert!(status.expect("a program").success());
}

fn spawn_with_a_long_environment() {
    prepare();
    // SAFETY: this process has no other thread that could read the environment.
    unsafe { std::env::set_var("TASKFORK_LONG", "x".repeat(1 << 20)) };
    print_result(|| Prefork::new().workers(2).backend(Backend::Spawn).start());
}

fn spawn_with_few_descriptors() {
    prepare();
    // The first three descriptors, 0 to 2, are open already.
    for limit in 3..8 {
        print_result(|| {
            setrlimit(Resource::RLIMIT_NOFILE, limit, 1024).expect("a limit");
            let result = Prefork::new().workers(2).backend(Backend::Spawn).start();
            setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).expect("a limit");
            result
        });
    }
}
