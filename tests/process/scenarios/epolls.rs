//! Tests of the warning about an epoll instance that the program has opened before the call. Linux only.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use taskfork::{Prefork, Report};
use tokio::runtime::{Builder, Runtime};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::Signal;
use crate::program::{drain, say, serve, try_fork, up};

const WARNING: &str = " is an epoll instance that was made before the call";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("an_async_runtime_before_the_call_is_a_warning", with_runtime, |daemon| {
            warns_and_serves(daemon);
            assert!(daemon.count(WARNING) >= 1, "{}", daemon.transcript());
        })
        .forking(),
        Scenario::reporting("an_inherited_epoll_instance_is_a_warning", with_inherited, |daemon| {
            warns_and_serves(daemon);
            assert_eq!(daemon.count(" (or this program has inherited it)"), 1, "{}", daemon.transcript());
        })
        .forking(),
        Scenario::reporting("an_epoll_instance_after_a_gap_is_a_warning", with_gap, |daemon| {
            warns_and_serves(daemon);
            assert_eq!(daemon.count(WARNING), 1, "{}", daemon.transcript());
        })
        .forking(),
        Scenario::new("fork_processes_warns_of_an_epoll_instance", forks_with_runtime, |daemon| {
            daemon.ends_with(0);
            assert_eq!(warned(daemon), printed(daemon), "{}", daemon.transcript());
        }),
        Scenario::reporting("an_async_runtime_that_is_gone_is_no_problem", without_runtime, |daemon| {
            warns_and_serves(daemon);
            assert_eq!(daemon.count(WARNING), 0, "{}", daemon.transcript());
        })
        .forking(),
        Scenario::reporting("workers_that_are_no_forks_share_no_epoll_instance", with_runtime, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count(WARNING), 0, "{}", daemon.transcript());
        })
        .for_parents_with_threads(),
    ]
}

/// Checks that the warnings name the epoll instances that the program has printed, and that the service works.
fn warns_and_serves(daemon: &mut Daemon) {
    daemon.worker();
    assert_eq!(warned(daemon), printed(daemon), "{}", daemon.transcript());
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
}

/// Returns the descriptors of the warnings.
fn warned(daemon: &Daemon) -> Vec<String> {
    let transcript = daemon.transcript();
    let descriptors = transcript.lines().filter_map(|line| {
        let (descriptor, _) = line.strip_prefix("log descriptor ")?.split_once(WARNING)?;
        Some(descriptor.to_owned())
    });
    descriptors.collect()
}

/// Returns the descriptors that the program has printed.
fn printed(daemon: &Daemon) -> Vec<String> {
    let line = daemon.line("epoll instances:");
    line.split(' ').skip(2).map(str::to_owned).collect()
}

/// Prints the descriptors of the open epoll instances.
fn print_epolls() {
    let descriptors = fs::read_dir("/proc/self/fd").expect("the descriptors").filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_epoll = fs::read_link(&path).is_ok_and(|target| target.ends_with("anon_inode:[eventpoll]"));
        is_epoll.then(|| path.file_name()?.to_str()?.parse::<u32>().ok())?
    });
    let mut descriptors: Vec<u32> = descriptors.collect();
    descriptors.sort();
    say(&descriptors.iter().fold("epoll instances:".to_owned(), |line, fd| format!("{line} {fd}")));
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn epoll(flags: libc::c_int) -> OwnedFd {
    // SAFETY: epoll_create1(2) takes an integer.
    let fd = unsafe { libc::epoll_create1(flags) };
    assert_ne!(fd, -1, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is new, so nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn serve_one() -> Report {
    print_epolls();
    serve(Prefork::new().workers(1), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

fn with_runtime() -> Report {
    let _runtime = runtime();
    serve_one()
}

fn without_runtime() -> Report {
    drop(runtime());
    serve_one()
}

fn with_inherited() -> Report {
    let _epoll = epoll(0);
    serve_one()
}

/// The program has closed the descriptors below its epoll instance.
fn with_gap() -> Report {
    let files: Vec<_> = (0..20).map(|_| File::open("/dev/null").expect("a file")).collect();
    let epoll = epoll(libc::EPOLL_CLOEXEC);
    assert!(epoll.as_raw_fd() >= 20);
    drop(files);
    serve_one()
}

fn forks_with_runtime() {
    let _runtime = runtime();
    print_epolls();
    try_fork(1, 0).expect("a worker");
}
