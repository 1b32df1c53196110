//! Operations on a running service: rolling restart, scaling, and SIGSTOP for a worker.

use taskfork::{Event, Prefork, Report};

use super::stops::three_that_drain;
use crate::Scenario;
use crate::os::{Signal, fork_drained};
use crate::program::{EVER, drain, fail, say, serve, start_count, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("hup_replaces_one_worker_after_the_other", two_that_drain, |daemon| {
            let old = daemon.workers(2);
            daemon.signal(Signal::SIGHUP);
            for (old, new) in old.into_iter().zip(daemon.workers(2)) {
                assert_eq!(new.id, old.id);
                daemon.wait_for_times(&format!("{old} exited normally"), 1);
                let came = format!("{new} started");
                let went = format!("drained {}", old.id);
                assert!(daemon.said_before(&came, &went), "{}", daemon.transcript());
            }
            daemon.wait_for_times("log Rolling restart done", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("restarting"));
        })
        .for_threads_too(),
        Scenario::new("a_failed_replacement_keeps_the_old_worker", second_fails, |daemon| {
            let old = daemon.worker();
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log Rolling restart aborted: the replacement of worker 0 failed");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("up 0"), 1);
            assert!(daemon.said(&format!("{old} exited normally")));
        })
        .for_threads_too(),
        Scenario::new("ttin_adds_a_worker_and_ttou_removes_one", three_that_drain, |daemon| {
            daemon.workers(3);
            daemon.signal(Signal::SIGTTIN);
            assert_eq!(daemon.worker().id, 3);
            daemon.wait_for_times("log Scaled to 4 workers", 1);
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("drained 3");
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("drained 2");
            daemon.signal(Signal::SIGTTIN);
            assert_eq!(daemon.worker().id, 2);
        })
        .for_threads_too(),
        Scenario::reporting("requests_to_scale_beyond_a_limit_are_logged", one_of_one, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTTIN);
            daemon.wait_for("log Not scaled to 2 workers, because at most 1 are allowed");
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("log Not scaled to 0 workers, because one worker always stays");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("event ScalingLimited 2") && daemon.said("event ScalingLimited 0"));
        }),
        Scenario::new("a_stopped_and_continued_worker_is_left_alone", three_that_drain, |daemon| {
            let workers = daemon.workers(3);
            crate::daemon::kill(workers[0].pid, Signal::SIGSTOP);
            crate::daemon::kill(workers[0].pid, Signal::SIGCONT);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.said("restarting"));
        }),
    ]
}

fn two_that_drain() {
    fork_drained(2, || ());
}

fn one_of_one() -> Report {
    let service = Prefork::new().workers(1).max_workers(1).on_event(|event, _| {
        if let Event::ScalingLimited { asked, .. } = event {
            say(&format!("event ScalingLimited {asked}"));
        }
    });
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

/// The second process of the worker fails before it is ready. The ready timeout never expires, so only the failure can
/// end the rolling restart.
fn second_fails() {
    let starts = start_count();
    let report = serve(Prefork::new().workers(1).ready_timeout(EVER), move |worker| {
        assert!(!worker.stop_requested());
        if starts() == 2 {
            fail(1);
        }
        up(worker.id());
        worker.ready();
        drain(&worker);
    });
    assert!(report.is_success());
}
