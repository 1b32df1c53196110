//! Tests of `Backend::Spawn`, which starts each worker by executing the program again.

use std::env::consts::EXE_EXTENSION;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use taskfork::{Prefork, Report};

use crate::daemon::{Daemon, kill};
#[cfg(not(target_os = "linux"))]
use crate::os::NOT_FOUND;
use crate::os::{self, Signal};
use crate::program::{drain, say, serve, up};
use crate::{PROGRAM, Scenario};

const VARIABLE: &str = "TASKFORK_WORKER";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::spawning(
            "code_before_the_call_runs_in_each_spawned_worker",
            prints_directory_before_the_call,
            |daemon| {
                daemon.workers(2);
                let here = std::env::current_dir().expect("a directory");
                let before = format!("before: {} in {}", PROGRAM, here.display());
                assert_eq!(daemon.count(&before), 3, "{before}:\n{}", daemon.transcript());
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert_eq!(daemon.count("drained"), 2);
            },
        ),
        Scenario::spawning("spawned_workers_have_their_id_and_own_random_numbers", prints_random_numbers, |daemon| {
            daemon.ends_with(0);
            let transcript = daemon.transcript();
            let mut drawn: Vec<&str> = transcript.lines().filter(|line| line.starts_with("drew ")).collect();
            drawn.dedup();
            assert_eq!(drawn.len(), 2, "{transcript}");
        }),
        Scenario::spawning("taskfork_worker_variable_is_removed_by_the_call", looks_for_variable, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("variable before: true, after: false"), 2, "{}", daemon.transcript());
        }),
        Scenario::spawning("taskfork_worker_variable_set_by_hand_is_ignored", sets_variable_by_hand, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("log Starting 1 processes"), 4, "{}", daemon.transcript());
            assert_eq!(daemon.count("report: finished"), 4);
        }),
        Scenario::spawning("same_program_started_before_the_call_is_no_parent", passes_variable_to_a_child, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("error backend: a worker has executed its program again before the call"), 1);
            assert_eq!(daemon.count("log Starting 1 processes"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("up 0"), 1);
        }),
        #[cfg(unix)]
        Scenario::spawning(
            "spawned_worker_that_closed_its_descriptors_gets_an_error",
            closes_its_descriptors,
            |daemon| {
                daemon.ends_with(3);
                assert_eq!(daemon.count("log Starting 1 processes"), 1, "{}", daemon.transcript());
                assert_eq!(daemon.count("error backend: what worker 0 was passed by its parent was closed"), 1);
            },
        ),
        #[cfg(target_os = "linux")]
        Scenario::spawning("setuid_program_refuses_the_taskfork_worker_variable", starts_itself_as_setuid, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("error backend: a program whose file gives"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("log Starting 1 processes"), 1);
        })
        .needs(super::not_root),
        Scenario::spawning("spawn_works_in_a_parent_with_threads", with_threads, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGKILL);
            daemon.worker();
            for rolls in 1..4 {
                daemon.signal(Signal::SIGHUP);
                daemon.worker();
                daemon.wait_for_times("log Rolling restart done", rolls);
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("drained"));
        }),
        Scenario::spawning("a_spawned_worker_ends_with_its_parent", one, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGKILL);
            daemon.end();
        }),
        #[cfg(target_os = "linux")]
        Scenario::spawning("spawned_worker_exits_at_start_if_its_parent_ended", waits_before_the_call, |daemon| {
            daemon.wait_for("about to call");
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert!(!daemon.said("up 0"), "{}", daemon.transcript());
        }),
        #[cfg(target_os = "linux")]
        Scenario::spawning("restarts_do_not_need_the_executable_at_its_path", starts_and_ends, |daemon| {
            let (mut copy, path) = copy_of(daemon, "two_spawned_workers_stop_on_term");
            let workers = copy.workers(2);
            fs::remove_file(&path).expect("a file");
            kill(workers[0].pid, Signal::SIGKILL);
            assert_eq!(copy.worker().id, 0, "the executable was deleted");
            fs::write(&path, "replaced").expect("a file");
            kill(workers[1].pid, Signal::SIGKILL);
            assert_eq!(copy.worker().id, 1, "the executable was replaced");
            copy.signal(Signal::SIGTERM);
            copy.ends_with(0);
            assert_eq!(copy.count("cannot start"), 0, "{}", copy.transcript());
            daemon.ends_with(0);
        }),
        #[cfg(not(target_os = "linux"))]
        Scenario::spawning("deleted_or_replaced_executable_only_delays_restarts", starts_and_ends, |daemon| {
            let (mut copy, path) = copy_of(daemon, "two_spawned_workers_stop_on_term");
            let workers = copy.workers(2);
            let original = path.with_extension("original");
            fs::rename(&path, &original).expect("a rename");
            kill(workers[0].pid, Signal::SIGKILL);
            copy.wait_for(&format!("log cannot start worker 0: cannot run {}: {NOT_FOUND}", path.display()));
            fs::copy(&original, &path).expect("a copy");
            copy.wait_for(&format!("log cannot start worker 0: cannot run {}: it was replaced since", path.display()));
            // The old file is renamed first, because on Windows a rename cannot replace a file that another process has
            // open.
            fs::rename(&path, path.with_extension("other")).expect("a rename");
            fs::rename(&original, &path).expect("a rename");
            assert_eq!(copy.worker().id, 0, "the original executable is back");
            copy.signal(Signal::SIGTERM);
            copy.ends_with(0);
            assert!(copy.said("drained 1") && !copy.said(&format!("child 1 (pid {}) killed", workers[1].pid)));
            daemon.ends_with(0);
        }),
        Scenario::spawning("two_spawned_workers_stop_on_term", two, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
    ]
}

