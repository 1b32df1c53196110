//! New programs that are broken. Each is tried and refused, and the service goes on as if nothing had happened.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::LazyLock;

use nix::sys::signal::Signal;

use super::{Scenario, not_root};
use crate::build::{self, Before, Build, Fate, Pool, Workers};
use crate::client::{self, Client};
use crate::daemon::Daemon;
use crate::procfs;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("program_that_exits_at_once_is_refused", |workers| {
            build(workers, |new| new.before(Before::Exits(7)), &["status 7", "before it reached the call"]);
        }),
        Scenario::new("program_that_prints_and_exits_0_is_refused", |workers| {
            build(workers, |new| new.before(Before::PrintsAndExits), &["status 0", "before it reached the call"]);
        }),
        Scenario::new("program_that_crashes_before_the_call_is_refused", |workers| {
            build(workers, |new| new.before(Before::Crashes), &["signal 6", "before it reached the call"]);
        }),
        Scenario::new("program_that_hangs_before_the_call_is_refused", |workers| {
            build(workers, |new| new.before(Before::Hangs), &["its call within the upgrade timeout"]);
        }),
        Scenario::new("program_whose_worker_exits_is_refused", |workers| {
            build(workers, |new| new.pool(Pool::default().fate(Fate::ExitsWith(7))), &["status 7"]);
        }),
        Scenario::new("program_whose_worker_exits_with_0_is_refused", |workers| {
            build(workers, |new| new.pool(Pool::default().fate(Fate::ExitsWith(0))), &["status 0"]);
        }),
        Scenario::new("program_whose_worker_exits_within_a_second_is_refused", |workers| {
            let pool = Pool { ready_timeout_ms: None, fate: Fate::ExitsWith(7), ..Pool::default() };
            build(workers, |new| new.pool(pool.clone()), &["status 7"]);
        }),
        Scenario::new("program_whose_worker_is_never_ready_is_refused", |workers| {
            let pool = Pool { ready_timeout_ms: Some(500), fate: Fate::NeverReady, ..Pool::default() };
            build(workers, |new| new.pool(pool.clone()), &["ready in time"]);
        }),
        Scenario::new("upgrade_timeout_limits_the_trial", |workers| {
            build(
                workers,
                |new| new.pool(Pool::default().fate(Fate::NeverReady)),
                &["not ready within the upgrade timeout"],
            );
        }),
        Scenario::new("program_that_refuses_its_settings_is_refused", |workers| {
            let pool = Pool { max_surge: Some(0), max_unavailable: Some(0), ..Pool::default() };
            build(workers, |new| new.pool(pool.clone()), &["max_surge"]);
        }),
        Scenario::new("program_with_worker_threads_is_refused", |workers| {
            build(workers, |new| Build { workers: Workers::Threads, ..new }, &["thread"]);
        }),
        Scenario::new("program_of_a_service_that_cannot_listen_is_refused", |workers| {
            let pool = Pool { listens: vec!["unix:/no/such/directory/socket".into()], ..Pool::default() };
            build(workers, |new| new.pool(pool.clone()), &["/no/such/directory/socket"]);
        }),
        Scenario::new("file_that_is_not_executable_is_refused", |workers| {
            file(workers, |path| build::write_file(path, &build::program_bytes(), 0o644), "");
        }),
        Scenario::new("text_file_is_refused", |workers| {
            file(workers, |path| build::write_file(path, b"This is release 2.\n", 0o755), "");
        }),
        Scenario::new("empty_file_is_refused", |workers| {
            file(workers, |path| build::write_file(path, b"", 0o755), "");
        }),
        Scenario::new("script_without_the_crate_is_refused", |workers| {
            file(workers, |path| build::write_file(path, b"#!/bin/sh\necho hello, world\n", 0o755), "");
        }),
        Scenario::new("program_for_another_architecture_is_refused", |workers| {
            file(workers, |path| build::write_file(path, &for_another_architecture(), 0o755), "");
        }),
        Scenario::new("half_copied_program_is_refused", |workers| {
            let program = build::program_bytes();
            file(workers, |path| build::write_file(path, &program[..program.len() / 2], 0o755), "");
        }),
        Scenario::new("directory_is_refused", |workers| file(workers, replace_by_directory, "")),
        Scenario::new("deleted_program_is_refused", |workers| {
            file(workers, remove, "No such file or directory");
        }),
        Scenario::new("dangling_symlink_is_refused", |workers| {
            file(workers, |path| replace_by_link(path, "/no/such/program"), "No such file or directory");
        }),
        Scenario::new("set_user_id_program_is_refused", |workers| {
            file(workers, |path| build::write_file(path, &build::program_bytes(), 0o4755), "set-user-ID");
        })
        .needs(not_root),
        Scenario::new("set_group_id_program_is_refused", |workers| {
            file(workers, |path| build::write_file(path, &build::program_bytes(), 0o2755), "set-group-ID");
        })
        .needs(not_root),
    ]
}

