//! What an operator does to a running service.

use std::fs;

use nix::sys::signal::Signal;

use super::stops::three_that_drain;
use crate::Scenario;
use crate::program::{descriptors, drained, fork, idle, say, start_count, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "hup_replaces_one_worker_after_the_other_and_nobody_before_his_replacement_is_up",
            two_that_drain,
            |daemon| {
                let old = daemon.workers(2);
                daemon.signal(Signal::SIGHUP);
                for old in old {
                    let new = daemon.worker();
                    assert_eq!(new.id, old.id);
                    assert!(!daemon.said(&format!("drained {}", old.id)));
                    daemon.wait_for(&format!("child {} (pid {}) exited normally", old.id, old.pid));
                }
                daemon.wait_for("log Rolling restart done");
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(!daemon.said("restarting"));
            },
        ),
        Scenario::new("a_replacement_that_fails_leaves_the_old_worker_in_its_place", second_fails, |daemon| {
            let old = daemon.worker();
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log Rolling restart aborted: the replacement of child 0 failed");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("up 0"), 1);
            assert!(daemon.said(&format!("child 0 (pid {}) exited normally", old.pid)));
        }),
        Scenario::new("ttin_adds_a_worker_and_ttou_retires_the_highest", three_that_drain, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGTTIN);
            assert_eq!(daemon.worker().id, 3);
            assert!(daemon.said("log Scaled to 4 processes"));
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("drained 3");
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("drained 2");
            daemon.signal(Signal::SIGTTIN);
            assert_eq!(daemon.worker().id, 2);
        }),
        Scenario::new("usr1_is_passed_on_to_every_worker", three_that_reopen, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGUSR1);
            for _ in 0..3 {
                daemon.wait_for("reopened");
            }
        }),
        Scenario::new(
            "a_worker_that_is_stopped_and_continued_is_none_of_the_parents_business",
            three_that_drain,
            |daemon| {
                let workers = daemon.workers(3);
                crate::daemon::kill(workers[0].pid, Signal::SIGSTOP);
                crate::daemon::kill(workers[0].pid, Signal::SIGCONT);
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(!daemon.said("restarting"));
            },
        ),
        Scenario::new("the_parents_descriptors_do_not_grow_with_the_workers", sixty_four_idle, |daemon| {
            let line = daemon.wait_for("descriptors before: ");
            let before: usize = line.rsplit(' ').next().expect("a number").parse().expect("a number");
            daemon.workers(64);
            let now = descriptors(daemon.pid());
            // The epoll, the signals, the counter of kills; elsewhere two pipes for the latter.
            assert!(now.len() <= before + 6, "{before} before, now {now:?}");
        }),
        Scenario::new("an_idle_parent_has_nothing_to_wake_up_for", three_that_drain, |daemon| {
            daemon.workers(3);
            let asleep = |pid| {
                let call = fs::read_to_string(format!("/proc/{pid}/syscall")).expect("its system call");
                let arguments: Vec<_> = call.split(' ').map(str::to_owned).collect();
                (arguments.first().cloned(), arguments.get(4).cloned())
            };
            // epoll_wait or epoll_pwait, whose fourth argument is the timeout: -1.
            let wanted = [libc::SYS_epoll_wait, libc::SYS_epoll_pwait].map(|number| number.to_string());
            loop {
                let (call, timeout) = asleep(daemon.pid());
                if call.is_some_and(|call| wanted.contains(&call)) {
                    assert_eq!(timeout.as_deref(), Some("0xffffffff"));
                    break;
                }
                std::thread::yield_now();
            }
        }),
    ]
}

fn two_that_drain() {
    drained(fork(2, 100));
}

fn second_fails() {
    let starts = start_count();
    let id = fork(1, 100);
    if starts() == 2 {
        std::process::exit(1);
    }
    drained(id);
}

fn three_that_reopen() {
    let id = fork(3, 100);
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGUSR1]).expect("a handler");
    up(id);
    for _ in signals.forever() {
        say(&format!("reopened {id}"));
    }
}

fn sixty_four_idle() {
    say(&format!("descriptors before: {}", descriptors(std::process::id()).len()));
    up(fork(64, 100));
    idle();
}
