//! Limits and resources: CPUs, memory, processes, descriptors, wakeups and real-time signals. Linux only.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Uid, setuid};
use taskfork::{Backend, Prefork, Report};

use super::ends::three_idle;
use super::heartbeats::{self, TIMEOUT, ticks};
use super::refusals::{id_of, refuse};
use super::stops::three_that_drain;
use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Signal, idle, ignore, own_descriptors, up_until_signal};
use crate::program::{fork, on_log, prepare, say, serve, start_count, try_fork, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("a_worker_killed_by_a_realtime_signal_restarts", three_idle, |daemon| {
            let workers = daemon.workers(3);
            // SAFETY: kill(2) takes integers. (nix's Signal has no real-time signals.)
            assert_eq!(unsafe { libc::kill(workers[2].pid as i32, libc::SIGRTMIN() + 3) }, 0);
            assert_eq!(daemon.worker().id, 2);
            assert!(daemon.said(&format!("killed by signal {}, restarting", libc::SIGRTMIN() + 3)));
        }),
        Scenario::new("blocked_realtime_signals_stay_blocked_in_the_parent", blocked_real_time, |daemon| {
            let worker = daemon.worker();
            // SAFETY: kill(2) takes integers.
            assert_eq!(unsafe { libc::kill(daemon.pid() as i32, libc::SIGRTMIN() + 2) }, 0);
            kill(worker.pid, Signal::SIGKILL);
            daemon.worker();
        }),
        Scenario::new("a_refused_restart_is_tried_again", restarts_beyond_the_limit, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGKILL);
            daemon.wait_for("log cannot start worker 0: fork failed: Resource temporarily unavailable");
            assert_eq!(daemon.worker().id, 0);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(limit_counts_the_lifeline),
        Scenario::new("file_size_limit_is_an_error_for_spawned_workers", spawns_without_files, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("refused Some(\"ftruncate\"): "), "{}", daemon.transcript());
        }),
        Scenario::new("the_default_is_one_worker_per_usable_cpu", one_cpu_by_affinity, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("log Starting 1 processes"), "{}", daemon.transcript());
        }),
        Scenario::new("the_default_respects_the_cpu_quota", one_cpu_by_quota, |daemon| {
            daemon.remove_at_end(own_cgroup("cpu", daemon.pid()));
            daemon.ends_with(0);
            assert!(daemon.said("log Starting 1 processes"), "{}", daemon.transcript());
        })
        .needs(no_cpu_cgroup),
        Scenario::new("only_out_of_memory_kills_are_logged_as_such", exhausts_memory, |daemon| {
            daemon.remove_at_end(memory_cgroup().expect("a cgroup").own(daemon.pid()));
            let first = daemon.worker();
            // The parent opens the counter of out-of-memory kills right before its first sleep.
            timeout_of_sleep(daemon.pid());
            kill(first.pid, Signal::SIGUSR2);
            let second = daemon.worker();
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
        Scenario::new("kills_by_the_parent_are_no_out_of_memory_kills", child_exhausts_memory, |daemon| {
            daemon.remove_at_end(memory_cgroup().expect("a cgroup").own(daemon.pid()));
            let worker = daemon.worker();
            timeout_of_sleep(daemon.pid());
            kill(worker.pid, Signal::SIGUSR2);
            daemon.wait_for("its child was killed by Some(9)");
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 1 processes");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let exit = format!("log child 0 (pid {}) killed by signal 9", worker.pid);
            assert!(daemon.transcript().lines().any(|line| line == exit), "{}", daemon.transcript());
        })
        .needs(no_memory_cgroup),
        Scenario::new("start_returns_the_error_of_a_refused_fork", process_limit_of_prefork, |daemon| {
            daemon.ends_with(0);
            let line = daemon.line("refused ");
            assert!(line.contains("refused fork for Some("), "{line}");
            assert!(line.ends_with("state as before: true"), "{line}");
        })
        .needs(limit_counts_the_lifeline),
        Scenario::new("fork_refused_at_startup_names_the_worker", process_limit, |daemon| {
            daemon.ends_with(0);
            let line = daemon.line("refused ");
            assert!(line.contains("refused fork for Some("), "{line}");
            assert!(line.contains("Resource temporarily unavailable"), "{line}");
            assert!(line.ends_with("state as before: true"), "{line}");
        })
        .needs(limit_counts_the_lifeline),
        Scenario::new("the_parents_descriptors_do_not_grow_with_workers", sixty_four_idle, |daemon| {
            let line = daemon.wait_for("descriptors before: ");
            let before: usize = line.rsplit(' ').next().expect("a number").parse().expect("a number");
            daemon.workers(64);
            let now = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("its descriptors").count();
            // Four descriptors: epoll, signalfd, the shared memory, and the counter of out-of-memory kills. With
            // `taskfork_portable`, a pair of descriptors for signals replaces the signalfd, and another pair lets
            // workers detect the parent's exit.
            assert!(now <= before + 6, "{before} before, now {now}");
        }),
        Scenario::new("an_idle_parent_sleeps_without_a_timeout", three_that_drain, |daemon| {
            daemon.workers(3);
            assert_eq!(timeout_of_sleep(daemon.pid()), "0xffffffff", "no timeout");
        })
        .for_threads_too(),
        Scenario::reporting("heartbeats_wake_the_parent_once_per_timeout", twenty_with_heartbeats, |daemon| {
            daemon.wait_for_times("is ready", 20);
            let began = Instant::now();
            let before = wakeups(daemon.pid());
            ticks(daemon, 20);
            // The number of wakeups is read before the time. A delay between the two reads only lengthens the measured
            // time, so no wakeup exceeds the limit because of it.
            let times = wakeups(daemon.pid()) - before;
            let passed = began.elapsed();
            // The parent checks heartbeats once per timeout, so the measured time may include one check more than it
            // has timeouts.
            let checks = passed.as_millis() as u64 / TIMEOUT.as_millis() as u64 + 1;
            // The parent's first sleep also counts as a wakeup, if it began only after the first read of the number.
            assert!(times <= checks + 1, "{times} wakeups in {passed:?}");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
    ]
}

fn one_cpu_by_affinity() {
    let mut one = nix::sched::CpuSet::new();
    let all = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("the affinity");
    let first = (0..nix::sched::CpuSet::count()).find(|&cpu| all.is_set(cpu) == Ok(true)).expect("a CPU");
    one.set(first).expect("a CPU");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).expect("an affinity");
    fork(0, 100);
}

/// Returns the directory of this process's cgroup under this controller of cgroup v1.
fn cgroup(controller: &str) -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        fields.next()?.split(',').any(|name| name == controller).then(|| fields.next())?
    })?;
    let path = PathBuf::from(format!("/sys/fs/cgroup/{controller}{group}"));
    path.is_dir().then_some(path)
}

