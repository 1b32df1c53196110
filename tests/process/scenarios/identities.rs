//! Rights that workers of another user do not have, and identities that the parent refuses. Linux only.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getgroups, getresuid, setgroups};
use taskfork::{Backend, Prefork, Report, Worker};

use super::privileges::{
    CAP_KILL, CAP_NET_BIND_SERVICE, CAP_SETGID, CAP_SETUID, GROUP, USER, change_capabilities, drop_capability,
    lacks_users, print_ids,
};
use crate::Scenario;
use crate::os::{Signal, in_child};
use crate::program::{backend, drain, prepare, say, serve, up};
use crate::seccomp::{deny, forbid};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("root_of_a_namespace_with_one_id_is_accepted", as_root_of_a_namespace, |daemon| {
            daemon.workers(2);
            assert_eq!(daemon.count("uid 0 0 0, groups {0}"), 2, "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(lacks_namespaces)
        .for_processes(),
        Scenario::new("impossible_identities_are_refused_before_any_start", refusals, |daemon| {
            daemon.ends_with(0);
            let denied = "Operation not permitted (os error 1)";
            let unmapped = "Invalid argument (os error 22)";
            for (case, setting, problem, error) in [
                ("namespace", "user", "nobody: this user namespace forbids setgroups", denied),
                ("namespace", "group", "4711: this user namespace forbids setgroups", denied),
                ("namespace", "user", "4711: user 4711 has no mapping in this user namespace", unmapped),
                ("no SETGID", "user", "nobody: the process lacks CAP_SETGID", denied),
                ("no SETGID", "group", "daemon: the process lacks CAP_SETGID", denied),
                ("no SETUID", "user", "nobody: the process lacks CAP_SETUID", denied),
                ("no KILL", "user", "nobody: the process lacks CAP_KILL", denied),
                ("seccomp", "user", "nobody: setresuid is not permitted", denied),
            ] {
                let refusal = format!("{case}: {setting}: workers cannot change to {problem}: {error}");
                assert_eq!(daemon.count(&refusal), 2, "{refusal}:\n{}", daemon.transcript());
            }
            assert!(!daemon.said("log "), "nothing was started:\n{}", daemon.transcript());
        })
        .needs(lacks_namespaces),
        Scenario::spawning("a_spawned_worker_has_root_capabilities_again", without_capability, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(lacks_users),
        Scenario::reporting("workers_of_another_user_have_no_capabilities", with_capabilities, |daemon| {
            daemon.workers(4);
            let none = "0000000000000000";
            let sets = format!("CapInh {none} CapPrm {none} CapEff {none} CapAmb {none}");
            assert_eq!(daemon.count(&sets), 4, "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(lacks_users)
        .for_processes(),
        Scenario::reporting("capabilities_without_root_suffice_for_a_change", with_rights_of_root, |daemon| {
            daemon.worker();
            assert!(daemon.said("back: EPERM EPERM EPERM"), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(lacks_users)
        // A spawned worker would have to execute this program as a user who may have no permission for that.
        .forking(),
        Scenario::spawning("a_thread_that_keeps_capabilities_prevents_the_start", thread_with_capabilities, |daemon| {
            daemon.ends_with(3);
            let refusal = "log cannot start worker 0: setresuid failed: thread ";
            let line = daemon.line(refusal);
            assert!(line.ends_with(" still has capabilities"), "{line}");
            assert!(!daemon.said("is a worker"), "{}", daemon.transcript());
        })
        .needs(lacks_users),
        Scenario::spawning("threads_that_hand_over_capabilities_prevent_the_start", relay, |daemon| {
            daemon.ends_with(3);
            // The check has found a thread, or it has found no moment at which it could check all threads.
            let line = daemon.line("log cannot start worker 0: setresuid failed: ");
            assert!(line.ends_with("still has capabilities") || line.ends_with("changed too often"), "{line}");
            assert!(!daemon.said("is a worker"), "{}", daemon.transcript());
        })
        .needs(lacks_users),
        Scenario::reporting("workers_of_another_user_leave_the_session_keyring", with_secret, |daemon| {
            daemon.workers(2);
            assert!(daemon.said("before: true"), "{}", daemon.transcript());
            assert_eq!(daemon.count("secret: Err(ENOKEY)"), 2, "{}", daemon.transcript());
            assert_eq!(daemon.count("own key: true"), 2, "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(lacks_keyrings)
        .for_processes(),
        Scenario::reporting("a_filter_that_forbids_keyrings_prevents_no_start", without_keyrings, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(lacks_keyrings)
        .for_processes(),
        Scenario::reporting("a_session_keyring_that_remains_prevents_the_start", without_new_keyring, |daemon| {
            daemon.ends_with(3);
            let refusal = "log cannot start worker 0: keyctl failed: Operation not permitted";
            assert!(daemon.said(refusal), "{}", daemon.transcript());
            assert!(!daemon.said("is a worker"), "{}", daemon.transcript());
        })
        .needs(lacks_keyrings)
        .for_processes(),
        Scenario::spawning("a_keyring_that_other_threads_keep_is_logged", thread_with_keyring, |daemon| {
            daemon.worker();
            let warning = "log worker 0: the threads that the program has started before the call keep";
            assert!(daemon.said(warning), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(lacks_keyrings),
    ]
}

fn lacks_namespaces() -> Option<&'static str> {
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").ok();
    let most = most.and_then(|most| most.trim().parse().ok()).unwrap_or(0_u32);
    lacks_users().or((most == 0).then_some("user namespaces"))
}

/// Moves this process to a new user namespace that maps only root. A process in such a namespace cannot change its
/// supplementary groups. Does nothing if the process is already in such a namespace.
fn enter_namespace() {
    let map = fs::read_to_string("/proc/self/uid_map").expect("a map");
    if map.split_whitespace().nth(2) == Some("1") {
        return;
    }
    setgroups(&[Gid::from_raw(0)]).expect("groups");
    unshare(CloneFlags::CLONE_NEWUSER).expect("a user namespace");
    for (file, content) in [("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")] {
        fs::write(format!("/proc/self/{file}"), content).expect(file);
    }
}

fn as_root_of_a_namespace() -> Report {
    enter_namespace();
    serve(Prefork::new().workers(2).user("root"), |worker| {
        let uid = getresuid().expect("its user");
        let groups: BTreeSet<u32> = getgroups().expect("its groups").into_iter().map(Gid::as_raw).collect();
        say(&format!("uid {} {} {}, groups {groups:?}", uid.real, uid.effective, uid.saved));
        wait_for_the_end(&worker);
    })
}

fn wait_for_the_end(worker: &Worker) {
    assert!(!worker.stop_requested());
    say(&format!("{} is a worker", worker.id()));
    up(worker.id());
    worker.ready();
    drain(worker);
}

fn refusals() {
    prepare();
    let try_each = |case: &str, prepare: fn(), services: &[fn() -> Prefork]| {
        in_child(|| {
            prepare();
            for service in services {
                for backend in [Backend::Fork, Backend::Spawn] {
                    let error = service().workers(1).backend(backend).start().expect_err("a refusal");
                    say(&format!("{case}: {error:?}"));
                }
            }
        });
    };
    let to_user: fn() -> Prefork = || Prefork::new().user(USER);
    let to_group: fn() -> Prefork = || Prefork::new().group(GROUP);
    let to_unmapped: [fn() -> Prefork; 2] =
        [|| Prefork::new().group("4711"), || Prefork::new().user("4711").group("0")];
    try_each("namespace", enter_namespace, &[to_user, to_unmapped[0], to_unmapped[1]]);
    try_each("no SETGID", || drop_capability_for_good(CAP_SETGID), &[to_user, to_group]);
    try_each("no SETUID", || drop_capability_for_good(CAP_SETUID), &[to_user]);
    try_each("no KILL", || drop_capability(CAP_KILL), &[to_user]);
    try_each("seccomp", || forbid(libc::SYS_setresuid), &[to_user]);
}

/// Drops a capability so that a program which this process executes does not get it back.
fn drop_capability_for_good(capability: u32) {
    // SAFETY: prctl(2) with PR_CAPBSET_DROP takes integers.
    let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    assert_eq!(dropped, 0, "{}", std::io::Error::last_os_error());
    drop_capability(capability);
}

/// The parent has no `CAP_SETUID`. But a program that root executes gets all capabilities in the bounding set.
fn without_capability() -> Report {
    if std::env::var_os("TASKFORK_WORKER").is_none() {
        drop_capability(CAP_SETUID);
    }
    assert_eq!(backend(), Some(Backend::Spawn));
    serve(Prefork::new().workers(1).user(USER), |worker| wait_for_the_end(&worker))
}

/// The parent has full inheritable and ambient sets. It also has `PR_SET_KEEPCAPS`.
fn with_capabilities() -> Report {
    change_capabilities(|[effective, permitted, _]| [effective, permitted, permitted]);
    for capability in [CAP_SETUID, CAP_NET_BIND_SERVICE] {
        raise_ambient(capability);
    }
    nix::sys::prctl::set_keepcaps(true).expect("an attribute");
    serve(Prefork::new().workers(4).user(USER), |worker| {
        let status = fs::read_to_string("/proc/thread-self/status").expect("a status");
        let sets = ["CapInh", "CapPrm", "CapEff", "CapAmb"].map(|name| {
            let line = status.lines().find(|line| line.starts_with(name)).expect(name);
            line.replace(":\t", " ")
        });
        say(&sets.join(" "));
        wait_for_the_end(&worker);
    })
}

fn raise_ambient(capability: u32) {
    let capability = libc::c_ulong::from(capability);
    // SAFETY: prctl(2) with PR_CAP_AMBIENT takes integers.
    let raised = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) };
    assert_eq!(raised, 0, "{}", std::io::Error::last_os_error());
}

/// The parent is not root. It has the capabilities that a change of the user and its supervision require.
fn with_rights_of_root() -> Report {
    let uid = Uid::from_raw(4_000_000_001);
    let gid = Gid::from_raw(4711);
    nix::sys::prctl::set_keepcaps(true).expect("an attribute");
    setgroups(&[gid]).expect("groups");
    nix::unistd::setresgid(gid, gid, gid).expect("a group");
    nix::unistd::setresuid(uid, uid, uid).expect("a user");
    let rights = [CAP_SETUID, CAP_SETGID, CAP_KILL].map(|capability| 1_u64 << capability).iter().sum();
    change_capabilities(|_| [rights, rights, 0]);
    serve(Prefork::new().workers(1).user(USER), |worker| print_ids(&worker))
}

fn thread_with_capabilities() -> Report {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        nix::sys::prctl::set_keepcaps(true).expect("an attribute");
        sender.send(()).expect("a receiver");
        loop {
            thread::park();
        }
    });
    receiver.recv().expect("a thread");
    serve_failing()
}

/// Runs threads that keep their capabilities. Each thread starts the next one and exits, so a list of the threads can
/// miss them.
fn relay() -> Report {
    fn next() {
        while thread::Builder::new().stack_size(32 << 10).spawn(next).is_err() {}
    }
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        nix::sys::prctl::set_keepcaps(true).expect("an attribute");
        sender.send(()).expect("a receiver");
        next();
    });
    receiver.recv().expect("a thread");
    serve_failing()
}

/// Runs a worker that must be ready before it may fail, so that its first failure ends the service.
fn serve_failing() -> Report {
    let time = Duration::from_secs(20);
    serve(Prefork::new().workers(1).user(USER).ready_timeout(time), |worker| wait_for_the_end(&worker))
}

/// The parent's session keyring contains a secret. Each worker searches for it, and creates a key of its own.
fn with_secret() -> Report {
    if std::env::var_os("TASKFORK_WORKER").is_none() {
        assert!(keyctl(JOIN_SESSION_KEYRING, 0, 0, 0).is_ok());
        add_key(c"secret").expect("a key");
    }
    say(&format!("before: {:?}", search(c"secret").is_ok()));
    serve(Prefork::new().workers(2).user(USER), |worker| {
        say(&format!("secret: {:?}", search(c"secret")));
        say(&format!("own key: {:?}", add_key(c"own").and_then(|_| search(c"own")).is_ok()));
        wait_for_the_end(&worker);
    })
}

/// A filter forbids keyctl(2), as that of Docker does.
fn without_keyrings() -> Report {
    forbid(libc::SYS_keyctl);
    serve(Prefork::new().workers(1).user(USER), |worker| wait_for_the_end(&worker))
}

/// A filter forbids only a new session keyring. The old one stays usable.
fn without_new_keyring() -> Report {
    deny(libc::SYS_keyctl, Some(JOIN_SESSION_KEYRING as u32), libc::EPERM);
    serve_failing()
}

fn thread_with_keyring() -> Report {
    thread::spawn(|| {
        loop {
            thread::park();
        }
    });
    serve(Prefork::new().workers(1).user(USER), |worker| wait_for_the_end(&worker))
}

// The numbers of keyctl(2), from `linux/keyctl.h`.
const JOIN_SESSION_KEYRING: libc::c_long = 1;
const SEARCH: libc::c_long = 10;
const SESSION_KEYRING: libc::c_long = -3;

fn keyctl(operation: libc::c_long, first: libc::c_long, second: usize, third: usize) -> nix::Result<libc::c_long> {
    let unused: libc::c_long = 0;
    // SAFETY: keyctl(2) reads integers and, at the addresses of C strings, those strings.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, operation, first, second, third, unused) })
}

/// Searches the session keyring for a key.
fn search(name: &CStr) -> nix::Result<libc::c_long> {
    keyctl(SEARCH, SESSION_KEYRING, c"user".as_ptr().addr(), name.as_ptr().addr())
}

/// Adds a key to the session keyring.
fn add_key(name: &CStr) -> nix::Result<libc::c_long> {
    let content = *b"content";
    // SAFETY: add_key(2) reads two C strings, and as many bytes as the content has.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            name.as_ptr(),
            content.as_ptr(),
            content.len(),
            SESSION_KEYRING,
        )
    })
}

fn lacks_keyrings() -> Option<&'static str> {
    lacks_users().or((!Path::new("/proc/keys").exists()).then_some("keyrings"))
}
