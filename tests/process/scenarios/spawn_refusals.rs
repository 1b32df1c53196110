//! What the system refuses to who starts programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::sys::resource::{Resource, setrlimit};
use taskfork::{Backend, Prefork};

use super::spawn::{copies_itself, copy_of};
use crate::Scenario;
use crate::daemon::kill;
use crate::os::Signal;
use crate::program::{prepare, say, scratch};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::spawning("an_executable_that_may_not_be_executed_is_told_by_its_path", copies_itself, |daemon| {
            let (mut copy, path) = copy_of(daemon, "spawn_two");
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
        Scenario::new(
            "a_directory_that_is_gone_is_told_where_the_program_was_started_in_it",
            loses_directory,
            |daemon| {
                let directory = fs::canonicalize(daemon.scratch()).expect("a directory").join(DIRECTORY);
                daemon.ends_with(0);
                let told = format!(": it was started in {}: No such file or directory", directory.display());
                assert_eq!(daemon.count(&told), 1, "{told}:\n{}", daemon.transcript());
                assert!(daemon.said("refused Some(\"posix_spawn\") for Some(0): cannot start worker 0: cannot run /"));
            },
        ),
        Scenario::new("an_argument_list_that_is_too_long_is_an_error_of_the_call", too_long, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("Argument list too long"), "{}", daemon.transcript());
            assert!(daemon.said("refused Some(\"posix_spawn\") for Some(0): cannot start worker 0: cannot run /"));
        }),
        Scenario::new("no_descriptors_for_a_spawn_is_an_error_of_the_call", few_descriptors, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.count("refused ") >= 5, "{}", daemon.transcript());
            assert_eq!(daemon.count("refused "), daemon.count("Too many open files"), "{}", daemon.transcript());
        }),
    ]
}

fn refuse(call: impl FnOnce() -> taskfork::Result<taskfork::Role>) {
    match call() {
        Ok(role) => say(&format!("{role:?}")),
        Err(error) => say(&format!("refused {:?} for {:?}: {error:?}", error.call(), error.worker())),
    }
}

const DIRECTORY: &str = "gone";

/// The program proper is started there.
fn loses_directory() {
    let directory = scratch().join(DIRECTORY);
    if directory.exists() {
        prepare();
        fs::remove_dir(directory).expect("a directory");
        return refuse(|| Prefork::new().workers(1).backend(Backend::Spawn).start());
    }
    fs::create_dir(&directory).expect("a directory");
    let mut program = Command::new(std::env::current_exe().expect("this binary"));
    let status = program.args(std::env::args_os().skip(1)).current_dir(directory).status();
    assert!(status.expect("a program").success());
}

fn too_long() {
    prepare();
    // SAFETY: there is no other thread.
    unsafe { std::env::set_var("TASKFORK_LONG", "x".repeat(1 << 20)) };
    refuse(|| Prefork::new().workers(2).backend(Backend::Spawn).start());
}

fn few_descriptors() {
    prepare();
    // 0 to 2 are open.
    for limit in 3..8 {
        refuse(|| {
            setrlimit(Resource::RLIMIT_NOFILE, limit, 1024).expect("a limit");
            let result = Prefork::new().workers(2).backend(Backend::Spawn).start();
            setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).expect("a limit");
            result
        });
    }
}
