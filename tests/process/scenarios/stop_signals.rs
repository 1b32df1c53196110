//! SIGTERM and SIGINT in a worker that has enabled graceful stops, and `stop_fd`.

use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, signal};
use nix::unistd::ForkResult;
use taskfork::{Backend, Prefork, Report, RestartPolicy, Worker};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::SignalKind;

use super::spawn::two;
use super::stop_requests::{drains_on_int, drains_on_term, one};
use crate::Scenario;
use crate::daemon::kill;
use crate::os::{LIFELINES, Signal, idle, ignore, own_descriptors, raise};
use crate::program::{backend, say, serve, up, up_until, up_until_signal};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("term_kills_a_worker_without_graceful_stop_enabled", makes_no_stop_call, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGTERM);
            daemon.wait_for("killed by signal 15, restarting");
            daemon.worker();
        })
        .for_processes(),
        Scenario::reporting("other_signals_do_not_end_wait_for_stop", waits_through_signals, |daemon| {
            let worker = daemon.worker();
            for _ in 0..10 {
                kill(worker.pid, Signal::SIGUSR2);
                daemon.wait_for("handled");
            }
            assert!(!daemon.said("drained"));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("drained"));
        })
        .for_processes(),
        Scenario::reporting("wait_for_stop_works_without_free_descriptors", waits_without_descriptors, drains_on_term),
        Scenario::reporting("stop_fd_works_with_tokio_and_stays_readable", watches_with_tokio, drains_on_term),
        Scenario::reporting(
            "stop_fd_is_readable_after_an_earlier_request",
            calls_stop_fd_after_the_request,
            drains_on_term,
        ),
        Scenario::reporting(
            "stop_fd_is_the_same_descriptor_in_all_threads",
            calls_stop_fd_from_threads,
            drains_on_term,
        ),
        Scenario::reporting("stop_fd_is_readable_after_ctrl_c", watches_with_tokio, drains_on_int),
        Scenario::reporting("term_also_runs_tokio_and_program_handlers", with_other_handlers, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGTERM);
            daemon.ends_with(0);
            for receiver in ["installed before", "signal-hook", "tokio", "stop_requested"] {
                assert_eq!(daemon.count(&format!("received by {receiver}")), 1, "{}", daemon.transcript());
            }
        })
        .for_processes(),
        Scenario::reporting("term_does_not_kill_after_the_worker_is_dropped", drops_the_worker, |daemon| {
            let worker = daemon.worker();
            daemon.send(worker, Signal::SIGTERM);
            daemon.send(worker, Signal::SIGUSR2);
            daemon.wait_for("still there");
            daemon.ends_with(0);
            assert!(daemon.said("exited normally"), "{}", daemon.transcript());
        }),
        Scenario::reporting("term_to_a_workers_child_requests_no_stop", forks_on_its_own, |daemon| {
            let worker = daemon.worker();
            daemon.wait_for("no stop request in the child or in the worker");
            daemon.send(worker, Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained"), 1, "{}", daemon.transcript());
        }),
        Scenario::reporting("int_ignored_before_the_call_stays_ignored", ignores_int, |daemon| {
            let worker = daemon.worker();
            daemon.interrupt();
            daemon.send(worker, Signal::SIGUSR2);
            daemon.wait_for("still there");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("drained"));
        }),
        Scenario::reporting("worker_inherits_only_the_doorbell_descriptor", counts_descriptors, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("descriptors of its own: 1"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::spawning("a_spawned_worker_drains_when_the_parent_is_killed", two, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert_eq!(daemon.count("drained"), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("term_after_enable_graceful_stop_is_a_request", enables_and_gets_a_term, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("drained"), "{}", daemon.transcript());
        })
        .for_processes(),
    ]
}

/// Runs one worker, which is not restarted. With another restart policy, a worker that exits after a stop request of
/// the test would be replaced.
fn once(work: impl Fn(Worker) + Send + Sync + 'static) -> Report {
    serve(Prefork::new().workers(1).restart_policy(RestartPolicy::Never), work)
}

fn makes_no_stop_call() -> Report {
    one(|worker| {
        up(worker.id());
        idle()
    })
}

extern "C" fn handled(_: libc::c_int) {
    let text = b"handled\n";
    // SAFETY: write(2) is async-signal-safe, and the buffer is valid for its length.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

fn waits_through_signals() -> Report {
    one(|worker| {
        // SAFETY: the handler is async-signal-safe.
        unsafe { signal(Signal::SIGUSR2, SigHandler::Handler(handled)) }.expect("a handler");
        assert!(!worker.stop_requested());
        up(worker.id());
        assert!(worker.wait_for_stop(None));
        say("drained");
    })
}

fn waits_without_descriptors() -> Report {
    one(|worker| {
        setrlimit(Resource::RLIMIT_NOFILE, 3, 1024).expect("a limit");
        assert!(!worker.wait_for_stop(Some(Duration::from_millis(30))));
        let refused = worker.stop_fd().expect_err("a refusal");
        assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));
        up(worker.id());
        assert!(worker.wait_for_stop(None));
        setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).expect("a limit");
        assert!(worker.stop_fd().is_ok(), "stop_fd works once descriptors are free");
        assert!(worker.wait_for_stop(None));
        say("drained");
    })
}

