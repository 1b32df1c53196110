//! How workers end, and what follows.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::Scenario;
use crate::daemon::kill;
use crate::program::{fork, idle, say, start_count, try_fork, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("every_worker_gets_its_id_and_the_parent_exits_0_once_all_have_ended", four_that_end, |daemon| {
            let workers = daemon.workers(4);
            assert!(workers.iter().map(|up| up.id).eq(0..4), "{workers:?}");
            daemon.ends_with(0);
            assert!(daemon.said("log Starting 4 processes"));
            assert!(daemon.said(&format!("log child 2 (pid {}) exited normally", workers[2].pid)));
        }),
        Scenario::new("a_killed_worker_is_restarted_under_its_id", three_idle, |daemon| {
            let workers = daemon.workers(3);
            kill(workers[1].pid, Signal::SIGKILL);
            let again = daemon.worker();
            assert_eq!(again.id, 1);
            assert_ne!(again.pid, workers[1].pid);
            assert!(daemon.said(&format!("log child 1 (pid {}) killed by signal 9, restarting", workers[1].pid)));
        }),
        Scenario::new("a_worker_killed_by_a_real_time_signal_is_restarted_too", three_idle, |daemon| {
            let workers = daemon.workers(3);
            // SAFETY: kill(2) takes integers. nix knows no real-time signals.
            assert_eq!(unsafe { libc::kill(workers[2].pid as i32, libc::SIGRTMIN() + 3) }, 0);
            assert_eq!(daemon.worker().id, 2);
            assert!(daemon.said(&format!("killed by signal {}, restarting", libc::SIGRTMIN() + 3)));
        }),
        Scenario::new(
            "gives_up_after_budget_and_leaves_nobody_behind",
            || {
                if fork(3, 2) == 1 {
                    std::process::exit(3);
                }
                idle()
            },
            |daemon| {
                daemon.ends_with(1);
                assert_eq!(daemon.count("exited with status 3, restarting"), 2);
                assert_eq!(daemon.count("exited with status 3"), 4, "two restarts, the last end, and the error");
                assert!(daemon.said("log Too many child restarts (2), giving up"));
                assert!(
                    daemon.said_before("killed by signal 15", "error too many child restarts (2), giving up: child 1")
                );
            },
        ),
        Scenario::new(
            "the_error_of_giving_up_names_the_worker_and_its_end",
            || {
                let error = match try_fork(2, 0) {
                    Ok(0) => std::process::exit(7),
                    Ok(_) => idle(),
                    Err(error) => error,
                };
                say(&format!("{:?} {:?} {:?}", error.worker(), error.exit(), error.call()));
            },
            |daemon| {
                daemon.ends_with(0);
                assert!(daemon.said("Some(0) Some(Code(7)) None"), "{}", daemon.transcript());
            },
        ),
        Scenario::new("without_a_number_there_is_one_worker_per_cpu_of_the_affinity", one_cpu_by_affinity, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("log Starting 1 processes"), "{}", daemon.transcript());
        }),
        Scenario::new("without_a_number_there_is_one_worker_per_cpu_of_the_quota", one_cpu_by_quota, |daemon| {
            daemon.leaves(own_cgroup("cpu", daemon.pid()));
            daemon.ends_with(0);
            assert!(daemon.said("log Starting 1 processes"), "{}", daemon.transcript());
        })
        .needs(no_cpu_cgroup),
        Scenario::new("a_worker_killed_for_want_of_memory_is_told_as_such_and_others_are_not", want_memory, |daemon| {
            daemon.leaves(own_cgroup("memory", daemon.pid()));
            let (first, second) = (daemon.worker(), daemon.worker());
            assert!(
                daemon.said(&format!("child 0 (pid {}) killed by signal 9 (out of memory), restarting", first.pid))
            );
            kill(second.pid, Signal::SIGKILL);
            daemon.worker();
            assert!(daemon.said(&format!("child 0 (pid {}) killed by signal 9, restarting", second.pid)));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(no_memory_cgroup),
    ]
}

fn four_that_end() {
    up(fork(4, 100));
}

pub fn three_idle() {
    up(fork(3, 100));
    idle();
}

fn one_cpu_by_affinity() {
    let mut one = nix::sched::CpuSet::new();
    let all = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("the affinity");
    let first = (0..nix::sched::CpuSet::count()).find(|&cpu| all.is_set(cpu) == Ok(true)).expect("a CPU");
    one.set(first).expect("a CPU");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).expect("an affinity");
    fork(0, 100);
}

/// The directory of this process's cgroup under v1's controller of this name.
fn cgroup(controller: &str) -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        fields.next()?.split(',').any(|name| name == controller).then(|| fields.next())?
    })?;
    let path = PathBuf::from(format!("/sys/fs/cgroup/{controller}{group}"));
    path.is_dir().then_some(path)
}

fn cannot_make_cgroup(controller: &str) -> Option<&'static str> {
    let probe = cgroup(controller)?.join(format!("taskfork-probe-{}", std::process::id()));
    fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).err().map(|_| "a cgroup that it may change")
}

fn no_cpu_cgroup() -> Option<&'static str> {
    if cgroup("cpu").is_none() { Some("the cpu controller of cgroup v1") } else { cannot_make_cgroup("cpu") }
}

fn no_memory_cgroup() -> Option<&'static str> {
    if cgroup("memory").is_none() { Some("the memory controller of cgroup v1") } else { cannot_make_cgroup("memory") }
}

/// The program's own cgroup, which goes when the program is gone.
fn own_cgroup(controller: &str, pid: u32) -> PathBuf {
    cgroup(controller).expect("a cgroup").join(format!("taskfork-test-{pid}"))
}

fn enter_own_cgroup(controller: &str, limits: &[(&str, &str)]) {
    let path = own_cgroup(controller, std::process::id());
    fs::create_dir(&path).expect("a cgroup");
    for (name, value) in limits {
        fs::write(path.join(name), value).expect("a limit");
    }
    fs::write(path.join("cgroup.procs"), std::process::id().to_string()).expect("to be moved");
}

fn one_cpu_by_quota() {
    enter_own_cgroup("cpu", &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")]);
    fork(0, 100);
}

/// The first process of the id takes more than there is, the next ones nothing.
fn want_memory() {
    enter_own_cgroup("memory", &[("memory.limit_in_bytes", "64M")]);
    let starts = start_count();
    let id = fork(1, 100);
    up(id);
    if starts() == 1 {
        let mut hoard = Vec::new();
        loop {
            hoard.push(std::hint::black_box(vec![1u8; 1 << 20]));
        }
    }
    idle()
}
