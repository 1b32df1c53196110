//! Signals and fork: each trap by its name.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction, signal};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use taskfork::{Event, Prefork, Report};

use super::ends::three_idle;
use super::heartbeats;
use super::prefork::signals_itself_at_the_end;
use super::stops::{deaf_to_term, drains_on, three_that_drain};
use crate::Scenario;
use crate::daemon::{Daemon, kill};
use crate::os::{KILLED, Signal, idle, ignore, state};
use crate::program::{fork, say, serve, up, up_until};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("term_kills_a_worker_that_has_no_handler", three_idle, |daemon| {
            let workers = daemon.workers(3);
            kill(workers[0].pid, Signal::SIGTERM);
            assert_eq!(daemon.worker().id, 0);
            assert!(daemon.said("killed by signal 15, restarting"));
        }),
        Scenario::new("a_term_to_a_worker_the_moment_it_is_forked_is_not_lost", fifty_idle, |daemon| {
            for _ in 0..50 {
                let line = daemon.wait_for(" started, generation 0");
                let pid = line.split_once("(pid ").and_then(|(_, rest)| rest.split_once(')')).expect("a pid").0;
                kill(pid.parse().expect("a pid"), Signal::SIGTERM);
            }
            while daemon.count("killed by signal 15, restarting") < 50 {
                daemon.wait_for("killed by signal 15, restarting");
            }
        }),
        Scenario::new("a_signal_in_the_midst_of_a_fork_waits_for_a_whole_worker", signalled_in_fork, |daemon| {
            daemon.wait_for("handled in Some(0)");
            daemon.ends_with(0);
            assert!(!daemon.said("handled in None"));
        }),
        Scenario::new("signal_hook_works_in_a_worker", signal_hook_worker, handles_term),
        Scenario::new("tokio_signal_works_in_a_worker", tokio_worker, handles_term),
        Scenario::new("sigaction_works_in_a_worker", sigaction_worker, handles_term),
        Scenario::new("a_handler_installed_before_the_call_runs_in_the_worker", handler_before, handles_term),
        Scenario::new("a_workers_signal_is_not_taken_for_one_of_the_parents", three_that_drain, |daemon| {
            let workers = daemon.workers(3);
            kill(workers[1].pid, Signal::SIGTERM);
            daemon.wait_for(&format!("child 1 (pid {}) exited normally", workers[1].pid));
            kill(workers[2].pid, Signal::SIGKILL);
            assert_eq!(daemon.worker().id, 2, "the parent still supervises");
            assert!(!daemon.said("log Stopping"));
        }),
        Scenario::new("a_handler_of_the_programs_own_does_not_disturb_the_parent", own_handler, |daemon| {
            let workers = daemon.workers(3);
            daemon.signal(Signal::SIGUSR2);
            daemon.wait_for("handled");
            kill(workers[0].pid, Signal::SIGKILL);
            assert_eq!(daemon.worker().id, 0);
        }),
        Scenario::new(
            "an_ignored_sigchld_does_not_blind_the_parent_and_stays_ignored_in_the_worker",
            no_sigchld,
            |daemon| {
                let worker = daemon.worker();
                kill(worker.pid, Signal::SIGKILL);
                daemon.worker();
                assert!(daemon.said("killed by signal 9, restarting"));
                assert_eq!(daemon.count("state as before: true"), 2);
            },
        ),
        Scenario::new("a_sigchld_whose_children_need_no_wait_does_not_blind_the_parent", no_child_wait, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGKILL);
            daemon.worker();
            assert_eq!(daemon.count("state as before: true"), 2);
        }),
        Scenario::reporting(
            "a_worker_that_the_program_itself_has_waited_for_is_not_missed_for_ever",
            takes_ends,
            |daemon| {
                let workers = daemon.workers(3);
                kill(workers[0].pid, Signal::SIGKILL);
                let mut again = [daemon.worker().id, daemon.worker().id];
                again.sort();
                assert_eq!(again, [0, 1]);
                assert!(
                    daemon
                        .said(&format!("log child 1 (pid {}) exited with unknown status, restarting", workers[1].pid))
                );
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(daemon.said("report: stopped"), "{}", daemon.transcript());
            },
        )
        .for_processes(),
        Scenario::reporting("a_signal_to_the_parent_is_no_excuse_for_who_is_late", late_additions, |daemon| {
            daemon.wait_for("is ready");
            // The first of the two has no excuse but that signal for not being the first that is late. If the parent was held
            // up, though, both may have one.
            for round in 1.. {
                let added = [(); 2].map(|()| {
                    daemon.signal(Signal::SIGTTIN);
                    daemon.worker()
                });
                let late = [(); 2].map(|()| daemon.wait_for("is not ready in time"));
                daemon.wait_for_times(KILLED, 2 * round);
                if late[0].contains(&added[0].to_string()) {
                    break;
                }
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::new("an_ignored_sighup_stays_ignored", no_sighup, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGHUP);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("Rolling restart"));
        }),
        Scenario::new("a_term_that_was_blocked_before_the_call_still_stops_the_parent", blocked_term, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 1 processes");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting(
            "who_hangs_is_aborted_and_may_say_where_before_it_is_restarted",
            two_that_trace,
            |daemon| {
                let workers = daemon.workers(2);
                let (beating, mut hanging) = (workers[0], workers[1]);
                // Who takes too long to say it is killed, and its successor is the next to say it.
                while !daemon.said("exited with status 6, restarting") {
                    kill(hanging.pid, Signal::SIGUSR2);
                    daemon.wait_for(&format!("{hanging} gives no sign of life, aborting it"));
                    hanging = daemon.worker();
                    assert_eq!(hanging.id, 1);
                }
                assert!(daemon.said("it was in a loop"), "{}", daemon.transcript());
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(!daemon.said(&format!("{beating} gives no sign of life")), "{}", daemon.transcript());
            },
        )
        .for_processes(),
        Scenario::new("usr1_is_passed_on_to_every_worker", three_that_reopen, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGUSR1);
            for _ in 0..3 {
                daemon.wait_for("reopened");
            }
        }),
        Scenario::new("a_worker_drains_when_the_parent_is_killed", three_that_drain, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGKILL);
            daemon.end();
            assert_eq!(daemon.count("drained"), 3);
        }),
        Scenario::reporting("a_stop_asked_for_when_all_have_finished_is_the_programs", finished_late, |daemon| {
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&daemon.end()), Some(15));
            assert!(!daemon.said("report: "));
        }),
        Scenario::new("int_to_the_parent_lets_the_workers_drain_too", three_that_drain, |daemon| {
            drains_on(daemon, Signal::SIGINT);
        }),
        Scenario::new("quit_is_passed_on_as_quit", three_idle, |daemon| {
            let workers = daemon.workers(3);
            daemon.signal(Signal::SIGQUIT);
            daemon.ends_with(0);
            assert!(daemon.said("killed by signal 3"), "{}", daemon.transcript());
            for up in workers {
                // Who is held up is killed before it dies of that.
                let is_late = daemon.said(&format!("{up} did not stop in time"));
                assert!(is_late || daemon.said(&format!("{up} killed by signal 3")), "{}", daemon.transcript());
            }
        }),
        Scenario::new("a_second_int_after_a_term_kills_who_does_not_listen", deaf_to_term, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 3 processes");
            daemon.signal(Signal::SIGINT);
            daemon.ends_with(0);
        }),
        Scenario::new("whatever_comes_after_the_stop_the_parent_exits_0", signals_itself_at_exit, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("at exit"));
        }),
    ]
}

