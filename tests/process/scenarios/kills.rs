//! SIGTERM and SIGINT that an operator sends to one worker (`kill PID`), and not to the parent.

use nix::sys::signal::{SigSet, killpg};
use nix::unistd::Pid;
use taskfork::{Event, Prefork, Report};

use crate::Scenario;
use crate::daemon::{Daemon, kill};
use crate::os::{Signal, raise};
use crate::program::{EVER, drain, say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("terminated_worker_is_replaced_at_no_cost", four, |daemon| {
            is_replaced(daemon, Signal::SIGTERM);
        })
        .for_processes(),
        Scenario::reporting("interrupted_worker_is_replaced_at_no_cost", four, |daemon| {
            is_replaced(daemon, Signal::SIGINT);
        })
        .for_processes(),
        Scenario::reporting("term_to_the_process_group_stops_the_service", four, |daemon| {
            daemon.workers(4);
            let group = Pid::from_raw(daemon.pid() as i32);
            killpg(group, Signal::SIGTERM).expect("the group");
            ends_without_restart(daemon, 4);
        })
        .for_processes(),
        Scenario::reporting("kill_of_a_draining_worker_changes_nothing", drains_until_usr2, |daemon| {
            let old = daemon.worker();
            daemon.signal(Signal::SIGHUP);
            let new = daemon.worker();
            daemon.wait_for("drains");
            kill(old.pid, Signal::SIGTERM);
            kill(old.pid, Signal::SIGUSR2);
            daemon.wait_for_times("log Rolling restart done", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("drains");
            kill(new.pid, Signal::SIGUSR2);
            ends_without_restart(daemon, 2);
        })
        .for_processes(),
        Scenario::reporting("kill_of_a_stopping_worker_changes_nothing", drains_until_usr2, |daemon| {
            let worker = daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("drains");
            kill(worker.pid, Signal::SIGTERM);
            kill(worker.pid, Signal::SIGUSR2);
            ends_without_restart(daemon, 1);
        })
        .for_processes(),
        Scenario::reporting("worker_that_terminates_itself_is_done", terminates_itself, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("drained 0") && daemon.said("report: finished"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("term_from_the_parents_program_is_not_replaced", terminated_by_the_parent, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("drained 0") && daemon.said("report: finished"), "{}", daemon.transcript());
        })
        .for_processes(),
    ]
}

/// Kills four workers, one after the other, and then one of them again. The service has no restart to spare.
fn is_replaced(daemon: &mut Daemon, signal: Signal) {
    let mut workers = daemon.workers(4);
    for id in [0, 1, 2, 3, 3, 3] {
        let worker = workers[id];
        kill(worker.pid, signal);
        daemon.wait_for(&format!("log {worker} exited normally after a stop request from another process, restarting"));
        let replacement = daemon.worker();
        assert_eq!(replacement.id, worker.id);
        workers[id] = replacement;
    }
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
    assert_eq!(daemon.count("drained "), 10, "{}", daemon.transcript());
    assert!(daemon.said("restarts 0"), "{}", daemon.transcript());
}

fn ends_without_restart(daemon: &mut Daemon, starts: usize) {
    daemon.ends_with(0);
    assert_eq!(daemon.count("up "), starts, "{}", daemon.transcript());
    assert!(!daemon.said("restarting"), "{}", daemon.transcript());
}

fn four() -> Report {
    let report = serve(Prefork::new().workers(4).max_restarts(0), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        drain(&worker);
    });
    say(&format!("restarts {}", report.restarts()));
    report
}

/// After a stop request, a worker works until it gets SIGUSR2.
fn drains_until_usr2() -> Report {
    serve(Prefork::new().workers(1).max_restarts(0), move |worker| {
        worker.enable_graceful_stop();
        let end = SigSet::from_iter([Signal::SIGUSR2]);
        end.thread_block().expect("a mask");
        up(worker.id());
        assert!(worker.wait_for_stop(None));
        say("drains");
        // A SIGTERM that was sent before SIGUSR2 runs its handler before this call returns.
        end.wait().expect("a signal");
    })
}

fn terminates_itself() -> Report {
    serve(Prefork::new().workers(1), |worker| {
        worker.enable_graceful_stop();
        raise(Signal::SIGTERM);
        drain(&worker);
    })
}

/// The program's own code in the parent, here the closure of `on_event`, sends SIGTERM to a worker.
fn terminated_by_the_parent() -> Report {
    let service = Prefork::new().workers(1).ready_timeout(EVER).on_event(|event, _| {
        if let Event::Ready { process } = event {
            kill(process.pid.expect("a process"), Signal::SIGTERM);
        }
    });
    serve(service, |worker| {
        worker.enable_graceful_stop();
        worker.ready();
        drain(&worker);
    })
}
