//! Tests of services with several pools that read /proc or use pid namespaces. Linux only.

use std::fs;
use std::path::PathBuf;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::getppid;
use taskfork::{Prefork, Report, Supervisor, Worker};

use super::limits::timeout_of_sleep;
use super::namespaces::orphan;
use super::not_root;
use super::pools::{be_ready_and_drain, drain, members, pool, say_up, serve_pools, web_and_jobs};
use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Signal, in_child, own_descriptors};
use crate::procfs;
use crate::program::{EVER, say, scratch, serve};

/// The workers of one pool, and of all pools together.
const FEW: usize = 25;
const MANY: usize = 200;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_worker_holds_nothing_of_another_pool", prints_resources, |daemon| {
            daemon.ends_with(0);
            let alone = daemon.line("web alone holds ").replacen("web alone", "", 1);
            for pool in ["first", "web", "last"] {
                assert_eq!(daemon.line(&format!("{pool} holds ")), format!("{pool}{alone}"), "{}", daemon.transcript());
            }
        })
        .forking(),
        Scenario::reporting("a_restarted_worker_holds_nothing_of_another_pool", prints_after_restart, |daemon| {
            daemon.ends_with(0);
            let before = daemon.line("generation 0 holds ").replacen("generation 0", "", 1);
            assert_eq!(daemon.count(&before), 2 * 2, "{}", daemon.transcript());
        })
        .forking(),
        Scenario::reporting("a_further_pool_needs_one_descriptor_at_most", eight_and_one, |daemon| {
            let mut descriptors = || {
                (0..MANY).for_each(|_| drop(daemon.wait_for(" is up")));
                // The parent opens its last descriptor right before its first sleep.
                timeout_of_sleep(daemon.pid());
                let open = procfs::descriptors(daemon.pid());
                daemon.signal(Signal::SIGTERM);
                daemon.wait_for("service has ended");
                open
            };
            let eight = descriptors();
            let one = descriptors();
            daemon.ends_with(0);
            // Each pool has the file of its shared memory.
            assert!(eight <= one + 7, "{eight} descriptors with eight pools, {one} with one");
        })
        .forking(),
        Scenario::reporting("processes_have_the_names_of_service_and_pool", named, |daemon| {
            let members = members(daemon, 3);
            assert_eq!(name_of(daemon.pid()), "shop");
            for member in members {
                assert_eq!(name_of(member.pid), format!("shop/{}/{}", member.pool, member.id));
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::new("as_pid_1_no_worker_of_another_pool_is_a_stranger", as_init, |daemon| {
            daemon.ends_with(0);
            let killed = daemon.transcript().lines().filter(|line| line.starts_with("log jobs child 0 (pid ")).count();
            assert!(killed > KILLS, "{}", daemon.transcript());
            assert_eq!(daemon.count("killed by signal 9, restarting"), KILLS, "{}", daemon.transcript());
            assert!(!daemon.said("unknown status"), "{}", daemon.transcript());
        })
        .needs(not_root),
    ]
}

/// Prints how many descriptors and how many shared mappings this process has.
fn say_resources(who: &str) {
    let maps = fs::read_to_string("/proc/self/maps").expect("the mappings");
    let is_shared = |line: &&str| line.split(' ').nth(1).is_some_and(|permissions| permissions.ends_with('s'));
    let shared = maps.lines().filter(is_shared).count();
    say(&format!("{who} holds {} descriptors and {shared} shared mappings", own_descriptors().len()));
}

fn with_socket() -> Prefork {
    pool(1).listen("127.0.0.1:0")
}

/// First runs a service with one pool, and then one with three pools. Each pool has a listener.
fn prints_resources() -> Report {
    serve(with_socket(), |worker| {
        worker.ready();
        say_resources("web alone");
    });
    let service = Supervisor::new().pool("first", with_socket()).pool("web", with_socket()).pool("last", with_socket());
    serve_pools(service, |worker| {
        worker.ready();
        say_resources(worker.pool());
    })
}

/// The first process of each worker fails, so that its second one is forked when all pools run.
fn prints_after_restart() -> Report {
    serve_pools(web_and_jobs(with_socket(), with_socket()), |worker| {
        worker.ready();
        say_resources(&format!("generation {}", worker.generation()));
        if worker.generation() == 0 {
            std::process::exit(1);
        }
    })
}

fn be_up_and_drain(worker: Worker) {
    worker.enable_graceful_stop();
    say_up(&worker);
    drain(&worker);
}

fn eight_and_one() -> Report {
    let pools = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let few = || Prefork::new().workers(FEW).graceful_timeout(EVER);
    let eight = pools.into_iter().fold(Supervisor::new(), |service, name| service.pool(name, few()));
    serve_pools(eight, be_up_and_drain);
    say("first service has ended");
    let one = Prefork::new().workers(MANY).graceful_timeout(EVER);
    let report = serve_pools(Supervisor::new().pool("one", one), be_up_and_drain);
    say("second service has ended");
    report
}

fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).expect("a process").trim_end().to_owned()
}

fn named() -> Report {
    serve_pools(web_and_jobs(pool(2), pool(1)).name("shop"), |worker| be_ready_and_drain(&worker))
}

/// The number of times that the worker of `jobs` is killed.
const KILLS: usize = 4;

/// The parent is pid 1 of a namespace. The worker of `web` makes orphans, which become children of pid 1, and kills the
/// worker of `jobs`.
fn as_init() {
    unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    let status = in_child(|| {
        let report = serve_pools(web_and_jobs(pool(1), pool(1)), |worker| match worker.pool() {
            "web" => kill_and_orphan(&worker),
            _ => {
                // Ready before the kill, because otherwise the kill would be a startup failure.
                worker.enable_graceful_stop();
                worker.ready();
                fs::write(pid_file(worker.generation()), std::process::id().to_string()).expect("a file");
                drain(&worker);
            }
        });
        std::process::exit(i32::from(!report.is_success()));
    });
    std::process::exit(status);
}

fn pid_file(generation: u32) -> PathBuf {
    scratch().join(format!("jobs-{generation}"))
}

fn kill_and_orphan(worker: &Worker) {
    worker.enable_graceful_stop();
    worker.ready();
    for generation in 0..KILLS as u32 {
        let pid = wait_for_pid(generation);
        let orphans: Vec<_> = (0..5).map(|_| orphan()).collect();
        kill(pid, Signal::SIGKILL);
        while orphans.iter().any(|&orphan| nix::sys::signal::kill(orphan, None).is_ok()) {
            thread::yield_now();
        }
    }
    wait_for_pid(KILLS as u32);
    nix::sys::signal::kill(getppid(), Signal::SIGTERM).expect("pid 1");
    drain(worker);
}

/// Waits until the process of this generation of `jobs` has written its pid.
fn wait_for_pid(generation: u32) -> u32 {
    loop {
        match fs::read_to_string(pid_file(generation)).unwrap_or_default().parse() {
            Ok(pid) => return pid,
            Err(_) => thread::yield_now(),
        }
    }
}
