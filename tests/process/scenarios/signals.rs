//! Signals to the parent and to forked workers. Each scenario covers one mistake that is easy to make.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction, signal};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use taskfork::{Event, Prefork, Report};

use super::ends::three_idle;
use super::heartbeats;
use super::prefork::signals_itself_at_the_end;
use super::stops::{drains_on, three_that_drain, three_that_ignore_term};
use crate::Scenario;
use crate::daemon::{Daemon, kill};
use crate::os::{INHERITED, KILLED, Signal, blocked, idle, ignore, state};
use crate::program::{drain, fork, say, serve, up, up_until};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("term_kills_a_worker_that_has_no_handler", three_idle, |daemon| {
            let workers = daemon.workers(3);
            kill(workers[0].pid, Signal::SIGTERM);
            assert_eq!(daemon.worker().id, 0);
            assert!(daemon.said("killed by signal 15, restarting"));
        }),
        Scenario::new("term_right_after_fork_is_not_lost", fifty_idle, |daemon| {
            for _ in 0..50 {
                let line = daemon.wait_for(" started, generation 0");
                let pid = line.split_once("(pid ").and_then(|(_, rest)| rest.split_once(')')).expect("a pid").0;
                kill(pid.parse().expect("a pid"), Signal::SIGTERM);
            }
            while daemon.count("killed by signal 15, restarting") < 50 {
                daemon.wait_for("killed by signal 15, restarting");
            }
        }),
        Scenario::new("signal_during_fork_is_delivered_after_worker_setup", signalled_during_fork, |daemon| {
            daemon.wait_for("handled in Some(0)");
            daemon.ends_with(0);
            assert!(!daemon.said("handled in None"));
        }),
        Scenario::new("signal_hook_works_in_a_worker", signal_hook_worker, handles_term),
        Scenario::new("tokio_signal_works_in_a_worker", tokio_worker, handles_term),
        Scenario::new("sigaction_works_in_a_worker", sigaction_worker, handles_term),
        Scenario::new("handler_installed_before_the_call_runs_in_the_worker", handler_before, handles_term),
        Scenario::new("signal_to_a_worker_does_not_stop_the_parent", three_that_drain, |daemon| {
            let workers = daemon.workers(3);
            kill(workers[1].pid, Signal::SIGTERM);
            daemon.wait_for(&format!("child 1 (pid {}) exited normally", workers[1].pid));
            kill(workers[2].pid, Signal::SIGKILL);
            assert_eq!(daemon.worker().id, 2, "the parent still supervises");
            assert!(!daemon.said("log Stopping"));
        }),
        Scenario::spawning("spawned_workers_start_with_the_programs_signal_mask", spawned_with_mask, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("parent: blocked"), 1, "{}", daemon.transcript());
            let worker = daemon.line("worker: blocked").to_owned();
            assert_eq!(worker, daemon.line("parent: blocked").replace("parent", "worker"));
        }),
        Scenario::new("programs_own_handler_does_not_disturb_the_parent", own_handler, |daemon| {
            let workers = daemon.workers(3);
            daemon.signal(Signal::SIGUSR2);
            daemon.wait_for("handled");
            kill(workers[0].pid, Signal::SIGKILL);
            assert_eq!(daemon.worker().id, 0);
        }),
        Scenario::new("ignored_sigchld_is_tolerated_and_inherited_by_the_worker", no_sigchld, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGKILL);
            daemon.worker();
            assert!(daemon.said("killed by signal 9, restarting"));
            assert_eq!(daemon.count("state as before: true"), 2);
        }),
        Scenario::new("sa_nocldwait_does_not_hide_exits_from_the_parent", no_child_wait, |daemon| {
            let worker = daemon.worker();
            kill(worker.pid, Signal::SIGKILL);
            daemon.worker();
            assert_eq!(daemon.count("state as before: true"), 2);
        }),
        Scenario::reporting("worker_reaped_by_the_program_itself_is_restarted", reaps_workers_itself, |daemon| {
            let workers = daemon.workers(3);
            kill(workers[0].pid, Signal::SIGKILL);
            let mut again = [daemon.worker().id, daemon.worker().id];
            again.sort();
            assert_eq!(again, [0, 1]);
            assert!(
                daemon.said(&format!("log child 1 (pid {}) exited with unknown status, restarting", workers[1].pid))
            );
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("signal_to_the_parent_does_not_extend_ready_timeout", added_workers_are_late, |daemon| {
            daemon.wait_for("is ready");
            // The second SIGTTIN wakes the parent. This must not extend the timeout of the worker that was added first,
            // so that worker is late first. If the parent itself was delayed, it may extend both timeouts, and either
            // worker may be late first. In that case, the test tries again with two new workers.
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
        Scenario::new("term_blocked_before_the_call_still_stops_the_parent", blocked_term, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 1 processes");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting(
            "sigabrt_handler_of_a_hanging_worker_runs_before_restart",
            two_with_sigabrt_handler,
            |daemon| {
                let workers = daemon.workers(2);
                let beating = workers[0];
                let mut hanging = workers[1];
                // The parent kills a worker whose SIGABRT handler takes longer than 1 s. Then the test tries again with
                // the next process.
                while !daemon.said("exited with status 6, restarting") {
                    kill(hanging.pid, Signal::SIGUSR2);
                    daemon.wait_for(&format!("{hanging} has sent no heartbeat in time, aborting it"));
                    hanging = daemon.worker();
                    assert_eq!(hanging.id, 1);
                }
                assert!(daemon.said("it was in a loop"), "{}", daemon.transcript());
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(!daemon.said(&format!("{beating} has sent no heartbeat in time")), "{}", daemon.transcript());
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
        Scenario::reporting("term_after_the_last_exit_goes_to_the_program", signalled_after_the_last_exit, |daemon| {
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&daemon.end()), Some(15));
            assert!(!daemon.said("report: "));
        }),
        Scenario::new("int_to_the_parent_lets_the_workers_drain", three_that_drain, |daemon| {
            drains_on(daemon, Signal::SIGINT);
        }),
        Scenario::new("quit_is_passed_on_as_quit", three_idle, |daemon| {
            let workers = daemon.workers(3);
            daemon.signal(Signal::SIGQUIT);
            daemon.ends_with(0);
            assert!(daemon.said("killed by signal 3"), "{}", daemon.transcript());
            for up in workers {
                // On a busy machine, the parent may kill a worker before the worker has died of SIGQUIT.
                let is_late = daemon.said(&format!("{up} did not stop in time"));
                assert!(is_late || daemon.said(&format!("{up} killed by signal 3")), "{}", daemon.transcript());
            }
        }),
        Scenario::new("int_after_term_kills_workers_that_ignore_term", three_that_ignore_term, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping 3 processes");
            daemon.signal(Signal::SIGINT);
            daemon.ends_with(0);
        }),
        Scenario::new("signals_at_exit_do_not_change_the_exit_status", signals_itself_at_exit, |daemon| {
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

/// Before the call, the parent blocks two signals. The worker prints the mask that it has inherited.
fn spawned_with_mask() -> Report {
    const IN_WORKER: &str = "TASKFORK_TEST_IN_WORKER";
    let is_worker = std::env::var_os(IN_WORKER).is_some();
    if !is_worker {
        SigSet::from_iter([Signal::SIGUSR2, Signal::SIGHUP]).thread_block().expect("a mask");
        // SAFETY: this process has no other thread that could read the environment.
        unsafe { std::env::set_var(IN_WORKER, "1") };
    }
    match INHERITED.get().filter(|_| is_worker) {
        Some(mask) => say(&format!("worker: {mask}")),
        None => say(&format!("parent: {}", blocked())),
    }
    serve(Prefork::new().workers(1), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        drain(&worker);
    })
}

/// A pthread_atfork(3) handler raises SIGUSR2 in the child before fork(2) returns in the child.
fn signalled_during_fork() {
    extern "C" fn raise() {
        let _ = nix::sys::signal::raise(Signal::SIGUSR2);
    }
    extern "C" fn handled(_: libc::c_int) {
        let text: &[u8] = match taskfork::task_id() {
            Some(0) => b"handled in Some(0)\n",
            _ => b"handled in None\n",
        };
        // SAFETY: write(2) is async-signal-safe, and the buffer is valid for its length.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    }
    let action = SigAction::new(SigHandler::Handler(handled), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler is async-signal-safe.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.expect("a handler");
    // SAFETY: the function only calls raise(3), which is async-signal-safe, and it stays valid until the process ends.
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
        // SAFETY: write(2) is async-signal-safe, and the buffer is valid for its length.
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

/// The parent kills and reaps worker 1 itself when worker 0 has exited, and worker 2 when the service stops.
fn reaps_workers_itself() -> Report {
    let mut pids = [Pid::this(); 3];
    let kill_and_reap = |pid| {
        nix::sys::signal::kill(pid, Signal::SIGKILL).expect("a worker");
        waitpid(pid, None).expect("its status");
    };
    let prefork = Prefork::new().workers(3).on_event(move |event, _| match event {
        Event::Started { process } => pids[process.id] = Pid::from_raw(process.pid.unwrap_or(0) as i32),
        Event::Exited { process, restarting: true, .. } if process.id == 0 => kill_and_reap(pids[1]),
        Event::Stopping { .. } => kill_and_reap(pids[2]),
        _ => {}
    });
    serve(prefork, |worker| {
        up(worker.id());
        idle();
    })
}

/// Worker 0 becomes ready. Workers that are added later never become ready.
fn added_workers_are_late() -> Report {
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

fn signalled_after_the_last_exit() -> Report {
    signals_itself_at_the_end(|_| {})
}

fn signals_itself_at_exit() {
    extern "C" fn at_exit() {
        say("at exit");
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGTTIN] {
            let _ = nix::sys::signal::raise(signal);
        }
    }
    // SAFETY: atexit(3) takes a function that stays valid until the process ends, as every `fn` item does.
    assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
    up(fork(1, 100));
    idle();
}

/// On SIGUSR2, a worker enters an endless loop. Its handler for SIGABRT prints that the worker was in a loop, and exits
/// with status 6.
fn two_with_sigabrt_handler() -> Report {
    extern "C" fn hang(_: libc::c_int) {
        loop {
            std::hint::spin_loop();
        }
    }
    extern "C" fn trace(_: libc::c_int) {
        let text = b"it was in a loop\n";
        // SAFETY: write(2) and _exit(2) are async-signal-safe, and the buffer is valid for its length.
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
        heartbeats::send_heartbeats(&worker, false);
    })
}
