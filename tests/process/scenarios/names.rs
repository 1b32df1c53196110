//! The names of processes. Linux only.

use std::fs;
use std::thread;

use taskfork::{Prefork, Report};

use super::not_root;
use crate::Scenario;
use crate::daemon::kill;
use crate::os::Signal;
use crate::program::{drain, say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("processes_have_the_name_of_the_service", named, |daemon| {
            let workers = daemon.workers(2);
            assert_eq!(name_of(daemon.pid()), "web");
            for worker in &workers {
                assert_eq!(name_of(worker.pid), format!("web/{}", worker.id));
            }
            kill(workers[1].pid, Signal::SIGKILL);
            assert_eq!(name_of(daemon.worker().pid), "web/1", "after a restart");
            daemon.signal(Signal::SIGTTIN);
            assert_eq!(name_of(daemon.worker().pid), "web/2", "an added worker");
            daemon.signal(Signal::SIGHUP);
            for _ in 0..3 {
                let new = daemon.worker();
                assert_eq!(name_of(new.pid), format!("web/{}", new.id), "a replacement");
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("named as before: true"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("a_long_name_loses_its_beginning", long_name, |daemon| {
            let worker = daemon.worker();
            assert_eq!(name_of(daemon.pid()), "-größe-12345");
            assert_eq!(name_of(worker.pid), "größe-12345/0");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::reporting("a_worker_of_another_user_has_its_name", named_as_nobody, |daemon| {
            let worker = daemon.worker();
            assert_eq!(name_of(worker.pid), "web/0");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("cannot be named"), "{}", daemon.transcript());
        })
        .for_processes()
        .needs(not_root),
        Scenario::reporting("the_main_thread_gets_the_name", named_in_thread, |daemon| {
            let worker = daemon.worker();
            assert_eq!(name_of(daemon.pid()), "web");
            if worker.event_pid() != 0 {
                assert_eq!(name_of(worker.pid), "web/0");
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("named as before: true"), "{}", daemon.transcript());
        })
        .for_parents_with_threads(),
        Scenario::threading("worker_threads_keep_their_names", named, |daemon| {
            daemon.workers(2);
            let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("the threads");
            let mut names: Vec<_> = threads
                .map(|thread| fs::read_to_string(thread.expect("a thread").path().join("comm")).expect("a name"))
                .collect();
            names.sort();
            assert_eq!(names, ["web\n", "worker-0.0\n", "worker-1.0\n"]);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("without_a_name_processes_keep_theirs", unnamed, |daemon| {
            let worker = daemon.worker();
            assert_eq!(name_of(daemon.pid()), name_of(std::process::id()));
            assert_eq!(name_of(worker.pid), name_of(std::process::id()));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
    ]
}

/// Returns the name of a process, as ps(1) shows it.
fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).expect("a process").trim_end().to_owned()
}

fn serve_named(service: Prefork) -> Report {
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.ready();
        drain(&worker);
    })
}

/// Prints whether the parent has the same name after the service as before it.
fn restores_name(service: Prefork) -> Report {
    let name = || name_of(std::process::id());
    let before = name();
    let report = serve_named(service);
    say(&format!("named as before: {}", name() == before));
    report
}

fn named() -> Report {
    restores_name(Prefork::new().workers(2).name("web"))
}

fn long_name() -> Report {
    // An umlaut has two bytes, so the last 15 bytes begin in the middle of a character.
    serve_named(Prefork::new().workers(1).name("ä-größe-12345"))
}

fn named_as_nobody() -> Report {
    serve_named(Prefork::new().workers(1).name("web").user("nobody"))
}

fn named_in_thread() -> Report {
    thread::spawn(|| restores_name(Prefork::new().workers(1).name("web"))).join().expect("a report")
}

fn unnamed() -> Report {
    serve_named(Prefork::new().workers(1))
}
