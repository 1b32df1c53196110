//! Tests of calls that fail: in a program with several threads, without free descriptors, and while the parent already
//! supervises workers.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use taskfork::{Prefork, Report, Role};

use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Signal, idle, ignore, own_descriptors, state};
use crate::program::{drain, fork, on_log, prepare, say, serve, try_fork, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("fork_with_other_threads_is_refused_with_their_count", with_two_threads, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("refused Some(3): 3 threads are running"), "{}", daemon.transcript());
            assert!(!daemon.said("log "), "nothing was started");
        }),
        Scenario::new("threads_that_start_their_successors_are_refused", with_thread_relay, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("every call was refused"), "{}", daemon.transcript());
        }),
        #[cfg(target_os = "linux")]
        Scenario::new(
            "threads_are_counted_where_unshare_is_forbidden",
            || {
                crate::seccomp::forbid(libc::SYS_unshare);
                with_thread_relay();
                // The last threads of the relay may still run for a moment.
                while std::fs::read_dir("/proc/self/task").expect("the threads").count() > 1 {
                    thread::yield_now();
                }
                with_two_threads();
                up(fork(1, 0));
            },
            |daemon| {
                daemon.ends_with(0);
                assert!(daemon.said("every call was refused"), "{}", daemon.transcript());
                assert!(daemon.said("refused Some(3): 3 threads are running"));
                assert_eq!(daemon.count("up "), 1);
            },
        ),
        Scenario::new("joined_thread_is_not_counted", fork_after_joining_a_thread, |daemon| {
            daemon.ends_with(0);
        }),
        Scenario::new("too_many_open_files_error_names_the_system_call", call_with_few_descriptors, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.count("refused ") >= 5, "{}", daemon.transcript());
            assert_eq!(daemon.count("refused "), daemon.count("Too many open files"));
            assert_eq!(daemon.count("refused "), daemon.count("state as before: true"));
            assert!(!daemon.said("refused None"));
        }),
        Scenario::new("failed_call_restores_the_parents_signals_and_descriptors", unchanged_in_parent, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("state as before: true"), "{}", daemon.transcript());
        }),
        Scenario::reporting(
            "stopped_service_restores_the_parents_signals_and_descriptors",
            unchanged_by_service,
            |daemon| {
                daemon.worker();
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(daemon.said("state as before: true"), "{}", daemon.transcript());
            },
        ),
        Scenario::new("restart_waits_until_a_new_thread_has_ended", logger_starts_a_thread, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGKILL);
            assert_eq!(daemon.worker().id, 0);
            assert!(daemon.said("cannot start worker 0: 2 threads are running"), "{}", daemon.transcript());
            assert!(daemon.said("trying again in"));
        }),
        Scenario::new(
            "call_succeeds_after_an_earlier_refusal",
            || {
                with_two_threads();
                up(fork(1, 0));
            },
            |daemon| {
                daemon.ends_with(0);
                assert_eq!(daemon.count("up "), 1);
            },
        ),
        Scenario::new("refused_call_leaves_listen_fds_in_the_environment", activated_with_thread, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("refused Some(2), LISTEN_FDS is there: true"), "{}", daemon.transcript());
        }),
        Scenario::new("failed_call_leaves_no_children", overwrites_its_descriptors, |daemon| {
            let workers = daemon.workers(3);
            crate::daemon::kill(workers[0].pid, Signal::SIGKILL);
            daemon.ends_with(1);
            let line = daemon.line("refused ");
            assert!(line.ends_with("; children left: Err(ECHILD)"), "{line}");
        }),
    ]
}

/// Calls again and again while there is always another thread, but none for long: each starts its successor and exits.
fn with_thread_relay() {
    static RUNNERS: AtomicU32 = AtomicU32::new(0);
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    fn run() {
        if IS_OVER.load(Ordering::Relaxed) {
            IS_OVER.store(false, Ordering::Relaxed);
            return;
        }
        RUNNERS.fetch_add(1, Ordering::Relaxed);
        // The successor exists before this thread exits.
        thread::spawn(run);
    }
    prepare();
    thread::spawn(run);
    while RUNNERS.load(Ordering::Relaxed) < 20_000 {
        match Prefork::new().workers(1).max_restarts(0).start() {
            Err(error) if error.to_string().contains("thread") => {}
            other => {
                say(&format!("{other:?} while another thread runs"));
                std::process::exit(1);
            }
        }
    }
    IS_OVER.store(true, Ordering::Relaxed);
    while IS_OVER.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    say("every call was refused");
}

pub fn with_two_threads() {
    let (ends, threads): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (end, wait) = mpsc::channel::<()>();
            (end, thread::spawn(move || wait.recv().is_err()))
        })
        .unzip();
    let error = try_fork(4, 0).expect_err("a refusal");
    say(&format!("refused {:?}: {error:?}", error.thread_count()));
    drop(ends);
    for thread in threads {
        thread.join().expect("a thread");
    }
}