fn fifty_idle() {
    fork(50, 100);
    idle();
}

/// The C library runs what pthread_atfork(3) was given before fork(2) returns in the child.
fn signalled_in_fork() {
    extern "C" fn raise() {
        let _ = nix::sys::signal::raise(Signal::SIGUSR2);
    }
    extern "C" fn handled(_: libc::c_int) {
        let text: &[u8] = match taskfork::task_id() {
            Some(0) => b"handled in Some(0)\n",
            _ => b"handled in None\n",
        };
        // SAFETY: write(2) is async-signal-safe, and the text is there.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    }
    let action = SigAction::new(SigHandler::Handler(handled), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler is async-signal-safe.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.expect("a handler");
    // SAFETY: the function is async-signal-safe, and there until the end.
    assert_eq!(unsafe { libc::pthread_atfork(None, None, Some(raise)) }, 0);
    fork(1, 0);
}

fn handles_term(daemon: &mut Daemon) {
    let worker = daemon.worker();
    kill(worker.pid, Signal::SIGTERM);
    daemon.wait_for("handled");
    daemon.ends_with(0);
}

fn signal_hook_worker() {
    let id = fork(1, 100);
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGTERM]).expect("a handler");
    up(id);
    signals.forever().next();
    say("handled");
}

fn tokio_worker() {
    let id = fork(1, 100);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a handler");
        up(id);
        term.recv().await;
        say("handled");
    });
}