fn watches_with_tokio() -> Report {
    one(|worker| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let fd = worker.stop_fd().expect("a descriptor");
            // SAFETY: the descriptor stays open as long as the worker, which outlives `stop`.
            let stop = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.expect("a registration");
            up(worker.id());
            let _ = stop.readable().await.expect("a request");
            let _ = stop.readable().await.expect("the descriptor stays readable");
            assert!(worker.stop_requested());
            say("drained");
        });
    })
}

fn with_other_handlers() -> Report {
    static BEFORE: AtomicBool = AtomicBool::new(false);
    extern "C" fn note(_: libc::c_int) {
        BEFORE.store(true, Ordering::Relaxed);
    }
    once(|worker| {
        // SAFETY: the handler is async-signal-safe.
        unsafe { signal(Signal::SIGTERM, SigHandler::Handler(note)) }.expect("a handler");
        let flag = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(libc::SIGTERM, flag.clone()).expect("a handler");
        assert!(!worker.stop_requested());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut term = tokio::signal::unix::signal(SignalKind::terminate()).expect("a handler");
            up(worker.id());
            term.recv().await;
            say("received by tokio");
        });
        for (by, received) in [
            ("installed before", BEFORE.load(Ordering::Relaxed)),
            ("signal-hook", flag.load(Ordering::Relaxed)),
            ("stop_requested", worker.stop_requested()),
        ] {
            assert!(received, "{by}");
            say(&format!("received by {by}"));
        }
    })
}

fn forks_on_its_own() -> Report {
    once(|worker| {
        assert!(!worker.wait_for_stop(Some(Duration::ZERO)) && worker.stop_fd().is_ok());
        // SAFETY: the child has only this thread. The only lock that it uses is the worker's stop flag. No other thread
        // holds this lock, because no stop is requested yet.
        match unsafe { nix::unistd::fork() }.expect("fork") {
            ForkResult::Child => {
                nix::sys::signal::raise(Signal::SIGTERM).expect("a signal");
                worker.stop_all();
                let received = worker.stop_requested() || worker.wait_for_stop(Some(Duration::from_millis(1)));
                // SAFETY: _exit(2) runs no destructors and no exit handlers, and this child needs none.
                unsafe { libc::_exit(i32::from(received)) }
            }
            ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).expect("its status");
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
        up(worker.id());
        assert!(!worker.wait_for_stop(Some(Duration::from_millis(50))) && !worker.stop_requested());
        say("no stop request in the child or in the worker");
        assert!(worker.wait_for_stop(None));
        say("drained");
    })
}

fn drops_the_worker() -> Report {
    once(|worker| {
        assert!(!worker.wait_for_stop(Some(Duration::ZERO)));
        let id = worker.id();
        drop(worker);
        up_until_signal(id, Signal::SIGUSR2);
        say("still there");
    })
}

fn ignores_int() -> Report {
    ignore(Signal::SIGINT);
    one(|worker| {
        assert!(!worker.wait_for_stop(Some(Duration::ZERO)));
        up_until_signal(worker.id(), Signal::SIGUSR2);
        assert!(!worker.stop_requested() && !worker.wait_for_stop(Some(Duration::ZERO)));
        say("still there");
        assert!(worker.wait_for_stop(None));
        say("drained");
    })
}

/// A spawned worker inherits two descriptors: one that wakes the parent, and one of the shared memory. The call closes
/// the second descriptor.
fn counts_descriptors() -> Report {
    let before = own_descriptors().len();
    one(move |_| {
        let now = own_descriptors().len() - if backend() == Some(Backend::Fork) { LIFELINES } else { 0 };
        let own = if backend() == Some(Backend::Fork) { now - before } else { now - (before - 2) };
        say(&format!("descriptors of its own: {own}"));
    })
}

fn calls_stop_fd_after_the_request() -> Report {
    one(|worker| {
        assert!(!worker.stop_requested());
        up_until(worker.id(), || worker.stop_requested());
        let mut fd = [PollFd::new(worker.stop_fd().expect("a descriptor"), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fd, PollTimeout::ZERO), Ok(1));
        say("drained");
    })
}

fn calls_stop_fd_from_threads() -> Report {
    one(|worker| {
        let barrier = Barrier::new(8);
        let descriptors: HashSet<i32> = std::thread::scope(|scope| {
            let ask = || {
                barrier.wait();
                assert!(!worker.stop_requested());
                worker.stop_fd().expect("a descriptor").as_raw_fd()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
        });
        assert_eq!(descriptors.len(), 1, "all threads get the same descriptor");
        up(worker.id());
        std::thread::scope(|scope| {
            (0..8).for_each(|_| drop(scope.spawn(|| assert!(worker.wait_for_stop(None)))));
        });
        say("drained");
    })
}

/// The worker calls no other method before the signal, so only `enable_graceful_stop` can have caught the signal.
fn enables_and_gets_a_term() -> Report {
    one(|worker| {
        worker.enable_graceful_stop();
        worker.enable_graceful_stop();
        raise(Signal::SIGTERM);
        assert!(worker.wait_for_stop(None));
        say("drained");
    })
}
