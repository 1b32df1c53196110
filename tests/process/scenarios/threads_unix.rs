//! Tests of worker threads on Unix: signals, and system errors.

use std::hint;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
use nix::unistd::Pid;
use taskfork::{Prefork, Report};

use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Signal, own_descriptors, state, watch};
use crate::program::{drain, prepare, say, serve, up, wait_for_signal};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::threading("worker_threads_add_only_request_signals_to_the_mask", prints_mask, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for id in 0..2 {
                let mask = format!("{id} has blocked SIGHUP SIGINT SIGQUIT SIGUSR2 SIGTERM SIGTTIN SIGTTOU");
                assert_eq!(daemon.line(&format!("{id} has blocked")), mask);
            }
            assert!(daemon.said("state as before: true"), "{}", daemon.transcript());
        }),
        Scenario::threading("program_handlers_run_while_the_parent_supervises", has_own_handlers, |daemon| {
            let workers = daemon.workers(2);
            for _ in 0..3 {
                daemon.signal(Signal::SIGUSR1);
                daemon.wait_for("handled 10");
                daemon.signal(Signal::SIGUSR2);
                daemon.wait_for("handled 12");
                daemon.signal(Signal::SIGCHLD);
                daemon.wait_for("handled 17");
            }
            daemon.send(workers[0], Signal::SIGKILL);
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained "), 2, "{}", daemon.transcript());
            assert!(!daemon.said("handled 15") && daemon.said("state as before: true"), "{}", daemon.transcript());
        }),
        Scenario::threading("term_as_the_service_ends_is_never_lost", signalled_at_the_end, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said(&format!("{SERVICES} of {SERVICES} received")), "{}", daemon.transcript());
        }),
        Scenario::threading("an_ignored_hup_stays_ignored_with_threads", ignores_hup, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGHUP);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("Rolling restart"), "{}", daemon.transcript());
        }),
        Scenario::threading("child_of_a_worker_thread_receives_unblocked_signals", starts_a_program, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("it was ended by Some(15)"), "{}", daemon.transcript());
        }),
        Scenario::threading("threads_without_free_descriptors_fail_the_call", run_with_few_descriptors, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.count("refused Some(") >= 3, "{}", daemon.transcript());
            assert_eq!(daemon.count("refused "), daemon.count("Too many open files"), "{}", daemon.transcript());
            assert_eq!(daemon.count("as before: true"), 5, "{}", daemon.transcript());
        }),
        #[cfg(target_os = "linux")]
        Scenario::threading("short_lived_threads_leak_no_threads_or_descriptors", short_lived_threads, |daemon| {
            daemon.ends_with(1);
            assert!(daemon.said(&format!("report: gave up after {LIVES} restarts")), "{}", daemon.transcript());
            assert!(daemon.said("one thread is left, descriptors as before: true"), "{}", daemon.transcript());
        }),
        #[cfg(target_os = "linux")]
        Scenario::threading("error_for_an_unstartable_thread_names_pthread_create", run_with_few_threads, |daemon| {
            daemon.ends_with(0);
            let line = daemon.line("refused ");
            assert!(line.starts_with("refused Some(\"pthread_create\") for Some("), "{line}");
            assert!(line.contains(": pthread_create failed: Resource temporarily unavailable"), "{line}");
            assert_eq!(daemon.count("drained "), daemon.count("up "), "{}", daemon.transcript());
            assert!(
                daemon.said("one thread is left, state and descriptors as before: true"),
                "{}",
                daemon.transcript()
            );
        })
        .needs(super::not_root),
        #[cfg(target_os = "linux")]
        Scenario::threading("refused_thread_restart_is_tried_again", no_thread_at_first, |daemon| {
            let worker = daemon.worker();
            daemon.send(worker, Signal::SIGKILL);
            daemon.wait_for("log cannot start worker 0: pthread_create failed: Resource temporarily unavailable");
            assert_eq!(daemon.worker().id, 0);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(super::not_root),
        // Unix only: on Windows, an exiting thread holds a lock that every new thread needs. So there, a slow exit
        // delays all new threads.
        Scenario::threading("slow_thread_local_destructor_does_not_block_the_parent", has_slow_destructor, |daemon| {
            let workers = daemon.workers(2);
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("cleaning up");
            // After some more requests, the parent must have noticed the exit.
            for id in 1..6 {
                daemon.signal(Signal::SIGTTIN);
                assert_eq!(daemon.worker().id, id);
            }
            daemon.send(workers[1], Signal::SIGUSR2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained "), daemon.count("up "), "{}", daemon.transcript());
        }),
    ]
}

fn serve_and_drain(service: Prefork) -> Report {
    serve(service, |worker| {
        up(worker.id());
        drain(&worker);
    })
}

/// The program itself blocks SIGUSR2 and SIGHUP. SIGHUP is also a request that the parent handles.
fn prints_mask() -> Report {
    prepare();
    SigSet::from_iter([Signal::SIGUSR2, Signal::SIGHUP]).thread_block().expect("a mask");
    let before = state();
    let report = serve(Prefork::new().workers(2), |worker| {
        let blocked = SigSet::thread_get_mask().expect("the mask");
        let names: Vec<&str> = blocked.iter().map(Signal::as_str).collect();
        say(&format!("{} has blocked {}", worker.id(), names.join(" ")));
        up(worker.id());
        drain(&worker);
    });
    say(&format!("state as before: {}", before == state()));
    report
}

/// The program has four signal handlers. One of them is for SIGTERM, which taskfork handles while the service runs.
fn has_own_handlers() -> Report {
    extern "C" fn handled(number: libc::c_int) {
        let text: &[u8] = match number {
            libc::SIGUSR1 => b"handled 10\n",
            libc::SIGUSR2 => b"handled 12\n",
            libc::SIGCHLD => b"handled 17\n",
            _ => b"handled 15\n",
        };
        // SAFETY: write(2) is async-signal-safe, and the buffer is valid for its length.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    }
    prepare();
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD, Signal::SIGTERM] {
        let action = SigAction::new(SigHandler::Handler(handled), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler is async-signal-safe.
        unsafe { sigaction(signal, &action) }.expect("a handler");
    }
    let before = state();
    let report = serve_and_drain(Prefork::new().workers(2));
    say(&format!("state as before: {}", before == state()));
    report
}

const SERVICES: usize = 300;

/// Sends one SIGTERM at the end of each service, a little later each time. The earliest comes when the service drops
/// its event handler. At that time, nothing is left to stop. The program's own handler counts the signals, and the
/// program waits for each of them.
fn signalled_at_the_end() -> Report {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    static RECEIVED: AtomicUsize = AtomicUsize::new(0);
    struct EndOfService;
    impl Drop for EndOfService {
        fn drop(&mut self) {
            ENDED.fetch_add(1, Ordering::SeqCst);
        }
    }
    extern "C" fn received(_: libc::c_int) {
        RECEIVED.fetch_add(1, Ordering::SeqCst);
    }
    let wait_for = |count: &AtomicUsize, number| {
        while count.load(Ordering::SeqCst) < number {
            thread::yield_now();
        }
    };
    watch(60);
    let action = SigAction::new(SigHandler::Handler(received), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler is async-signal-safe.
    unsafe { sigaction(Signal::SIGTERM, &action) }.expect("a handler");
    let sender = thread::spawn(move || {
        for number in 1..=SERVICES {
            wait_for(&ENDED, number);
            (0..number % 100 * 10).for_each(|_| hint::spin_loop());
            kill(std::process::id(), Signal::SIGTERM);
            wait_for(&RECEIVED, number);
        }
    });
    let mut report = None;
    for number in 1..=SERVICES {
        let end_of_service = EndOfService;
        let service = Prefork::new().workers(1).on_event(move |_, _| {
            let _ = &end_of_service;
        });
        report = Some(service.run_threads(|_| Ok(())).expect("a service"));
        wait_for(&RECEIVED, number);
    }
    sender.join().expect("the sender");
    say(&format!("{} of {SERVICES} received", RECEIVED.load(Ordering::SeqCst)));
    report.expect("a report")
}

fn ignores_hup() -> Report {
    crate::os::ignore(Signal::SIGHUP);
    serve_and_drain(Prefork::new().workers(1))
}

/// The child inherits the thread's signal mask, and unblocks all signals before it executes the program.
fn starts_a_program() -> Report {
    serve(Prefork::new().workers(1), |_| {
        let mut command = Command::new("sleep");
        let unblock = || Ok(SigSet::empty().thread_set_mask()?);
        // SAFETY: pthread_sigmask(3) is async-signal-safe.
        let started = unsafe { command.arg("600").pre_exec(unblock) }.spawn();
        let mut child = started.expect("sleep(1)");
        nix::sys::signal::kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("a signal");
        say(&format!("it was ended by {:?}", child.wait().expect("its status").signal()));
    })
}

fn run_with_few_descriptors() -> Report {
    prepare();
    // The first three descriptors, 0 to 2, are open already.
    for limit in 3..8 {
        let before = (state(), own_descriptors());
        setrlimit(Resource::RLIMIT_NOFILE, limit, 1024).expect("a limit");
        let result = Prefork::new().workers(2).run_threads(|_| Ok(()));
        setrlimit(Resource::RLIMIT_NOFILE, 1024, 1024).expect("a limit");
        if let Err(error) = result {
            say(&format!("refused {:?}: {error:?}", error.call()));
        }
        say(&format!("as before: {}", before == (state(), own_descriptors())));
    }
    serve(Prefork::new().workers(1), |_| ())
}

#[cfg(target_os = "linux")]
use linux::*;

#[cfg(target_os = "linux")]
mod linux {
    use std::time::Duration;

    use taskfork::RestartPolicy;

    use super::super::limits::become_lone_user;
    use super::*;
    use crate::procfs::wait_until_alone;
    use crate::program::on_log;

    pub const LIVES: u32 = 300;
    const AT_ONCE: Duration = Duration::from_millis(1);

    /// The threads end in three ways: after `stop_fd`, by a failure, and after `ready`.
    pub fn short_lived_threads() -> Report {
        prepare();
        let before = own_descriptors();
        let service = Prefork::new()
            .workers(2)
            .max_restarts(LIVES)
            .restart_policy(RestartPolicy::Always)
            .restart_backoff(AT_ONCE, AT_ONCE);
        let report = serve(service, |worker| match worker.generation() % 3 {
            0 => drop(worker.stop_fd().expect("a descriptor")),
            1 => crate::program::fail(1),
            _ => worker.ready(),
        });
        wait_until_alone();
        say(&format!("one thread is left, descriptors as before: {}", before == own_descriptors()));
        report
    }

    pub fn run_with_few_threads() -> Report {
        prepare();
        become_lone_user(3);
        let before = (state(), own_descriptors());
        let service = Prefork::new().workers(5);
        let error = service
            .run_threads(|worker| {
                up(worker.id());
                drain(&worker);
                Ok(())
            })
            .expect_err("a refusal");
        say(&format!("refused {:?} for {:?}: {error:?}", error.call(), error.worker()));
        wait_until_alone();
        let is_as_before = before == (state(), own_descriptors());
        say(&format!("one thread is left, state and descriptors as before: {is_as_before}"));
        std::process::exit(0)
    }

    pub fn no_thread_at_first() -> Report {
        prepare();
        become_lone_user(20);
        on_log("restarting", || setrlimit(Resource::RLIMIT_NPROC, 0, 20).expect("a limit"));
        on_log("trying again", || setrlimit(Resource::RLIMIT_NPROC, 20, 20).expect("a limit"));
        serve_and_drain(Prefork::new().workers(1))
    }
}

/// The first thread of worker 1 has a thread-local value whose destructor waits for SIGUSR2.
fn has_slow_destructor() -> Report {
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            say("cleaning up");
            wait_for_signal("worker-1.0", Signal::SIGUSR2);
        }
    }
    thread_local! {
        static SLOW: Slow = const { Slow };
    }
    serve(Prefork::new().workers(2), |worker| {
        up(worker.id());
        if (worker.id(), worker.generation()) == (1, 0) {
            SLOW.with(|_| ());
        }
        drain(&worker);
    })
}