static HANDLED: AtomicBool = AtomicBool::new(false);

fn handle(signal: Signal, flags: SaFlags) {
    extern "C" fn handled(_: libc::c_int) {
        HANDLED.store(true, Ordering::Relaxed);
        let text = b"handled\n";
        // SAFETY: write(2) is async-signal-safe, and the text is there.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    }
    let action = SigAction::new(SigHandler::Handler(handled), flags, SigSet::empty());
    // SAFETY: the handler is async-signal-safe.
    unsafe { sigaction(signal, &action) }.expect("a handler");
}

fn sigaction_worker() {
    let id = fork(1, 100);
    handle(Signal::SIGTERM, SaFlags::empty());
    up_until(id, || HANDLED.load(Ordering::Relaxed));
}

fn handler_before() {
    handle(Signal::SIGTERM, SaFlags::empty());
    let id = fork(1, 100);
    up_until(id, || HANDLED.load(Ordering::Relaxed));
}

fn own_handler() {
    handle(Signal::SIGUSR2, SaFlags::empty());
    up(fork(3, 100));
    idle();
}

fn no_sigchld() {
    ignore(Signal::SIGCHLD);
    compare_state();
}

fn no_child_wait() {
    handle(Signal::SIGCHLD, SaFlags::SA_NOCLDWAIT);
    compare_state();
}

fn compare_state() {
    crate::program::prepare();
    let before = state();
    let id = fork(1, 100);
    say(&format!("state as before: {}", before == state()));
    up(id);
    idle();
}

/// That of worker 1 when worker 0 has ended, and that of worker 2 when all are to.
fn takes_ends() -> Report {
    let mut pids = [Pid::this(); 3];
    let take = |pid| {
        nix::sys::signal::kill(pid, Signal::SIGKILL).expect("a worker");
        waitpid(pid, None).expect("its status");
    };
    let prefork = Prefork::new().workers(3).on_event(move |event| match event {
        Event::Started { process } => pids[process.id] = Pid::from_raw(process.pid.unwrap_or(0) as i32),
        Event::Exited { process, restarting: true, .. } if process.id == 0 => take(pids[1]),
        Event::Stopping { .. } => take(pids[2]),
        _ => {}
    });
    serve(prefork, |worker| {
        up(worker.id());
        idle();
    })
}

/// Of all workers only the first becomes ready.
fn late_additions() -> Report {
    serve(Prefork::new().workers(1).ready_timeout(Duration::from_millis(500)), |worker| {
        match worker.id() {
            0 => worker.ready(),
            id => up(id),
        }
        idle();
    })
}

fn no_sighup() {
    ignore(Signal::SIGHUP);
    three_idle();
}

fn blocked_term() {
    SigSet::from(Signal::SIGTERM).thread_block().expect("a mask");
    up(fork(1, 100));
    idle();
}

fn three_that_reopen() {
    let id = fork(3, 100);
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGUSR1]).expect("a handler");
    up(id);
    for _ in signals.forever() {
        say(&format!("reopened {id}"));
    }
}

fn finished_late() -> Report {
    signals_itself_at_the_end(|_| {})
}

fn signals_itself_at_exit() {
    extern "C" fn at_exit() {
        say("at exit");
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGTTIN] {
            let _ = nix::sys::signal::raise(signal);
        }
    }
    // SAFETY: the function is there until the end.
    assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
    up(fork(1, 100));
    idle();
}

/// SIGUSR2 is the endless loop, and SIGABRT makes it say so.
fn two_that_trace() -> Report {
    extern "C" fn hang(_: libc::c_int) {
        loop {
            std::hint::spin_loop();
        }
    }
    extern "C" fn trace(_: libc::c_int) {
        let text = b"it was in a loop\n";
        // SAFETY: write(2) and _exit(2) are async-signal-safe, and the text is there.
        unsafe {
            libc::write(2, text.as_ptr().cast(), text.len());
            libc::_exit(6);
        }
    }
    serve(heartbeats::service(2), |worker| {
        assert!(!worker.stop_requested());
        // SAFETY: both handlers are async-signal-safe.
        unsafe {
            signal(Signal::SIGUSR2, SigHandler::Handler(hang)).expect("a handler");
            signal(Signal::SIGABRT, SigHandler::Handler(trace)).expect("a handler");
        }
        worker.ready();
        up(worker.id());
        heartbeats::beat(&worker, false);
    })
}
