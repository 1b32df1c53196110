//! Workers that run as another user, and workers that are pinned to CPUs. Linux only.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::{Gid, Group, Pid, Uid, User, getgroups, getresgid, getresuid, setgroups, setresuid, setuid};
use taskfork::{Backend, Event, ListenConfig, Prefork, Report, Worker};

use super::not_root;
use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{LIFELINES, Signal, idle};
use crate::program::{answer_clients, backend, drain, on_log, prepare, say, scratch, serve, up};
use crate::seccomp::deny;

/// A user, and a group to which this user does not belong.
pub const USER: &str = "nobody";
pub const GROUP: &str = "daemon";

/// Ports that only root may bind, and that are rarely in use.
const PORTS: RangeInclusive<u16> = 600..=990;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("workers_change_to_the_user_for_good", as_user, |daemon| {
            let user = user();
            daemon.workers(2);
            let ids =
                format!("uid {0} {0} {0}, gid {1} {1} {1}, groups {2:?}", user.uid, user.gid, groups_of(user.gid));
            assert_eq!(daemon.count(&ids), 2, "{ids}:\n{}", daemon.transcript());
            assert_eq!(daemon.count("back: EPERM EPERM EPERM"), 2, "{}", daemon.transcript());
            assert_eq!(owner(daemon.pid()), 0);
            assert_is_supervised(daemon, 2);
        })
        .needs(lacks_users)
        .for_processes(),
        Scenario::reporting("group_overrides_the_users_group", as_user_and_group, |daemon| {
            daemon.worker();
            let gid = group();
            let ids = format!("uid {0} {0} {0}, gid {gid} {gid} {gid}, groups {1:?}", user().uid, groups_of(gid));
            assert!(daemon.said(&ids), "{ids}:\n{}", daemon.transcript());
            assert_is_supervised(daemon, 1);
        })
        .needs(lacks_users)
        .for_processes(),
        Scenario::reporting("group_without_user_drops_supplementary_groups", as_group, |daemon| {
            daemon.worker();
            let ids = format!("uid 0 0 0, gid {0} {0} {0}, groups {{{0}}}", group());
            assert!(daemon.said(&ids), "{ids}:\n{}", daemon.transcript());
            assert_is_supervised(daemon, 1);
        })
        .needs(lacks_users)
        .for_processes(),
        Scenario::reporting("supplementary_groups_are_those_of_the_user", in_groups, |daemon| {
            daemon.worker();
            let user = user();
            let groups = BTreeSet::from([user.gid.as_raw(), 4711, 4712]);
            assert!(daemon.said(&format!("groups {groups:?}")), "{}", daemon.transcript());
            assert_is_supervised(daemon, 1);
        })
        .needs(lacks_users)
        .for_processes(),
        Scenario::reporting("an_unknown_uid_has_only_its_group", as_number, |daemon| {
            daemon.worker();
            let ids = "uid 4000000001 4000000001 4000000001, gid 4711 4711 4711, groups {4711}";
            assert!(daemon.said(ids), "{}", daemon.transcript());
            assert_is_supervised(daemon, 1);
        })
        .needs(not_root)
        .for_processes(),
        Scenario::reporting("unprivileged_workers_serve_a_privileged_port", on_privileged_port, |daemon| {
            daemon.workers(2);
            assert_eq!(daemon.count("by itself: Some(PermissionDenied)"), 2, "{}", daemon.transcript());
            let address = daemon.line("log Listening on ").trim_start_matches("log Listening on ").to_owned();
            let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
            assert!(port.is_some_and(|port| PORTS.contains(&port)), "{address}");
            let client = TcpStream::connect(address).expect("a listening socket");
            let mut line = String::new();
            BufReader::new(client).read_line(&mut line).expect("an answer");
            assert_eq!(line, format!("uid {}\n", user().uid));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(lacks_privileged_port)
        .for_processes(),
        Scenario::new("a_privileged_port_without_root_names_the_address", on_port_without_rights, |daemon| {
            daemon.ends_with(0);
            assert_eq!(
                daemon.count("Some(PermissionDenied) cannot listen on 127.0.0.1:"),
                2,
                "{}",
                daemon.transcript()
            );
            assert!(!daemon.said("log "), "nothing was started");
        })
        .needs(lacks_privileged_port),
        Scenario::new("an_unsupported_address_family_names_the_address", without_ipv6, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("97 cannot listen on [::1]:0: "), 2, "{}", daemon.transcript());
            assert!(!daemon.said("log "), "nothing was started");
        }),
        Scenario::reporting("workers_of_another_user_end_with_the_parent", as_user, |daemon| {
            for worker in daemon.workers(2) {
                assert_eq!(threads(worker.pid), 1 + LIFELINES);
            }
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert_eq!(daemon.count("drained "), 2, "every worker gets SIGTERM:\n{}", daemon.transcript());
        })
        .needs(lacks_users)
        .for_processes(),
        Scenario::spawning(
            "threads_of_a_spawned_worker_change_user_too",
            with_threads,
            |daemon| {
                let worker = daemon.worker();
                assert_eq!(threads(worker.pid), 3 + LIFELINES);
                let tasks = fs::read_dir(format!("/proc/{}/task", worker.pid)).expect("a process");
                for task in tasks {
                    let status = task.expect("a thread").path().join("status");
                    assert_eq!(owner_by(&status), user().uid.as_raw());
                }
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
            },
        )
        .needs(lacks_users),
        Scenario::reporting("heartbeats_and_readiness_work_under_another_user", ready, |daemon| {
            let first = daemon.worker();
            daemon.send(first, Signal::SIGSTOP);
            daemon.wait_for("has sent no heartbeat in time");
            assert_ne!(daemon.worker().pid, first.pid);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(lacks_users)
        .for_processes(),
        Scenario::new("unusable_users_and_groups_are_refused_before_any_start", refusals, |daemon| {
            daemon.ends_with(0);
            for refusal in [
                r#"unknown: Some("user") Some(NotFound) user: cannot look up nobody-of-this-name: there is no user nobody-of-this-name"#,
                r#"unknown: Some("group") Some(NotFound) group: cannot look up nobody-of-this-name: there is no group nobody-of-this-name"#,
                r#"number: Some("group") None group: no user has the number 4000000001, so a group must be set"#,
                r#"not root: Some("user") Some(PermissionDenied) user: it takes root to become root: "#,
                r#"not root: Some("group") Some(PermissionDenied) group: it takes root to become 0: "#,
            ] {
                assert_eq!(daemon.count(refusal), 2, "{refusal}:\n{}", daemon.transcript());
            }
            assert!(!daemon.said("log "), "nothing was started:\n{}", daemon.transcript());
        })
        .needs(lacks_users),
        Scenario::reporting("without_root_the_own_user_is_accepted", as_oneself, |daemon| {
            daemon.worker();
            assert!(daemon.said(&format!("uid {0} {0} {0}, ", user().uid)), "{}", daemon.transcript());
            assert!(daemon.said("back: EPERM EPERM EPERM"), "{}", daemon.transcript());
            assert_is_supervised(daemon, 1);
        })
        .needs(lacks_users)
        // A spawned worker would have to execute this program as this user, who may have no permission for that.
        .forking(),
        Scenario::reporting("a_worker_that_cannot_change_user_fails", without_capability, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.count("log cannot start worker 0: setresuid failed: Operation not permitted"), 3);
            assert!(daemon.said("report: gave up after 2 restarts"), "{}", daemon.transcript());
            assert!(!daemon.transcript().lines().any(|line| line.starts_with("uid ")));
            assert_eq!(daemon.count("at exit"), 1, "only the parent runs it:\n{}", daemon.transcript());
        })
        .needs(lacks_users)
        .for_processes(),
        Scenario::reporting("a_panicking_logger_in_a_fork_spares_siblings", logger_panics_in_a_fork, |daemon| {
            daemon.ends_with(1);
            assert!(daemon.said("exited with status 101, restarting"), "{}", daemon.transcript());
            assert!(!daemon.said("killed by signal 9"), "{}", daemon.transcript());
        })
        .needs(lacks_users)
        .forking(),
        Scenario::reporting("workers_and_replacements_are_pinned_by_id", pinned, |daemon| {
            let workers = daemon.workers(3);
            let cpus = own_cpus();
            for id in 0..3 {
                assert!(daemon.said(&format!("cpus of {id}: [{}]", cpus[id % cpus.len()])), "{}", daemon.transcript());
            }
            assert_eq!(cpus_of(daemon.pid()), cpus, "the parent's CPUs stay the same");
            let line = format!("cpus of 1: [{}]", cpus[1 % cpus.len()]);
            daemon.send(workers[1], Signal::SIGKILL);
            daemon.wait_for_times(&line, 2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("workers_are_pinned_to_usable_cpus_only", pinned_to_the_last, |daemon| {
            daemon.workers(2);
            let last = own_cpus().pop().expect("a CPU");
            for id in 0..2 {
                assert!(daemon.said(&format!("cpus of {id}: [{last}]")), "{}", daemon.transcript());
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::new("each_worker_thread_is_pinned_on_its_own", pinned_threads, |daemon| {
            daemon.ends_with(0);
            let cpus = own_cpus();
            for id in 0..3 {
                assert!(daemon.said(&format!("cpus of {id}: [{}]", cpus[id % cpus.len()])), "{}", daemon.transcript());
            }
            assert!(daemon.said(&format!("cpus of the parent: {cpus:?}")));
        }),
    ]
}

pub fn lacks_users() -> Option<&'static str> {
    let known = matches!(User::from_name(USER), Ok(Some(_))) && matches!(Group::from_name(GROUP), Ok(Some(_)));
    not_root().or((!known).then_some("a user 'nobody' and a group 'daemon'"))
}

fn lacks_privileged_port() -> Option<&'static str> {
    let lowest = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
    let takes_root =
        lowest.and_then(|lowest| lowest.trim().parse().ok()).is_none_or(|lowest: u16| *PORTS.end() < lowest);
    lacks_users().or((!takes_root).then_some("a port that requires root"))
}

pub fn user() -> User {
    User::from_name(USER).expect("the users").expect("a user")
}

fn group() -> Gid {
    Group::from_name(GROUP).expect("the groups").expect("a group").gid
}

/// Returns the user's groups and `gid`, as getgrouplist(3) lists them.
fn groups_of(gid: Gid) -> BTreeSet<u32> {
    let name = CString::new(USER).expect("a name");
    nix::unistd::getgrouplist(&name, gid).expect("the groups").into_iter().map(Gid::as_raw).collect()
}

fn owner(pid: u32) -> u32 {
    owner_by(format!("/proc/{pid}/status").as_ref())
}

fn owner_by(status: &Path) -> u32 {
    let status = fs::read_to_string(status).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("its user");
    line.split_whitespace().next().expect("a user").parse().expect("a number")
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).expect("a process").count()
}

/// Asserts that SIGHUP replaces `n` workers, that a killed worker is restarted, and that SIGTERM stops all.
fn assert_is_supervised(daemon: &mut Daemon, n: usize) {
    daemon.signal(Signal::SIGHUP);
    let replacements = daemon.workers(n);
    daemon.wait_for_times("log Rolling restart done", 1);
    daemon.send(replacements[0], Signal::SIGKILL);
    daemon.worker();
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
    assert_eq!(daemon.count("drained "), 2 * n, "{}", daemon.transcript());
}

/// Prints the worker's ids and, unless it runs as root, the errors of its attempts to become root.
pub fn print_ids(worker: &Worker) {
    assert!(!worker.stop_requested());
    let uid = getresuid().expect("its user");
    let gid = getresgid().expect("its group");
    let groups: BTreeSet<u32> = getgroups().expect("its groups").into_iter().map(Gid::as_raw).collect();
    say(&format!(
        "uid {} {} {}, gid {} {} {}, groups {groups:?}",
        uid.real, uid.effective, uid.saved, gid.real, gid.effective, gid.saved
    ));
    if !uid.real.is_root() {
        let root = Uid::from_raw(0);
        let back = [setuid(root), setresuid(root, root, root), setgroups(&[Gid::from_raw(0)])];
        let [first, second, third] = back.map(|answer| answer.expect_err("a refusal"));
        say(&format!("back: {first:?} {second:?} {third:?}"));
    }
    up(worker.id());
    worker.ready();
    drain(worker);
}

/// Gives a parent that runs as root supplementary groups that its workers must not keep.
fn join_groups() {
    if nix::unistd::geteuid().is_root() {
        setgroups(&[Gid::from_raw(0), Gid::from_raw(4)]).expect("groups");
    }
}

fn as_user() -> Report {
    join_groups();
    serve(Prefork::new().workers(2).user(USER), |worker| print_ids(&worker))
}

fn with_threads() -> Report {
    for _ in 0..2 {
        std::thread::spawn(|| {
            loop {
                std::thread::park();
            }
        });
    }
    serve(Prefork::new().workers(1).user(USER), |worker| print_ids(&worker))
}

fn as_user_and_group() -> Report {
    join_groups();
    serve(Prefork::new().workers(1).user(USER).group(GROUP), |worker| print_ids(&worker))
}

fn as_group() -> Report {
    join_groups();
    serve(Prefork::new().workers(1).group(GROUP), |worker| print_ids(&worker))
}

fn as_number() -> Report {
    join_groups();
    serve(Prefork::new().workers(1).user("4000000001").group("4711"), |worker| print_ids(&worker))
}

/// Mounts another file over /etc/group for this program only. In a spawned worker, the file is already mounted.
fn in_groups() -> Report {
    join_groups();
    let list = scratch().join("group");
    if !list.exists() {
        fs::write(&list, format!("one:x:4711:{USER}\ntwo:x:4712:root,{USER}\nthree:x:4713:root\n")).expect("a list");
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        mount(Some(&list), "/etc/group", None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("the list");
    }
    serve(Prefork::new().workers(1).user(USER), |worker| print_ids(&worker))
}

fn on_privileged_port() -> Report {
    // A spawned worker executes this code too, but it gets the parent's socket and does not use the new one.
    let free = PORTS.rev().find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    serve(Prefork::new().workers(2).listen(free.expect("a port")).user(USER), |worker| {
        assert!(!worker.stop_requested());
        let refused = TcpListener::bind(("127.0.0.1", *PORTS.start())).map_err(|error| error.kind());
        say(&format!("by itself: {:?}", refused.err()));
        let worker = Arc::new(worker);
        answer_clients(&worker, format!("uid {}", nix::unistd::getuid()));
        up(worker.id());
        drain(&worker);
    })
}

fn on_port_without_rights() {
    prepare();
    drop_capability(CAP_NET_BIND_SERVICE);
    let refused = format!("127.0.0.1:{}", PORTS.start());
    for listen in [ListenConfig::from(&*refused), ListenConfig::from(&*refused).per_worker()] {
        let error = Prefork::new().workers(2).listen("127.0.0.1:0").listen(listen).start().expect_err("a refusal");
        say(&format!("{:?} {error:?}", error.io_error().map(std::io::Error::kind)));
    }
}

fn without_ipv6() {
    prepare();
    // As if the kernel had been built without IPv6.
    deny(libc::SYS_socket, Some(libc::AF_INET6 as u32), libc::EAFNOSUPPORT);
    for listen in [ListenConfig::from("[::1]:0"), ListenConfig::from("[::1]:0").per_worker()] {
        let error = Prefork::new().workers(2).listen("127.0.0.1:0").listen(listen).start().expect_err("a refusal");
        say(&format!("{} {error:?}", error.io_error().and_then(std::io::Error::raw_os_error).expect("an error")));
    }
}

fn ready() -> Report {
    let time = std::time::Duration::from_secs(1);
    let service = Prefork::new().workers(1).user(USER).ready_timeout(20 * time).heartbeat_timeout(time);
    serve(service, move |worker| {
        let mut stopped = worker.stop_requested();
        worker.ready();
        up(worker.id());
        while !stopped {
            worker.heartbeat();
            stopped = worker.wait_for_stop(Some(time / 10));
        }
    })
}

fn refusals() {
    prepare();
    let try_all = |name: &str, services: &[fn() -> Prefork]| {
        for service in services {
            for backend in [Backend::Fork, Backend::Spawn] {
                let error = service().workers(1).backend(backend).start().expect_err("a refusal");
                let kind = error.io_error().map(std::io::Error::kind);
                say(&format!("{name}: {:?} {kind:?} {error:?}", error.setting()));
            }
        }
    };
    let unknown: [fn() -> Prefork; 2] =
        [|| Prefork::new().user("nobody-of-this-name"), || Prefork::new().group("nobody-of-this-name")];
    try_all("unknown", &unknown);
    try_all("number", &[|| Prefork::new().user("4000000001")]);
    become_user();
    try_all("not root", &[|| Prefork::new().user("root"), || Prefork::new().group("0")]);
}

fn become_user() {
    let User { uid, gid, .. } = user();
    setgroups(&[gid]).expect("groups");
    nix::unistd::setgid(gid).expect("a group");
    setuid(uid).expect("a user");
}

fn as_oneself() -> Report {
    become_user();
    serve(Prefork::new().workers(1).user(USER), |worker| print_ids(&worker))
}

/// The parent loses `CAP_SETUID` after it has checked the settings. A spawned worker drops the capability itself.
fn without_capability() -> Report {
    extern "C" fn at_exit() {
        say("at exit");
    }
    // SAFETY: atexit(3) keeps a pointer to this function, which exists until the process ends.
    assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
    match backend() {
        Some(Backend::Spawn) => drop_capability(CAP_SETUID),
        _ => on_log("Starting 1 processes", || drop_capability(CAP_SETUID)),
    }
    serve(Prefork::new().workers(1).max_restarts(2).user(USER), |worker| print_ids(&worker))
}

/// After the start of worker 0, the parent drops `CAP_SETUID`. So worker 1 cannot change its user. Worker 1 logs this
/// error, and the logger panics in it.
fn logger_panics_in_a_fork() -> Report {
    on_log("cannot start worker 1", || panic!("a logger that panics"));
    let service = Prefork::new().workers(2).max_restarts(1).user(USER).on_event(|event, _| {
        if matches!(event, Event::Started { process } if process.id == 0) {
            drop_capability(CAP_SETUID);
        }
    });
    serve(service, |worker| {
        up(worker.id());
        idle()
    })
}

pub const CAP_KILL: u32 = 5;
pub const CAP_SETGID: u32 = 6;
pub const CAP_SETUID: u32 = 7;
pub const CAP_NET_BIND_SERVICE: u32 = 10;
pub const CAP_SYS_PTRACE: u32 = 19;
pub const CAP_SYS_ADMIN: u32 = 21;
pub const CAP_PERFMON: u32 = 38;

/// Drops a capability of this thread. A spawned worker drops it again, because a program that root executes starts with
/// all capabilities.
pub fn drop_capability(capability: u32) {
    change_capabilities(|[effective, permitted, inheritable]| {
        [effective, permitted, inheritable].map(|set| set & !(1 << capability))
    });
}

/// Replaces the effective, the permitted and the inheritable set of this thread by those that `change` makes of them.
pub fn change_capabilities(change: impl Fn([u64; 3]) -> [u64; 3]) {
    // `_LINUX_CAPABILITY_VERSION_3`
    let mut header = [0x2008_0522_u32, 0];
    let mut halves = [[0_u32; 3]; 2];
    // SAFETY: capget(2) of this version writes two sets of three integers, for the calling thread.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), halves.as_mut_ptr()) }, 0);
    let [low, high] = halves;
    let changed = change([0, 1, 2].map(|at| u64::from(low[at]) | u64::from(high[at]) << 32));
    let halves = [changed.map(|set| set as u32), changed.map(|set| (set >> 32) as u32)];
    // SAFETY: capset(2) of this version reads two sets of three integers, for the calling thread.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), halves.as_ptr()) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn cpus_of(pid: u32) -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(pid as i32)).expect("its CPUs");
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect()
}

fn own_cpus() -> Vec<usize> {
    cpus_of(0)
}

fn print_cpus(worker: Worker) {
    assert!(!worker.stop_requested());
    say(&format!("cpus of {}: {:?}", worker.id(), own_cpus()));
    up(worker.id());
    drain(&worker);
}

fn pinned() -> Report {
    serve(Prefork::new().workers(3).pin_cpus(), print_cpus)
}

fn pinned_to_the_last() -> Report {
    let mut last = CpuSet::new();
    last.set(own_cpus().pop().expect("a CPU")).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &last).expect("an allowed CPU");
    serve(Prefork::new().workers(2).pin_cpus(), print_cpus)
}

fn pinned_threads() {
    prepare();
    let service = Prefork::new().workers(3).pin_cpus();
    service
        .run_threads(|worker| {
            say(&format!("cpus of {}: {:?}", worker.id(), own_cpus()));
            Ok(())
        })
        .expect("a report");
    say(&format!("cpus of the parent: {:?}", own_cpus()));
}
