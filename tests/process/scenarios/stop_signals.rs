//! What SIGTERM and SIGINT are to a worker that listens, and the descriptor that tells of them.

use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, signal};
use nix::unistd::ForkResult;
use taskfork::{Backend, Prefork, Report};
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
        Scenario::reporting("without_a_call_term_kills_a_worker", never_asks, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGTERM);
            daemon.wait_for("killed by signal 15, restarting");
            daemon.worker();
        })
        .for_processes(),
        Scenario::reporting("wait_for_stop_is_not_cut_short_by_other_signals", waits_through_signals, |daemon| {
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
        Scenario::reporting("wait_for_stop_works_without_a_descriptor", waits_without_descriptors, drains_on_term),
        Scenario::reporting("stop_fd_fits_into_tokio_and_stays_readable", watches_with_tokio, drains_on_term),
        Scenario::reporting("stop_fd_of_a_request_that_was_made_is_readable", asks_for_it_late, drains_on_term),
        Scenario::reporting(
            "several_threads_that_ask_for_stop_fd_have_the_same",
            asks_for_it_from_threads,
            drains_on_term,
        ),
        Scenario::reporting("stop_fd_is_readable_after_the_int_of_a_terminal", watches_with_tokio, drains_on_int),
        Scenario::reporting("tokios_and_the_programs_own_handlers_run_as_well", with_other_handlers, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGTERM);
            daemon.ends_with(0);
            for heard in ["installed before", "signal-hook", "tokio", "stop_requested"] {
                assert_eq!(daemon.count(&format!("heard by {heard}")), 1, "{}", daemon.transcript());
            }
        })
        .for_processes(),
        Scenario::reporting("a_term_that_comes_when_the_handle_is_gone_does_no_harm", drops_its_handle, |daemon| {
            let worker = daemon.worker();
            daemon.send(worker, Signal::SIGTERM);
            daemon.send(worker, Signal::SIGUSR2);
            daemon.wait_for("still there");
            daemon.ends_with(0);
            assert!(daemon.said("exited normally"), "{}", daemon.transcript());
        }),
        Scenario::reporting(
            "a_term_to_a_process_that_a_worker_forked_is_no_request_to_the_worker",
            forks_on_its_own,
            |daemon| {
                let worker = daemon.worker();
                daemon.wait_for("the child has heard nothing, nor has the worker");
                daemon.send(worker, Signal::SIGTERM);
                daemon.ends_with(0);
                assert_eq!(daemon.count("drained"), 1, "{}", daemon.transcript());
            },
        ),
        Scenario::reporting("an_int_that_was_ignored_when_the_program_started_stops_nobody", ignores_int, |daemon| {
            let worker = daemon.worker();
            daemon.interrupt();
            daemon.send(worker, Signal::SIGUSR2);
            daemon.wait_for("still there");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("drained"));
        }),
        Scenario::reporting(
            "a_worker_has_the_doorbell_and_nothing_else_of_the_parents",
            counts_descriptors,
            |daemon| {
                daemon.ends_with(0);
                assert!(daemon.said("descriptors of its own: 1"), "{}", daemon.transcript());
            },
        )
        .for_processes(),
        Scenario::spawning("a_spawned_worker_drains_when_the_parent_is_killed", two, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert_eq!(daemon.count("drained"), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("a_term_after_enable_graceful_stop_is_a_request", enables_and_gets_a_term, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("drained"), "{}", daemon.transcript());
        })
        .for_processes(),
    ]
}

fn never_asks() -> Report {
    one(|worker| {
        up(worker.id());
        idle()
    })
}

extern "C" fn handled(_: libc::c_int) {
    let text = b"handled\n";
    // SAFETY: write(2) is async-signal-safe, and the text is there.
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
        assert!(worker.stop_fd().is_ok(), "it can be tried again");
        assert!(worker.wait_for_stop(None));
        say("drained");
    })
}

fn watches_with_tokio() -> Report {
    one(|worker| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let fd = worker.stop_fd().expect("a descriptor");
            // SAFETY: the descriptor is the worker's, and open as long as the worker is.
            let stop = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.expect("a registration");
            up(worker.id());
            let _ = stop.readable().await.expect("a request");
            let _ = stop.readable().await.expect("it stays");
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
    one(|worker| {
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
            say("heard by tokio");
        });
        for (by, heard) in [
            ("installed before", BEFORE.load(Ordering::Relaxed)),
            ("signal-hook", flag.load(Ordering::Relaxed)),
            ("stop_requested", worker.stop_requested()),
        ] {
            assert!(heard, "{by}");
            say(&format!("heard by {by}"));
        }
    })
}

fn forks_on_its_own() -> Report {
    one(|worker| {
        assert!(!worker.wait_for_stop(Some(Duration::ZERO)) && worker.stop_fd().is_ok());
        // SAFETY: there is no other thread.
        match unsafe { nix::unistd::fork() }.expect("fork") {
            ForkResult::Child => {
                nix::sys::signal::raise(Signal::SIGTERM).expect("a signal");
                worker.stop_all();
                let heard = worker.stop_requested() || worker.wait_for_stop(Some(Duration::from_millis(1)));
                // SAFETY: this child has nothing to clean up.
                unsafe { libc::_exit(i32::from(heard)) }
            }
            ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).expect("its status");
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
        up(worker.id());
        assert!(!worker.wait_for_stop(Some(Duration::from_millis(50))) && !worker.stop_requested());
        say("the child has heard nothing, nor has the worker");
        assert!(worker.wait_for_stop(None));
        say("drained");
    })
}

fn drops_its_handle() -> Report {
    serve(Prefork::new().workers(1), |worker| {
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

/// One that was spawned has had the memory as well, before the call.
fn counts_descriptors() -> Report {
    let before = own_descriptors().len();
    one(move |_| {
        let now = own_descriptors().len() - if backend() == Some(Backend::Fork) { LIFELINES } else { 0 };
        let own = if backend() == Some(Backend::Fork) { now - before } else { now - (before - 2) };
        say(&format!("descriptors of its own: {own}"));
    })
}

fn asks_for_it_late() -> Report {
    one(|worker| {
        assert!(!worker.stop_requested());
        up_until(worker.id(), || worker.stop_requested());
        let mut fd = [PollFd::new(worker.stop_fd().expect("a descriptor"), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fd, PollTimeout::ZERO), Ok(1));
        say("drained");
    })
}

fn asks_for_it_from_threads() -> Report {
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
        assert_eq!(descriptors.len(), 1, "one for all");
        up(worker.id());
        std::thread::scope(|scope| {
            (0..8).for_each(|_| drop(scope.spawn(|| assert!(worker.wait_for_stop(None)))));
        });
        say("drained");
    })
}

/// No other method of the worker runs before the signal, so only `enable_graceful_stop` can have caught it.
fn enables_and_gets_a_term() -> Report {
    one(|worker| {
        worker.enable_graceful_stop();
        worker.enable_graceful_stop();
        raise(Signal::SIGTERM);
        assert!(worker.wait_for_stop(None));
        say("drained");
    })
}
