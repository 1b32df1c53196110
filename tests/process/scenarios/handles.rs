//! Tests of [`Handle`]: the program controls its service from `on_event`, and from other threads of the parent.

use std::sync::{OnceLock, mpsc};
use std::thread;

use taskfork::{Event, Handle, Prefork, Report};

use crate::Scenario;
use crate::os::{Gate, Signal};
use crate::program::{EVER, drain, has_threads, say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("handle_rolls_and_stops_from_on_event", rolls_and_stops, |daemon| {
            daemon.workers(4);
            daemon.ends_with(0);
            assert_eq!(daemon.count("log Rolling restart done"), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("drained "), 4, "{}", daemon.transcript());
            assert!(daemon.said("report: stopped"), "{}", daemon.transcript());
            assert!(!daemon.said("killing"), "further calls of stop() kill no worker:\n{}", daemon.transcript());
        }),
        Scenario::reporting("handle_scales_to_a_number_from_on_event", scales_up_and_down, |daemon| {
            daemon.ends_with(0);
            for line in ["log Scaled to 7 workers", "log Scaled to 1 workers", "log Scaled to 8 workers"] {
                assert_eq!(daemon.count(line), 1, "{line}:\n{}", daemon.transcript());
            }
            assert_eq!(daemon.count("up "), 14, "{}", daemon.transcript());
        }),
        Scenario::reporting("handle_replaces_one_worker_new_process_first", replaces_one, |daemon| {
            let old = daemon.workers(3);
            let new = daemon.worker();
            assert_eq!(new.id, 1);
            daemon.ends_with(0);
            let replacing = format!("log {} was requested to be replaced, replacing it", old[1]);
            assert_eq!(daemon.count(&replacing), 1, "{}", daemon.transcript());
            assert!(daemon.said_before(&format!("log {new} is ready"), "drained 1"), "{}", daemon.transcript());
            assert_eq!(daemon.count("log Worker 7 is not replaced, because there is no such worker"), 1);
            assert_eq!(daemon.count("up "), 4, "{}", daemon.transcript());
            assert!(daemon.said("in all: 0 restarts"), "{}", daemon.transcript());
        }),
        Scenario::reporting("one_sigterm_after_handle_stop_kills_no_worker", stops_slowly, |daemon| {
            daemon.worker();
            daemon.wait_for("log Stopping 1 processes");
            daemon.signal(Signal::SIGTERM);
            Gate::of(daemon.scratch()).open(1);
            daemon.ends_with(0);
            assert!(daemon.said("drained 0") && !daemon.said("killing"), "{}", daemon.transcript());
        }),
        Scenario::reporting("handle_wakes_the_parent_from_another_thread", controlled_by_a_thread, |daemon| {
            daemon.workers(2);
            Gate::of(daemon.scratch()).open(1);
            daemon.workers(2);
            daemon.ends_with(0);
            assert_eq!(daemon.count("log Rolling restart done"), 1, "{}", daemon.transcript());
            assert!(daemon.said("log Scaled to 3 workers"), "{}", daemon.transcript());
            assert_eq!(daemon.count("drained "), 5, "{}", daemon.transcript());
            assert!(daemon.said("after the end: Handle"), "{}", daemon.transcript());
        })
        .for_parents_with_threads(),
        Scenario::threading("worker_thread_can_use_a_handle", controlled_by_a_worker, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("drained 0") && daemon.said("report: stopped"), "{}", daemon.transcript());
        }),
        Scenario::threading("refused_upgrade_is_the_last_one_in_the_status", upgrades_threads, |daemon| {
            daemon.ends_with(0);
            let reason = "the workers are threads, which end with the old program";
            let last = format!("last: running, Some(\"aborted: {reason}");
            assert!(daemon.said("first: None") && daemon.said(&last), "{}", daemon.transcript());
            assert_eq!(daemon.count(&format!("log Upgrade aborted: {reason}")), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("up "), 1, "nothing has changed:\n{}", daemon.transcript());
        }),
        Scenario::reporting("handle_of_an_ended_service_does_not_stop_the_next", outlives_its_service, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("first: stopped");
            daemon.worker();
            daemon.signal(Signal::SIGTTIN);
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained "), 3, "{}", daemon.transcript());
        }),
    ]
}

fn serve_ready(service: Prefork) -> Report {
    serve(service.ready_timeout(EVER), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.ready();
        drain(&worker);
    })
}

/// Stops the service after each event from the end of the rolling restart on, and so also during the stop.
fn rolls_and_stops() -> Report {
    let mut ready = 0;
    let mut is_rolled = false;
    serve_ready(Prefork::new().workers(2).on_event(move |event, handle| {
        ready += usize::from(matches!(event, Event::Ready { .. }));
        is_rolled |= matches!(event, Event::RollingRestartFinished { .. });
        if ready == 2 && matches!(event, Event::Ready { .. }) {
            handle.roll();
        } else if is_rolled {
            handle.stop();
        }
    }))
}

