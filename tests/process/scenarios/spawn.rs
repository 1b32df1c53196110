//! Workers that are the program, started again.

use std::env::consts::EXE_EXTENSION;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use taskfork::{Backend, Prefork, Report};

use crate::daemon::{Daemon, kill};
use crate::os::{self, NOT_FOUND, Signal};
use crate::program::{drain, say, serve, up};
use crate::{PROGRAM, Scenario};

const VARIABLE: &str = "TASKFORK_WORKER";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::spawning("what_is_before_the_call_runs_again_in_each_worker", says_where_it_is, |daemon| {
            daemon.workers(2);
            let here = std::env::current_dir().expect("a directory");
            let before = format!("before: {} in {}", PROGRAM, here.display());
            assert_eq!(daemon.count(&before), 3, "{before}:\n{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained"), 2);
        }),
        Scenario::spawning("a_spawned_worker_draws_random_numbers_and_has_its_id", draws, |daemon| {
            daemon.ends_with(0);
            let transcript = daemon.transcript();
            let mut drawn: Vec<&str> = transcript.lines().filter(|line| line.starts_with("drew ")).collect();
            drawn.dedup();
            assert_eq!(drawn.len(), 2, "{transcript}");
        }),
        Scenario::spawning("the_marker_is_not_left_for_a_workers_own_children", looks_for_marker, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("marker before: true, after: false"), 2, "{}", daemon.transcript());
        }),
        Scenario::spawning("a_marker_that_was_set_by_hand_makes_nobody_a_worker", sets_marker, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("log Starting 1 processes"), 4, "{}", daemon.transcript());
            assert_eq!(daemon.count("report: finished"), 4);
        }),
        Scenario::spawning("a_marker_that_leaked_into_a_workers_child_makes_it_no_worker", leaks_marker, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("the child is a worker: false"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("up 0"), 1);
        }),
        #[cfg(unix)]
        Scenario::spawning("a_worker_that_has_closed_what_it_was_passed_is_no_parent", closes_all, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.count("log Starting 1 processes"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("error backend: what worker 0 was passed by its parent was closed"), 2);
        }),
        #[cfg(target_os = "linux")]
        Scenario::spawning("a_program_with_rights_of_its_own_believes_no_marker", has_rights, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("error backend: a program whose file gives"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("log Starting 1 processes"), 1);
        })
        .needs(super::not_root),
        Scenario::spawning("a_parent_with_threads_is_welcome_and_stops_on_a_signal", with_threads, |daemon| {
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
        Scenario::spawning("a_worker_whose_parent_ends_before_the_call_ends_there", waits_before_the_call, |daemon| {
            daemon.wait_for("about to call");
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert!(!daemon.said("up 0"), "{}", daemon.transcript());
        }),
        Scenario::spawning(
            "an_executable_that_was_deleted_or_replaced_holds_up_restarts_alone",
            copies_itself,
            |daemon| {
                let (mut copy, path) = copy_of(daemon, "spawn_two");
                let workers = copy.workers(2);
                let original = path.with_extension("original");
                fs::rename(&path, &original).expect("a rename");
                kill(workers[0].pid, Signal::SIGKILL);
                copy.wait_for(&format!("log cannot start worker 0: cannot run {}: {NOT_FOUND}", path.display()));
                fs::copy(&original, &path).expect("a copy");
                copy.wait_for(&format!(
                    "log cannot start worker 0: cannot run {}: it was replaced since",
                    path.display()
                ));
                // Out of the way first: on Windows a rename cannot replace a file that somebody looks at meanwhile.
                fs::rename(&path, path.with_extension("other")).expect("a rename");
                fs::rename(&original, &path).expect("a rename");
                assert_eq!(copy.worker().id, 0, "it is the same again");
                copy.signal(Signal::SIGTERM);
                copy.ends_with(0);
                assert!(copy.said("drained 1") && !copy.said(&format!("child 1 (pid {}) killed", workers[1].pid)));
                daemon.ends_with(0);
            },
        ),
        Scenario::spawning("spawn_two", two, |daemon| {
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

/// It goes somewhere else before the call; the workers begin where it began.
fn says_where_it_is() -> Report {
    let here = std::env::current_dir().expect("a directory");
    say(&format!("before: {} in {}", std::env::args().nth(1).expect("an argument"), here.display()));
    std::env::set_current_dir("/").expect("a directory");
    two()
}

fn draws() -> Report {
    serve(Prefork::new().workers(2), |worker| {
        assert_eq!(taskfork::task_id(), Some(worker.id()));
        say(&format!("drew {}", rand::random::<u64>()));
    })
}

fn looks_for_marker() -> Report {
    let before = std::env::var_os(VARIABLE).is_some();
    serve(Prefork::new().workers(2), move |_| {
        say(&format!("marker before: {before}, after: {}", std::env::var_os(VARIABLE).is_some()));
    })
}

fn sets_marker() -> Report {
    if std::env::args().len() == 3 && std::env::var_os(VARIABLE).is_none() {
        let parent = std::process::id();
        let markers = ["nonsense", "", &format!("{parent} 0 0 1 - - 0 64 0 1 -1 1 2 3 4")];
        for marker in markers {
            let mut command = Command::new(std::env::current_exe().expect("this binary"));
            command.args(std::env::args().skip(1)).arg("by hand").env(VARIABLE, marker);
            assert!(command.status().expect("a program").success());
        }
    }
    serve(Prefork::new().workers(1), |_| {})
}

/// A worker that starts the program itself, before the call.
fn leaks_marker() -> Report {
    let is_child = std::env::args().any(|argument| argument == "child");
    if std::env::var_os(VARIABLE).is_some() && !is_child {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        assert!(command.args(std::env::args().skip(1)).arg("child").status().expect("a program").success());
    }
    if is_child {
        let error = Prefork::new().workers(1).max_workers(0).backend(Backend::Spawn).start().expect_err("a refusal");
        say(&format!("the child is a worker: {}", error.setting().is_none()));
        std::process::exit(0);
    }
    serve(Prefork::new().workers(1), |worker| up(worker.id()))
}

/// As daemons do, before the call.
#[cfg(unix)]
fn closes_all() -> Report {
    if std::env::var_os(VARIABLE).is_some() {
        for fd in 3..256 {
            let _ = nix::unistd::close(fd);
        }
    }
    serve(Prefork::new().workers(1).max_restarts(1), |_| {})
}

/// It starts itself as a program with a set-user-ID bit is started by somebody else, who may have set what he likes.
#[cfg(target_os = "linux")]
fn has_rights() -> Report {
    use nix::unistd::{Uid, setresuid};
    use std::os::unix::process::CommandExt;

    if std::env::var_os(VARIABLE).is_none() {
        let (root, other) = (Uid::from_raw(0), Uid::from_raw(65534));
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

/// The worker, until its parent is gone, which the kernel tells it when it has another one.
#[cfg(target_os = "linux")]
fn waits_before_the_call() -> Report {
    if let Ok(marker) = std::env::var(VARIABLE) {
        let told = nix::sys::signal::SigSet::from_iter([Signal::SIGUSR2]);
        told.thread_block().expect("a mask");
        nix::sys::prctl::set_pdeathsig(Signal::SIGUSR2).expect("a signal");
        say("about to call");
        if marker.split(' ').next() == Some(&nix::unistd::getppid().to_string()) {
            told.wait().expect("the end of the parent");
        }
    }
    one()
}

/// The program proper is a copy of this one, which can be deleted.
pub fn copies_itself() -> Report {
    serve(Prefork::new().workers(1), |_| {})
}

pub fn copy_of(daemon: &Daemon, scenario: &str) -> (Daemon, PathBuf) {
    let path = daemon.scratch().join("program").with_extension(EXE_EXTENSION);
    os::copy_program(&std::env::current_exe().expect("this binary"), &path);
    (Daemon::start_program(&path, scenario, "spawn", None), path)
}