/// The number of times that each broken program is tried.
const TIMES: usize = 3;

fn build(workers: Workers, broken: impl Fn(Build) -> Build, reasons: &[&str]) {
    is_refused(workers, |path| broken(Build::new("new", workers)).install(path), reasons);
}

fn file(workers: Workers, replace: impl Fn(&Path), reason: &str) {
    is_refused(workers, replace, &[reason]);
}

/// Tries the program several times. Checks that each time one line gives the reason, and nothing else changes. Then
/// upgrades to a good program.
fn is_refused(workers: Workers, replace: impl Fn(&Path), reasons: &[&str]) {
    // Three seconds for the checks and the trial. Only a program that hangs takes longer.
    let old = Build { upgrade_timeout_ms: Some(3000), ..Build::new("old", workers) };
    let mut daemon = Daemon::start(&old);
    daemon.ready_workers("old", 2);
    let mut client = Client::connect(&daemon.address(0)).expect("a connection");
    let answer = client.ask();
    let before = State::of(&daemon);
    for times in 1..=TIMES {
        replace(&daemon.program());
        daemon.signal(Signal::SIGUSR2);
        daemon.wait_for_times("log Upgrade aborted: ", times);
        assert_eq!(client.ask(), answer);
        let after = daemon.after_cleanup(State::of, &before);
        assert_eq!(after, before, "{}", daemon.transcript());
    }
    let lines = daemon.lines_with("log Upgrade aborted: ");
    for reason in reasons {
        assert!(lines.iter().all(|line| line.contains(reason)), "'{reason}':\n{}", daemon.transcript());
    }
    assert!(lines.iter().all(|line| line.len() > "old log Upgrade aborted: ".len()), "{}", daemon.transcript());
    assert_eq!(client::ask(&daemon.address(0)).build, "old");
    drop(client);
    remove(&daemon.program());
    daemon.upgrade(&Build::new("third", workers));
    daemon.assert_runs(&["third - 0", "third - 1"]);
    daemon.stop();
    assert!(!daemon.said("restarting") && !daemon.said("The new program supervises 4"), "{}", daemon.transcript());
}

/// What a refused upgrade must not change.
#[derive(Debug, PartialEq)]
struct State {
    running: Vec<String>,
    sockets: usize,
    descriptors: usize,
    zombies: usize,
}

impl State {
    fn of(daemon: &Daemon) -> State {
        State {
            running: daemon.running(),
            sockets: procfs::sockets(daemon.pid()).len(),
            descriptors: procfs::links(daemon.pid()).len(),
            zombies: procfs::zombies(daemon.pid()).len(),
        }
    }
}

/// Returns the program with the machine type of another architecture in its header (elf(5)).
fn for_another_architecture() -> Vec<u8> {
    static PROGRAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut program = build::program_bytes();
        let other = if cfg!(target_arch = "x86_64") { 183u16 } else { 62 };
        program[18..20].copy_from_slice(&other.to_ne_bytes());
        program
    });
    PROGRAM.clone()
}

/// Removes the program, unless it was removed before.
fn remove(path: &Path) {
    if path.is_dir() {
        std::fs::remove_dir(path).expect("a directory");
    } else if path.symlink_metadata().is_ok() {
        std::fs::remove_file(path).expect("a program");
    }
}

fn replace_by_directory(path: &Path) {
    remove(path);
    std::fs::create_dir(path).expect("a directory");
}

fn replace_by_link(path: &Path, to: &str) {
    remove(path);
    symlink(to, path).expect("a link");
}