/// Scales from 2 workers to 7, to 1, and to the maximum of 8. Then stops the service. Of several calls, the last one
/// counts.
fn scales_up_and_down() -> Report {
    let mut ready = 0;
    let mut exited = 0;
    serve_ready(Prefork::new().workers(2).max_workers(8).on_event(move |event, handle| {
        ready += usize::from(matches!(event, Event::Ready { .. }));
        exited += usize::from(matches!(event, Event::Exited { .. }));
        match event {
            Event::Ready { .. } if ready == 2 => {
                (0..=7).for_each(|workers| handle.scale(workers));
            }
            Event::Ready { .. } if ready == 7 => handle.scale(0),
            Event::Exited { .. } if exited == 6 => handle.scale(usize::MAX),
            Event::Ready { .. } if ready == 14 => handle.stop(),
            _ => {}
        }
    }))
}

fn replaces_one() -> Report {
    let mut ready = 0;
    let service = Prefork::new().workers(3).max_restarts(0).on_event(move |event, handle| {
        ready += usize::from(matches!(event, Event::Ready { .. }));
        match event {
            Event::Ready { .. } if ready == 3 => {
                handle.replace(1);
                handle.replace(1);
                handle.replace(7);
            }
            Event::Exited { process, .. } if (process.id, process.generation) == (1, 0) => handle.stop(),
            _ => {}
        }
    });
    let report = serve_ready(service);
    say(&format!("in all: {} restarts", report.restarts()));
    report
}

/// The worker exits only after the test has opened the gate.
fn stops_slowly() -> Report {
    let gate = Gate::new();
    let service = Prefork::new().workers(1).ready_timeout(EVER).on_event(|event, handle| {
        if matches!(event, Event::Ready { .. }) {
            handle.stop();
        }
    });
    serve(service, move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.ready();
        gate.pass();
        drain(&worker);
    })
}

/// Sends a handle to another thread, which uses it when the parent waits for events without a deadline.
fn controlled_by_a_thread() -> Report {
    let (sender, receiver) = mpsc::channel::<Handle>();
    let (done, is_done) = mpsc::channel();
    let gate = Gate::new();
    let controller = thread::spawn(move || {
        let Ok(handle) = receiver.recv() else { return };
        gate.pass();
        handle.roll();
        let _ = is_done.recv();
        handle.scale(3);
        let _ = is_done.recv();
        handle.stop();
        while is_done.recv().is_ok() {}
        handle.stop();
        say(&format!("after the end: {handle:?}"));
    });
    let report = serve_ready(Prefork::new().workers(2).on_event(move |event, handle| match event {
        Event::Starting { .. } => sender.send(handle.clone()).expect("the thread"),
        Event::RollingRestartFinished { .. } => done.send(()).expect("the thread"),
        Event::Ready { process } if process.id == 2 => done.send(()).expect("the thread"),
        _ => {}
    }));
    controller.join().expect("the thread");
    report
}

pub static HANDLE: OnceLock<Handle> = OnceLock::new();

pub fn keep_handle(_: &Event, handle: &Handle) {
    HANDLE.get_or_init(|| handle.clone());
}

fn controlled_by_a_worker() -> Report {
    serve(Prefork::new().workers(1).on_event(keep_handle), |worker| {
        assert!(has_threads());
        up(worker.id());
        HANDLE.get().expect("a handle").stop();
        drain(&worker);
    })
}

/// Stops the service when the upgrade has been refused.
fn upgrades_threads() -> Report {
    serve_ready(Prefork::new().workers(1).on_event(|event, handle| {
        let status = handle.status().expect("a status");
        let last = status.last_upgrade().map(ToString::to_string);
        match event {
            Event::Ready { .. } => {
                say(&format!("first: {last:?}"));
                handle.upgrade();
            }
            Event::UpgradeAborted { .. } => {
                say(&format!("last: {}, {last:?}", status.state()));
                handle.stop();
            }
            _ => {}
        }
    }))
}

fn outlives_its_service() -> Report {
    let first = serve_ready(Prefork::new().workers(1).on_event(keep_handle));
    say(&format!("first: {}", first.reason()));
    // A spawned worker runs this too, but has no handle.
    if let Some(handle) = HANDLE.get() {
        handle.roll();
        handle.stop();
    }
    serve_ready(Prefork::new().workers(1).on_event(|_, _| {
        if let Some(handle) = HANDLE.get() {
            handle.stop();
        }
    }))
}