/// Returns the name of a cgroup for a probe. No other probe has it, because scenarios of one process run at the same
/// time.
fn probe_name() -> String {
    static PROBES: AtomicUsize = AtomicUsize::new(0);
    format!("taskfork-probe-{}-{}", std::process::id(), PROBES.fetch_add(1, Ordering::Relaxed))
}

fn cannot_make_cgroup(controller: &str) -> Option<&'static str> {
    let probe = cgroup(controller)?.join(probe_name());
    fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).err().map(|_| "a cgroup that the test may change")
}

fn no_cpu_cgroup() -> Option<&'static str> {
    if cgroup("cpu").is_none() { Some("the cpu controller of cgroup v1") } else { cannot_make_cgroup("cpu") }
}

/// A cgroup whose memory can be limited, and the name of the file that contains the limit. The name differs between
/// cgroup v2 and v1's memory controller.
struct MemoryCgroup {
    path: PathBuf,
    limit: &'static str,
}

impl MemoryCgroup {
    fn own(&self, pid: u32) -> PathBuf {
        self.path.join(format!("taskfork-test-{pid}"))
    }

    /// Returns whether the memory of a new cgroup inside this one can be limited.
    fn works(&self) -> bool {
        let probe = self.path.join(probe_name());
        let works = fs::create_dir(&probe).is_ok() && probe.join(self.limit).exists();
        let _ = fs::remove_dir(&probe);
        works
    }
}

fn memory_cgroup() -> Option<MemoryCgroup> {
    let v1 = cgroup("memory").map(|path| MemoryCgroup { path, limit: "memory.limit_in_bytes" });
    v1.filter(MemoryCgroup::works).or_else(|| {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
        let path = PathBuf::from(format!("/sys/fs/cgroup{group}"));
        Some(MemoryCgroup { path, limit: "memory.max" }).filter(MemoryCgroup::works)
    })
}

fn no_memory_cgroup() -> Option<&'static str> {
    memory_cgroup().is_none().then_some("a cgroup whose memory the test may limit, v1 or v2")
}

/// Returns the directory of the program's own cgroup. The test removes it when the program has exited.
fn own_cgroup(controller: &str, pid: u32) -> PathBuf {
    cgroup(controller).expect("a cgroup").join(format!("taskfork-test-{pid}"))
}

fn enter_cgroup(path: &Path, limits: &[(&str, &str)]) {
    // The directory of a killed test may still exist.
    let _ = fs::remove_dir(path);
    fs::create_dir(path).expect("a cgroup");
    for (name, value) in limits {
        fs::write(path.join(name), value).expect("a limit");
    }
    fs::write(path.join("cgroup.procs"), std::process::id().to_string()).expect("a move to the cgroup");
}

fn one_cpu_by_quota() {
    enter_cgroup(
        &own_cgroup("cpu", std::process::id()),
        &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")],
    );
    fork(0, 100);
}

