//! Conditions in containers: pid namespaces, and an empty /proc. Linux only.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, getpid, getppid};
use taskfork::{Prefork, Report};

use super::heartbeats::second_hangs;
use super::not_root;
use super::refusals::{refuse, with_two_threads};
use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Gate, Signal, idle, in_child};
use crate::procfs::children;
use crate::program::{drain, fork, prepare, say, serve, try_fork, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("as_pid_1_the_parent_reaps_orphans_and_stops", as_init, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("the orphan is reaped") && daemon.said("log Stopping 1 processes"));
        })
        .needs(not_root),
        Scenario::new("subreaper_reaps_orphans", as_subreaper, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("the orphans are reaped"), "{}", daemon.transcript());
        }),
        Scenario::spawning("subreaper_leaves_the_program_its_own_children", waits_as_subreaper, |daemon| {
            let parent = daemon.pid();
            daemon.wait_for("waited for 1000 children");
            kill(parent, Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("lost"), "{}", daemon.transcript());
        }),
        Scenario::new("a_worker_starts_in_its_own_pid_namespace", new_namespace, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("pid 1, parent 0"), "{}", daemon.transcript());
        })
        .needs(not_root),
        Scenario::spawning("a_spawned_worker_starts_in_its_pid_namespace", spawned_in_namespace, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("pid 1, parent 0"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("log Starting 1 processes"), 1);
        })
        .needs(not_root),
        Scenario::new("worker_killed_from_outside_its_namespace_is_replaced", killed_from_outside, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("exited normally after a stop request from another process"), 1);
            assert_eq!(daemon.count("drained 0"), 2, "{}", daemon.transcript());
        })
        .needs(not_root),
        Scenario::new("no_memory_for_a_fork_names_the_worker", dead_namespace, |daemon| {
            daemon.ends_with(0);
            assert!(
                daemon.said("refused fork for Some(0): cannot start worker 0: fork failed: Cannot allocate memory")
            );
            assert!(daemon.said("state as before: true"));
        })
        .needs(not_root),
        Scenario::new("without_proc_threads_are_still_refused", without_proc, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("refused None: more than one thread is running"), "{}", daemon.transcript());
            assert_eq!(daemon.count("up "), 2);
        })
        .needs(not_root),
        Scenario::threading("stale_thread_is_not_logged_as_out_of_memory", hangs_without_proc, |daemon| {
            let workers = daemon.workers(2);
            daemon.wait_for(&format!("{} is stale", workers[1]));
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("out of memory"), "{}", daemon.transcript());
        })
        .needs(not_root),
    ]
}

/// The parent is pid 1 of a namespace. Its worker creates an orphaned process, which the kernel makes a child of pid 1.
fn as_init() {
    unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    let status = in_child(|| {
        fork(1, 100);
        let orphan = orphan();
        while nix::sys::signal::kill(orphan, None).is_ok() {
            std::thread::yield_now();
        }
        say("the orphan is reaped");
        nix::sys::signal::kill(getppid(), Signal::SIGTERM).expect("pid 1");
        idle();
    });
    std::process::exit(status);
}

/// Creates a process whose parent has exited, and returns its pid. The process exits once this function has returned.
pub fn orphan() -> nix::unistd::Pid {
    let (mut reader, mut writer) = UnixStream::pair().expect("a pipe");
    let (hold, release) = UnixStream::pair().expect("a pipe");
    let middle = || {
        // SAFETY: this process has no other thread, so the child inherits no lock that another thread holds (fork(2)).
        if let ForkResult::Child = unsafe { nix::unistd::fork() }.expect("fork") {
            writer.write_all(&getpid().as_raw().to_ne_bytes()).expect("a pipe");
            drop(release);
            let _ = std::io::copy(&mut &hold, &mut std::io::sink());
        }
    };
    assert_eq!(in_child(middle), 0);
    let mut pid = [0; 4];
    reader.read_exact(&mut pid).expect("a pid");
    nix::unistd::Pid::from_raw(i32::from_ne_bytes(pid))
}

/// The parent is a subreaper. Its worker makes orphans, which become children of the parent.
fn as_subreaper() {
    prepare();
    nix::sys::prctl::set_child_subreaper(true).expect("a subreaper");
    let id = fork(1, 100);
    let orphans: Vec<_> = (0..20).map(|_| orphan()).collect();
    while orphans.iter().any(|&orphan| nix::sys::signal::kill(orphan, None).is_ok()) {
        std::thread::yield_now();
    }
    say("the orphans are reaped");
    up(id);
}

/// The parent is a subreaper, and one of its threads starts programs and waits for them.
fn waits_as_subreaper() -> Report {
    const IN_WORKER: &str = "TASKFORK_TEST_IN_WORKER";
    if std::env::var_os(IN_WORKER).is_none() {
        // SAFETY: this process has no other thread that could read the environment.
        unsafe { std::env::set_var(IN_WORKER, "1") };
        nix::sys::prctl::set_child_subreaper(true).expect("a subreaper");
        std::thread::spawn(|| {
            for _ in 0..1000 {
                if let Err(error) = Command::new("true").status() {
                    say(&format!("a status was lost: {error}"));
                }
            }
            say("waited for 1000 children");
        });
    }
    serve(Prefork::new().workers(1), |worker| assert!(worker.wait_for_stop(None)))
}

fn new_namespace() {
    prepare();
    unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    fork(1, 100);
    say(&format!("pid {}, parent {}", getpid(), getppid()));
}

fn spawned_in_namespace() -> Report {
    // A spawned worker executes this code too, but it is in the pid namespace already. Its parent is outside, so
    // getppid(2) returns 0 there.
    if getppid().as_raw() != 0 {
        unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    }
    serve(Prefork::new().workers(1), |_| say(&format!("pid {}, parent {}", getpid(), getppid())))
}

/// The parent is pid 1 of a namespace. A process outside stops one worker. In the namespace, the sender has the pid 0.
fn killed_from_outside() {
    prepare();
    let gate = Gate::new();
    unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    // SAFETY: this process has no other thread, so the child inherits no lock that another thread holds (fork(2)).
    let ForkResult::Parent { child } = (unsafe { nix::unistd::fork() }).expect("fork") else {
        let report = serve(Prefork::new().workers(1).max_restarts(0), move |worker| {
            worker.enable_graceful_stop();
            gate.open(1);
            drain(&worker);
        });
        std::process::exit(i32::from(!report.is_success()))
    };
    let parent = child.as_raw() as u32;
    gate.pass();
    let worker = children(parent).first().copied().expect("a worker");
    kill(worker, Signal::SIGTERM);
    gate.pass();
    kill(parent, Signal::SIGTERM);
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
}

/// The init process of the new pid namespace has exited, so fork(2) fails with `ENOMEM` (pid_namespaces(7)).
fn dead_namespace() {
    prepare();
    unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    in_child(|| ());
    refuse(3, |n| try_fork(n, 0));
}

fn without_proc() {
    prepare();
    hide_proc();
    with_two_threads();
    // The kernel counts joined threads for a moment longer.
    while unshare(CloneFlags::CLONE_SIGHAND).is_err() {
        std::thread::yield_now();
    }
    up(fork(2, 0));
}

/// Without /proc, the parent cannot read the number of out-of-memory kills.
fn hangs_without_proc() -> Report {
    hide_proc();
    second_hangs()
}

fn hide_proc() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("private mounts");
    mount(Some("none"), "/proc", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("an empty /proc");
}