fn one() -> Report {
    serve(Prefork::new().workers(1), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

pub fn two() -> Report {
    serve(Prefork::new().workers(2), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

/// Changes the current directory before the call. The workers still start in the directory in which the parent was
/// started.
fn prints_directory_before_the_call() -> Report {
    let here = std::env::current_dir().expect("a directory");
    say(&format!("before: {} in {}", std::env::args().nth(1).expect("an argument"), here.display()));
    std::env::set_current_dir("/").expect("a directory");
    two()
}

fn prints_random_numbers() -> Report {
    serve(Prefork::new().workers(2), |worker| {
        assert_eq!(taskfork::task_id(), Some(worker.id()));
        say(&format!("drew {}", rand::random::<u64>()));
    })
}

fn looks_for_variable() -> Report {
    let before = std::env::var_os(VARIABLE).is_some();
    serve(Prefork::new().workers(2), move |_| {
        say(&format!("variable before: {before}, after: {}", std::env::var_os(VARIABLE).is_some()));
    })
}

fn sets_variable_by_hand() -> Report {
    if std::env::args().len() == 3 && std::env::var_os(VARIABLE).is_none() {
        let parent = std::process::id();
        let values = ["nonsense", "", &format!("{parent} 0 0 1 - - 0 64 0 1 -1 1 2 3 4")];
        for value in values {
            let mut command = Command::new(std::env::current_exe().expect("this binary"));
            command.args(std::env::args().skip(1)).arg("by hand").env(VARIABLE, value);
            assert!(command.status().expect("a program").success());
        }
    }
    serve(Prefork::new().workers(1), |_| {})
}

/// Before its own call, the worker starts the program again. This child inherits the environment variable that marks a
/// worker.
fn passes_variable_to_a_child() -> Report {
    let is_child = std::env::args().any(|argument| argument == "child");
    if std::env::var_os(VARIABLE).is_some() && !is_child {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        let status = command.args(std::env::args().skip(1)).arg("child").status().expect("a program");
        assert_eq!(status.code(), Some(1));
    }
    serve(Prefork::new().workers(1), |worker| up(worker.id()))
}

/// Before the call, the workers close all descriptors from 3 on, as daemons do.
#[cfg(unix)]
fn closes_its_descriptors() -> Report {
    if std::env::var_os(VARIABLE).is_some() {
        for fd in 3..256 {
            let _ = nix::unistd::close(fd);
        }
    }
    serve(Prefork::new().workers(1).max_restarts(1), |_| {})
}

/// Executes itself with root as the effective user only. So the program runs as if another user had executed a
/// set-user-ID program of root. That user may have set any environment variable.
#[cfg(target_os = "linux")]
fn starts_itself_as_setuid() -> Report {
    use nix::unistd::{Uid, setresuid};
    use std::os::unix::process::CommandExt;

    if std::env::var_os(VARIABLE).is_none() {
        let root = Uid::from_raw(0);
        let other = Uid::from_raw(65534);
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(std::env::args().skip(1)).env(VARIABLE, "anything");
        // SAFETY: setresuid(2) is async-signal-safe.
        unsafe { command.pre_exec(move || Ok(setresuid(other, root, root)?)) };
        assert_eq!(command.status().expect("a program").code(), Some(1));
    }
    serve(Prefork::new().workers(1), |_| {})
}

fn with_threads() -> Report {
    for _ in 0..3 {
        thread::spawn(|| {
            loop {
                thread::park();
            }
        });
    }
    one()
}

/// The worker waits until its parent has exited, and only then makes the call. The kernel sends the worker SIGUSR2 when
/// the parent exits (PR_SET_PDEATHSIG). If the parent has already exited, the worker does not wait.
#[cfg(target_os = "linux")]
fn waits_before_the_call() -> Report {
    if let Ok(variable) = std::env::var(VARIABLE) {
        let parent_ended = nix::sys::signal::SigSet::from_iter([Signal::SIGUSR2]);
        parent_ended.thread_block().expect("a mask");
        nix::sys::prctl::set_pdeathsig(Signal::SIGUSR2).expect("a signal");
        say("about to call");
        if variable.split(' ').next() == Some(&nix::unistd::getppid().to_string()) {
            parent_ended.wait().expect("the end of the parent");
        }
    }
    one()
}

/// Starts one worker and ends. The test runs a copy of the executable, so that it can delete the executable.
pub fn starts_and_ends() -> Report {
    serve(Prefork::new().workers(1), |_| {})
}

pub fn copy_of(daemon: &Daemon, scenario: &str) -> (Daemon, PathBuf) {
    let path = daemon.scratch().join("program").with_extension(EXE_EXTENSION);
    os::copy_program(&std::env::current_exe().expect("this binary"), &path);
    (Daemon::start_program(&path, scenario, "spawn", None), path)
}
