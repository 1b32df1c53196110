//! Events that happen before a deadline, but that the parent reads only after the deadline. Linux only.

use std::os::unix::process::parent_id;
use std::thread;
use std::time::Duration;

use taskfork::{Event, Prefork, Report};

use super::limits::timeout_of_sleep;
use super::privileges::{USER, lacks_users};
use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Gate, KILLED, Signal, idle, ignore};
use crate::procfs::{has_pending, is_stopped};
use crate::program::{say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("exit_while_parent_is_paused_is_not_late", exits_past_the_deadline, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("the deadline has passed");
            while !has_pending(daemon.pid(), Signal::SIGCHLD as i32) {
                thread::yield_now();
            }
            daemon.signal(Signal::SIGCONT);
            daemon.ends_with(0);
            assert!(!daemon.said("did not stop in time"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("ready_while_parent_is_paused_is_not_late", ready_past_the_deadline, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGCONT);
            daemon.wait_for(" is ready");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("not ready in time"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("ready_without_a_doorbell_is_found_at_the_deadline", ready_without_doorbell, |daemon| {
            daemon.wait_for(" is ready");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("not ready in time"), "{}", daemon.transcript());
        })
        .for_processes(),
        // Without the doorbell, the worker sends SIGCHLD instead. The kernel refuses this signal here, because the
        // worker runs as another user.
        Scenario::reporting("ready_without_any_signal_is_found_at_the_deadline", ready_as_another_user, |daemon| {
            daemon.wait_for(" is ready");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("not ready in time"), "{}", daemon.transcript());
        })
        .for_processes()
        .needs(lacks_users),
        Scenario::reporting("an_interrupted_parent_extends_ready_timeout", added_are_never_ready, |daemon| {
            daemon.wait_for("is ready");
            // The parent is interrupted between the starts of two workers. So the first of them gets more time, and is
            // late last. If the parent was not waiting at that moment, or was delayed for another reason, the test
            // tries again with two new workers.
            for round in 1.. {
                daemon.signal(Signal::SIGTTIN);
                daemon.worker();
                timeout_of_sleep(daemon.pid());
                daemon.signal(Signal::SIGSTOP);
                while !is_stopped(daemon.pid()) {
                    thread::yield_now();
                }
                daemon.signal(Signal::SIGCONT);
                daemon.signal(Signal::SIGTTIN);
                let second = daemon.worker();
                let late = [(); 2].map(|()| daemon.wait_for("is not ready in time"));
                daemon.wait_for_times(KILLED, 2 * round);
                if late[0].contains(&second.to_string()) {
                    break;
                }
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::reporting("a_pause_during_a_drain_extends_its_deadline", drains_until_allowed, |daemon| {
            let workers = daemon.workers(2).into_iter().map(|worker| worker.pid);
            let all: Vec<u32> = [daemon.pid()].into_iter().chain(workers).collect();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for_times("draining", 2);
            // The parent is stopped first, while it waits for events. So it notices the pause, however late it is.
            timeout_of_sleep(daemon.pid());
            for &pid in &all {
                kill(pid, Signal::SIGSTOP);
                while !is_stopped(pid) {
                    thread::yield_now();
                }
            }
            // The deadline passes during the pause, because a later one with the same time passes.
            let mut later = daemon.another();
            later.workers(2);
            later.signal(Signal::SIGTERM);
            later.wait_for("did not stop in time");
            for &pid in &all {
                kill(pid, Signal::SIGCONT);
            }
            // The parent sleeps again only after it has handled the deadline.
            timeout_of_sleep(daemon.pid());
            Gate::of(daemon.scratch()).open(2);
            daemon.ends_with(0);
            assert!(!daemon.said("did not stop in time"), "{}", daemon.transcript());
            assert_eq!(daemon.count("drained "), 2, "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("an_exit_without_sigchld_is_found_at_the_deadline", exits_without_sigchld, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("did not stop in time"), "{}", daemon.transcript());
        })
        .for_processes(),
    ]
}

/// The deadline is long enough that the worker can stop the parent by SIGSTOP before the deadline.
const DEADLINE: Duration = Duration::from_secs(2);

/// The deadline is long enough that the test can stop all processes by SIGSTOP before the deadline.
const LONG_DEADLINE: Duration = Duration::from_secs(5);

fn drains_until_allowed() -> Report {
    let gate = Gate::new();
    serve(Prefork::new().workers(2).graceful_timeout(LONG_DEADLINE), move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.wait_for_stop(None);
        say("draining");
        gate.pass();
        say(&format!("drained {}", worker.id()));
    })
}

fn pause_parent_past_the_deadline() {
    kill(parent_id(), Signal::SIGSTOP);
    thread::sleep(DEADLINE + Duration::from_millis(100));
    say("the deadline has passed");
}

fn exits_past_the_deadline() -> Report {
    serve(Prefork::new().workers(1).graceful_timeout(DEADLINE), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.wait_for_stop(None);
        pause_parent_past_the_deadline();
    })
}

fn ready_past_the_deadline() -> Report {
    serve(Prefork::new().workers(1).ready_timeout(DEADLINE), |worker| {
        pause_parent_past_the_deadline();
        worker.ready();
        up(worker.id());
        idle()
    })
}

/// The worker closes all descriptors that taskfork uses, including the one that wakes the parent after `ready`.
fn ready_without_doorbell() -> Report {
    close_descriptors_before_ready(Prefork::new())
}

fn ready_as_another_user() -> Report {
    close_descriptors_before_ready(Prefork::new().user(USER))
}

fn close_descriptors_before_ready(service: Prefork) -> Report {
    serve(service.workers(1).ready_timeout(Duration::from_secs(1)), |worker| {
        for fd in 3..256 {
            // SAFETY: close(2) takes an integer. This process uses none of these descriptors again.
            unsafe { libc::close(fd) };
        }
        worker.ready();
        idle()
    })
}

/// Worker 0 becomes ready. Workers that are added later never become ready. The parent also extends the timeout of a
/// worker if it is late itself by a tenth of the timeout. The timeout is so long that this is rare.
fn added_are_never_ready() -> Report {
    serve(Prefork::new().workers(1).ready_timeout(Duration::from_secs(2)), |worker| {
        match worker.id() {
            0 => worker.ready(),
            id => up(id),
        }
        idle();
    })
}

/// The program ignores SIGCHLD while it has workers. Then the kernel reaps the workers and sends no SIGCHLD.
fn exits_without_sigchld() -> Report {
    let service = Prefork::new().workers(1).graceful_timeout(Duration::from_secs(1)).on_event(|event, _| {
        if matches!(event, Event::Started { .. }) {
            ignore(Signal::SIGCHLD);
        }
    });
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.wait_for_stop(None);
    })
}
