//! Tests of services with several pools that are refused, and of pools with different kinds of workers.

use std::env;

use taskfork::{Backend, Prefork, Report, Supervisor, Worker};

use super::pools::{be_ready_and_drain, members, serve_pools, web_and_jobs};
use crate::Scenario;
use crate::daemon::kill;
use crate::os::Signal;
use crate::program::{EVER, prepare, say};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("bad_pools_are_refused_before_anything_starts", refused, |daemon| {
            daemon.ends_with(0);
            let transcript = daemon.transcript();
            let lines: Vec<&str> = transcript.lines().collect();
            let settings: Vec<&str> = lines.iter().filter_map(|line| line.split_once(':')).map(|line| line.0).collect();
            assert_eq!(settings, SETTINGS, "nothing is started:\n{transcript}");
        }),
        #[cfg(unix)]
        Scenario::threading("threads_next_to_forks_are_refused", threads_and_forks, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.line("error in pool "), "error in pool Some(\"jobs\")");
            assert!(daemon.said("backend: "), "{}", daemon.transcript());
            assert!(!daemon.said("log "), "nothing was started:\n{}", daemon.transcript());
        }),
        #[cfg(unix)]
        Scenario::spawning("a_pool_of_forks_and_a_pool_of_spawned_workers", forks_and_spawns, |daemon| {
            let old = members(daemon, 2);
            daemon.wait_for_times("is ready", 2);
            for member in &old {
                kill(member.pid, Signal::SIGKILL);
            }
            members(daemon, 2);
            daemon.wait_for_times("is ready", 4);
            daemon.signal(Signal::SIGHUP);
            let new = members(daemon, 2);
            daemon.wait_for("log jobs: Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(new.iter().all(|member| member.generation == 2), "{new:?}");
            assert_eq!(daemon.count("main begins"), 1 + 3, "only spawned workers run it:\n{}", daemon.transcript());
            assert_eq!(daemon.count("drained "), 4, "{}", daemon.transcript());
        }),
        Scenario::threading("a_pool_of_threads_and_a_pool_of_spawned_workers", threads_and_spawns, |daemon| {
            let old = members(daemon, 2);
            daemon.wait_for_times("is ready", 2);
            assert_eq!(old[1].pid, daemon.pid(), "a thread of the parent");
            kill(old[0].pid, Signal::SIGKILL);
            assert_eq!(members(daemon, 1)[0].pool, "jobs");
            daemon.wait_for_times("is ready", 3);
            daemon.signal(Signal::SIGHUP);
            members(daemon, 2);
            daemon.wait_for("log jobs: Rolling restart done");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("main begins"), 1 + 3, "{}", daemon.transcript());
            assert_eq!(daemon.count("drained "), 4, "{}", daemon.transcript());
            assert_eq!(daemon.count("report: "), 1, "a spawned worker does not return:\n{}", daemon.transcript());
        }),
    ]
}

/// The settings that the errors of [`refused`] name, with the pools.
const SETTINGS: [&str; 10] = [
    "Some(\"pool\") None",
    "Some(\"pool\") Some(\"web\")",
    "Some(\"pool\") ?",
    "Some(\"pool\") ?",
    "Some(\"pool\") ?",
    "Some(\"name\") Some(\"jobs\")",
    "Some(\"on_event\") Some(\"jobs\")",
    "Some(\"max_surge\") Some(\"jobs\")",
    "Some(\"workers\") ?",
    "Some(\"listen\") Some(\"jobs\")",
];

/// Prints the setting and the pool that each error names.
fn refused() {
    prepare();
    let one = || Prefork::new().workers(1);
    let with_jobs = |jobs: Prefork| Supervisor::new().pool("web", one().listen("127.0.0.1:0")).pool("jobs", jobs);
    let services = [
        Supervisor::new(),
        Supervisor::new().pool("web", one()).pool("web", one()),
        Supervisor::new().pool("", one()),
        Supervisor::new().pool("we b", one()),
        Supervisor::new().pool("a/b", one()),
        with_jobs(one().name("jobs")),
        with_jobs(one().on_event(|_, _| ())),
        with_jobs(one().max_surge(0)),
        with_jobs(one().workers(usize::MAX / 2)),
        with_jobs(one().listen("nonsense")),
    ];
    for (service, expected) in services.into_iter().zip(SETTINGS) {
        let error = service.start().expect_err("a refusal");
        let pool = if expected.ends_with('?') { "?".to_owned() } else { format!("{:?}", error.pool()) };
        say(&format!("{:?} {pool}: {error:?}", error.setting()));
    }
}

fn serve(service: Supervisor) -> Report {
    say(&format!("main begins with {} arguments", env::args().count()));
    serve_pools(service, |worker: Worker| be_ready_and_drain(&worker))
}

#[cfg(unix)]
fn forks_and_spawns() -> Report {
    let one = |backend| Prefork::new().workers(1).ready_timeout(EVER).backend(backend);
    serve(web_and_jobs(one(Backend::Fork), one(Backend::Spawn)))
}

#[cfg(unix)]
fn threads_and_forks() -> Report {
    let one = || Prefork::new().workers(1);
    serve_pools(web_and_jobs(one(), one().backend(Backend::Fork)), |worker| be_ready_and_drain(&worker))
}

fn threads_and_spawns() -> Report {
    let one = || Prefork::new().workers(1).ready_timeout(EVER);
    serve(web_and_jobs(one(), one().backend(Backend::Spawn)))
}