/// The first process of the worker allocates memory without end after SIGUSR2. Its replacements allocate none.
fn exhausts_memory() {
    let cgroup = memory_cgroup().expect("a cgroup");
    enter_cgroup(&cgroup.own(std::process::id()), &[(cgroup.limit, "64M")]);
    let starts = start_count();
    let id = fork(1, 100);
    if starts() == 1 {
        up_until_signal(id, Signal::SIGUSR2);
        exhaust_memory();
    }
    up(id);
    idle()
}

/// After SIGUSR2, a child of the worker allocates memory without end. The worker itself ignores SIGTERM.
fn child_exhausts_memory() {
    let cgroup = memory_cgroup().expect("a cgroup");
    enter_cgroup(&cgroup.own(std::process::id()), &[(cgroup.limit, "64M")]);
    let id = fork(1, 100);
    ignore(Signal::SIGTERM);
    up_until_signal(id, Signal::SIGUSR2);
    // SAFETY: this process has no other thread.
    match unsafe { nix::unistd::fork() }.expect("a fork") {
        ForkResult::Child => exhaust_memory(),
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).expect("its status");
            let signal = if let WaitStatus::Signaled(_, signal, _) = status { Some(signal as i32) } else { None };
            say(&format!("its child was killed by {signal:?}"));
        }
    }
    idle()
}

fn exhaust_memory() -> ! {
    let mut hoard = Vec::new();
    loop {
        hoard.push(std::hint::black_box(vec![1u8; 1 << 20]));
    }
}

/// Waits until the process sleeps in epoll_wait(2) or epoll_pwait(2), and returns the timeout, which is the fourth
/// argument of the call.
pub fn timeout_of_sleep(pid: u32) -> String {
    let sleeps = [
        // Other architectures have only epoll_pwait.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
    ];
    let sleeps = sleeps.map(|number| number.to_string());
    loop {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).expect("its system call");
        assert_ne!(call.trim_end(), "-1 0x0 0x0", "the process has ended");
        let mut words = call.split(' ');
        if words.next().is_some_and(|number| sleeps.iter().any(|sleep| sleep == number)) {
            return words.nth(3).expect("a timeout").to_owned();
        }
        std::thread::yield_now();
    }
}

fn process_limit() {
    prepare();
    become_lone_user(20);
    refuse(100, |n| try_fork(n, 0));
}

fn process_limit_of_prefork() {
    prepare();
    become_lone_user(20);
    refuse(100, |n| id_of(Prefork::new().workers(n).start()));
}

/// The shared memory of spawned workers is a file, and this process must not write files.
fn spawns_without_files() {
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0).expect("a limit");
    let error = Prefork::new().workers(1).backend(Backend::Spawn).start().expect_err("a refusal");
    say(&format!("refused {:?}: {error:?}", error.call()));
}

fn blocked_real_time() {
    // SAFETY: a signal set that is all zeroes is valid.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: both calls get a valid set, and sigprocmask(2) accepts null for the old mask.
    let blocked = unsafe {
        libc::sigaddset(&mut set, libc::SIGRTMIN() + 2);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut())
    };
    assert_eq!(blocked, 0);
    up(fork(1, 100));
    idle();
}

/// Lowers the process limit before the parent first tries to restart a worker, so that this attempt fails. Raises the
/// limit before the second attempt.
fn restarts_beyond_the_limit() {
    prepare();
    become_lone_user(20);
    on_log("restarting", || setrlimit(Resource::RLIMIT_NPROC, 0, 20).expect("a limit"));
    on_log("trying again", || setrlimit(Resource::RLIMIT_NPROC, 20, 20).expect("a limit"));
    up(fork(1, 100));
    idle();
}

/// Sets the process limit, and becomes a user without other processes, because `RLIMIT_NPROC` counts all processes of a
/// user and does not apply to root.
pub fn become_lone_user(limit: u64) {
    setrlimit(Resource::RLIMIT_NPROC, limit, limit).expect("a limit");
    setuid(Uid::from_raw(0x7000_0000 + std::process::id())).expect("another user");
}

fn limit_counts_the_lifeline() -> Option<&'static str> {
    cfg!(all(target_os = "linux", taskfork_portable))
        .then_some("a process limit that does not count the lifeline's thread")
}

fn sixty_four_idle() {
    say(&format!("descriptors before: {}", own_descriptors().len()));
    up(fork(64, 100));
    idle();
}

/// Returns how often the process has gone to sleep: its voluntary context switches.
fn wakeups(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("a count");
    waits.trim().parse().expect("a number")
}

fn twenty_with_heartbeats() -> Report {
    serve(heartbeats::service(20), |worker| {
        assert!(!worker.stop_requested());
        worker.ready();
        let mut rounds = 0u64;
        while !worker.wait_for_stop(Some(TIMEOUT / 100)) {
            (0..1000).for_each(|_| worker.heartbeat());
            rounds += 1;
            if worker.id() == 0 && rounds % 10 == 0 {
                say("tick");
            }
        }
    })
}
