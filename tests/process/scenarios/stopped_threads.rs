//! The thread that wakes the tasks which await `stopped`.

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Waker};

use nix::sys::resource::{Resource, setrlimit};
use taskfork::{Prefork, Report};

use super::stop_requests::{drains_on_term, one};
use super::stopped::{block_on, single};
use crate::Scenario;
use crate::os::{Signal, raise};
use crate::program::{fork, prepare, say, up};
use crate::seccomp::{deny, forbid};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("stopped_starts_one_thread_at_the_first_poll", counts_threads, |daemon| {
            drains_on_term(daemon);
            assert!(daemon.said("threads 0 1 1 0"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("the_thread_of_stopped_blocks_all_signals", reads_mask, |daemon| {
            drains_on_term(daemon);
            // SIGKILL and SIGSTOP cannot be blocked, and the C library keeps 32 and 33 for itself.
            assert!(daemon.said("unblocked: 9 19 32 33"), "{}", daemon.transcript());
        }),
        Scenario::reporting("calling_stopped_enables_graceful_stop", is_never_polled, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("drained"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("stopped_completes_without_a_thread", without_threads, |daemon| {
            drains_on_term(daemon);
            assert_eq!(daemon.count("Worker::stopped() has no thread yet"), 1, "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("stopped_completes_without_free_descriptors", without_descriptors, |daemon| {
            // Until this line, the worker may notice the request before the thread has run.
            daemon.wait_for_times("Worker::stopped() checks every 10 ms", 1);
            daemon.wait_for_times("up 0", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained"), 1, "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("stopped_completes_after_unknown_descriptors_are_closed", closes, drains_on_term)
            .for_processes(),
        Scenario::reporting("stopped_in_a_forked_process_does_not_complete", polls_in_a_child, |daemon| {
            drains_on_term(daemon);
            assert!(daemon.said("pending in the child"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::threading("the_thread_of_stopped_ends_with_the_service", threads_then_forks, |daemon| {
            daemon.workers(4);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("forked"), "{}", daemon.transcript());
        }),
    ]
}

const NAME: &str = "taskfork-stop";

/// Returns the directories in /proc of the threads that this crate has started to wake tasks.
fn waking_threads() -> Vec<PathBuf> {
    let threads = fs::read_dir("/proc/self/task").expect("the threads").filter_map(|entry| Some(entry.ok()?.path()));
    threads.filter(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == NAME)).collect()
}

fn is_pending(future: impl Future<Output = ()>) -> bool {
    pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

fn counts_threads() -> Report {
    one(|worker| {
        let count = || fs::read_dir("/proc/self/task").expect("the threads").count();
        let before = count();
        let stopped = worker.stopped();
        let unpolled = count() - before;
        assert!(is_pending(stopped.clone()));
        let first = count() - before;
        for _ in 0..100 {
            assert!(is_pending(stopped.clone()) && is_pending(worker.stopped()));
        }
        let many = count() - before;
        up(worker.id());
        block_on(stopped);
        while count() > before {
            std::thread::yield_now();
        }
        assert!(!is_pending(worker.stopped()));
        say(&format!("threads {unpolled} {first} {many} {}", count() - before));
        say("drained");
    })
}

fn reads_mask() -> Report {
    one(|worker| {
        let stopped = worker.stopped();
        assert!(is_pending(stopped.clone()));
        let mask = || {
            let status = fs::read_to_string(waking_threads().first()?.join("status")).ok()?;
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        };
        // A new thread has its name only once it runs.
        let mask = std::iter::repeat_with(mask).flatten().next().expect("a mask");
        let open: Vec<_> = (1..65).filter(|bit| mask >> (bit - 1) & 1 == 0).map(|bit| bit.to_string()).collect();
        say(&format!("unblocked: {}", open.join(" ")));
        up(worker.id());
        block_on(stopped);
        say("drained");
    })
}

fn is_never_polled() -> Report {
    one(|worker| {
        let stopped = worker.stopped();
        raise(Signal::SIGTERM);
        assert!(worker.stop_requested() && !is_pending(stopped));
        assert!(waking_threads().is_empty(), "a completed future needs no thread");
        say("drained");
    })
}

fn without_threads() -> Report {
    one(|worker| {
        // The C library tries the second call if the first one does not exist.
        deny(libc::SYS_clone3, None, libc::ENOSYS);
        forbid(libc::SYS_clone);
        let stopped = worker.stopped();
        assert!(is_pending(stopped.clone()));
        up(worker.id());
        single().block_on(stopped);
        say("drained");
    })
}

fn without_descriptors() -> Report {
    one(|worker| {
        let stopped = worker.stopped();
        setrlimit(Resource::RLIMIT_NOFILE, 3, 1024).expect("a limit");
        assert!(is_pending(stopped.clone()));
        up(worker.id());
        block_on(stopped);
        say("drained");
    })
}

/// Closes all descriptors above 2, as some programs do that start another program.
fn closes() -> Report {
    one(|worker| {
        let stopped = worker.stopped();
        assert!(is_pending(stopped.clone()) && worker.stop_fd().is_ok());
        for fd in 3..1024 {
            // SAFETY: close(2) takes an integer. This worker uses no descriptor of its own above 2.
            unsafe { libc::close(fd) };
        }
        up(worker.id());
        block_on(stopped);
        say("drained");
    })
}

fn polls_in_a_child() -> Report {
    one(|worker| {
        let stopped = worker.stopped();
        assert!(is_pending(stopped.clone()));
        let status = crate::os::in_child(|| {
            raise(Signal::SIGTERM);
            assert!(is_pending(stopped.clone()));
        });
        assert_eq!(status, 0);
        say("pending in the child");
        up(worker.id());
        block_on(stopped);
        say("drained");
    })
}

fn threads_then_forks() -> Report {
    prepare();
    let service = Prefork::new().workers(4);
    let report = service.run_threads(|worker| {
        single().block_on(async {
            let waiting = tokio::spawn(worker.stopped());
            tokio::task::yield_now().await;
            // A new thread has its name only once it runs.
            while waking_threads().is_empty() {
                tokio::task::yield_now().await;
            }
            assert_eq!(waking_threads().len(), 1);
            up(worker.id());
            waiting.await.expect("no panic");
        });
        Ok(())
    });
    let report = report.expect("a service");
    if fork(1, 0) == 0 {
        say("forked");
    }
    report
}