fn activated_with_thread() {
    // SAFETY: this process has no other thread that could read the environment.
    unsafe { std::env::set_var("LISTEN_FDS", "1") };
    let (end, wait) = mpsc::channel::<()>();
    let thread = thread::spawn(move || wait.recv().is_err());
    let error = Prefork::new().workers(1).listen("127.0.0.1:0").socket_activation().start().expect_err("a refusal");
    let is_there = std::env::var_os("LISTEN_FDS").is_some();
    say(&format!("refused {:?}, LISTEN_FDS is there: {is_there}", error.thread_count()));
    drop(end);
    thread.join().expect("a thread");
}

/// The logger starts a thread when the parent first tries to restart a worker, and joins the thread when the parent
/// tries again.
fn logger_starts_a_thread() {
    static THREAD: Mutex<Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>> = Mutex::new(None);
    on_log("restarting", || {
        let (end, wait) = mpsc::channel();
        let thread = thread::spawn(move || assert!(wait.recv().is_err()));
        *THREAD.lock().expect("the thread") = Some((end, thread));
    });
    on_log("trying again", || {
        if let Some((end, thread)) = THREAD.lock().expect("the thread").take() {
            drop(end);
            thread.join().expect("the thread");
        }
    });
    up(fork(1, 100));
    idle();
}

/// Linux may still list a thread for a moment after the join. With 200 attempts, at least one of them probably hits
/// such a moment.
fn fork_after_joining_a_thread() {
    for _ in 0..200 {
        // SAFETY: this process has one thread, so the child of fork(2) may call any function.
        if let ForkResult::Parent { child } = unsafe { nix::unistd::fork() }.expect("fork") {
            let status = waitpid(child, None).expect("its status");
            assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
            continue;
        }
        thread::spawn(|| ()).join().expect("a thread");
        fork(1, 0);
        return;
    }
}

/// Calls `call`. Prints the error, and whether the signal state and the open descriptors are the same as before the
/// call.
pub fn refuse(n: usize, call: impl FnOnce(usize) -> taskfork::Result<usize>) {
    let before = (state(), own_descriptors());
    match call(n) {
        Ok(_) => idle(),
        Err(error) => {
            let call = error.call().unwrap_or("None");
            let worker = error.worker();
            say(&format!(
                "refused {call} for {worker:?}: {error:?}; state as before: {}",
                before == (state(), own_descriptors())
            ));
        }
    }
}

fn call_with_few_descriptors() {
    prepare();
    // The first three descriptors, 0 to 2, are open already.
    for limit in 3..5 {
        refuse(3, |n| with_descriptors(limit, || try_fork(n, 0)));
    }
    // `start` needs at least one descriptor more, with which workers wake the parent.
    for limit in 3..6 {
        refuse(3, |n| with_descriptors(limit, || id_of(Prefork::new().workers(n).start())));
    }
}

fn with_descriptors(limit: libc::rlim_t, call: impl FnOnce() -> taskfork::Result<usize>) -> taskfork::Result<usize> {
    setrlimit(Resource::RLIMIT_NOFILE, limit, 1024).expect("a limit");
    let result = call();
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).expect("a limit");
    result
}

pub fn id_of(started: taskfork::Result<Role>) -> taskfork::Result<usize> {
    started.map(|role| match role {
        Role::Worker(worker) => worker.id(),
        role => panic!("{role:?}"),
    })
}

fn unchanged_in_parent() {
    prepare();
    ignore(Signal::SIGHUP);
    ignore(Signal::SIGCHLD);
    SigSet::from_iter([Signal::SIGUSR2, Signal::SIGINT]).thread_block().expect("a mask");
    let before = (state(), own_descriptors());
    match try_fork(2, 0) {
        Ok(0) => std::process::exit(1),
        Ok(_) => idle(),
        Err(_) => say(&format!("state as before: {}", before == (state(), own_descriptors()))),
    }
}

fn unchanged_by_service() -> Report {
    prepare();
    let before = (state(), own_descriptors());
    let report = serve(Prefork::new().workers(1), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    });
    say(&format!("state as before: {}", before == (state(), own_descriptors())));
    report
}

fn overwrites_its_descriptors() {
    on_log("restarting", || {
        for descriptor in own_descriptors().iter().filter_map(|name| name.parse().ok()).filter(|&fd| fd > 2) {
            // SAFETY: dup2(2) replaces the descriptor in one step, so its owner still has an open descriptor. It then
            // refers to another file, and this is the fault that the program provokes.
            unsafe { libc::dup2(0, descriptor) };
        }
    });
    match try_fork(3, 100) {
        Ok(id) => up(id),
        Err(error) => {
            say(&format!("refused {:?}; children left: {:?}", error.call(), nix::sys::wait::wait()));
            std::process::exit(1)
        }
    }
    idle();
}
