//! The settings and calls of `Prefork`, and the methods of `Worker`.

use std::fmt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use taskfork::{Event, Prefork, Report, RestartPolicy, WorkResult, Worker};

use crate::Scenario;
use crate::os::{Gate, Signal, raise};
use crate::program::{drain, fail, prepare, run, say, serve, status_of, up, up_until_signal};

const SECOND_IS_REFUSED: &str = "second: this process supervises workers already, and can do so only once at a time";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("stop_all_stops_the_service_once", all_stop_all, |daemon| {
            for worker in daemon.workers(4) {
                daemon.send(worker, Signal::SIGUSR2);
            }
            daemon.ends_with(0);
            assert_eq!(daemon.count("log Stopping "), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("drained "), 4);
            assert!(daemon.said("report: stopped, as child "));
        }),
        Scenario::reporting("a_worker_may_exit_right_after_stop_all", stops_all_and_ends, |daemon| {
            let workers = daemon.workers(2);
            daemon.send(workers[1], Signal::SIGUSR2);
            daemon.ends_with(0);
            assert!(daemon.said("drained 0"), "{}", daemon.transcript());
            assert!(daemon.said("report: stopped, as child 1 ("), "{}", daemon.transcript());
        }),
        Scenario::reporting("the_last_worker_can_stop_all", stops_all_alone, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped, as child 0 ("), "{}", daemon.transcript());
            assert!(!daemon.said("restarting"));
        }),
        Scenario::reporting("stop_pool_stops_a_service_with_one_pool", stops_pool, |daemon| {
            let workers = daemon.workers(2);
            daemon.send(workers[1], Signal::SIGUSR2);
            daemon.ends_with(0);
            assert_eq!(daemon.count("log Stopping "), 1, "{}", daemon.transcript());
            assert_eq!(daemon.count("drained "), 2, "{}", daemon.transcript());
            assert!(daemon.said("report: stopped, as child 1 ("), "{}", daemon.transcript());
        }),
        Scenario::reporting("ids_stay_below_max_workers", with_contexts, |daemon| {
            daemon.workers(2);
            for _ in 0..5 {
                daemon.signal(Signal::SIGTTIN);
            }
            assert_eq!(daemon.worker().id, 2);
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("log Scaled to 2 workers");
            daemon.signal(Signal::SIGTTIN);
            daemon.signal(Signal::SIGTTIN);
            assert_eq!(daemon.worker().id, 2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for (context, times) in [("zero", 1), ("one", 1), ("two", 2)] {
                assert_eq!(daemon.count(&format!("context {context}")), times, "{}", daemon.transcript());
            }
        }),
        Scenario::reporting("a_worker_knows_its_generation_and_worker_count", prints_itself, |daemon| {
            let workers = daemon.workers(2);
            daemon.wait_for_times("0 is generation 0 of 2", 1);
            daemon.wait_for_times("1 is generation 0 of 2", 1);
            daemon.signal(Signal::SIGTTIN);
            daemon.wait_for("2 is generation 0 of 3");
            daemon.send(workers[1], Signal::SIGKILL);
            daemon.wait_for("1 is generation 1 of 3");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("with_always_a_normal_exit_costs_no_restart", ends_normally_always, |daemon| {
            daemon.workers(4);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("exited normally, restarting"), 3);
            assert!(daemon.said("report: stopped"), "{}", daemon.transcript());
        }),
        Scenario::reporting("with_never_a_failure_is_not_restarted", fails_once_and_never, |daemon| {
            daemon.ends_with(1);
            assert!(!daemon.said("restarting"));
            assert_eq!(daemon.count("up "), 2);
            assert!(daemon.said("report: finished"));
        }),
        Scenario::reporting("restart_window_forgets_old_restarts", slow_failures, |daemon| {
            daemon.workers(6);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("fatal_exit_code_stops_the_service", exits_fatally, |daemon| {
            daemon.ends_with(3);
            assert!(daemon.said("report: failed to start: child 1 ("), "{}", daemon.transcript());
            assert!(daemon.said(&daemon.failed(78)));
            assert!(daemon.said("drained 0"));
            assert!(!daemon.said("restarting"));
        }),
        Scenario::reporting("restart_backoff_sets_the_delay", long_backoff, |daemon| {
            let failed = daemon.failed(1);
            daemon.wait_for(&format!("{failed}, restarting"));
            let line = daemon.wait_for(&format!("{failed}, restarting in "));
            let delay: u64 = line.split(' ').rev().nth(1).expect("a delay").parse().expect("a number");
            assert!((250_000..=500_000).contains(&delay), "{line}");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("graceful_timeout_limits_a_graceful_stop", ignores_stop, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("did not stop in time"));
        }),
        Scenario::reporting("run_exits_with_the_status_of_its_result", runs_three, |daemon| {
            daemon.ends_with(1);
            assert!(daemon.said(": it is all wrong: no hope"), "{}", daemon.transcript());
            assert!(daemon.said("it is too much"), "panics are printed as usual");
            for end in ["child 0", "child 1", "child 2"].iter().zip(["normally", "with status 1", "with status 101"]) {
                let is_it = |line: &&str| line.contains(end.0) && line.contains(end.1);
                assert_eq!(daemon.transcript().lines().filter(is_it).count(), 1, "{}", daemon.transcript());
            }
            assert_eq!(daemon.count("the caller's value is dropped"), 1, "only the parent drops it");
            assert!(daemon.said("the worker's value is dropped"));
        }),
        Scenario::new("invalid_settings_are_refused_before_any_start", has_invalid_settings, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("refused max_workers: 2 is below the 3 workers asked for"), "{}", daemon.transcript());
            assert!(!daemon.said("log "), "nothing was started");
        }),
        Scenario::new("a_worker_cannot_start_a_service", nested, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("second: this process is worker 0 already"), "{}", daemon.transcript());
        })
        .for_threads_too(),
        Scenario::reporting("a_second_service_can_follow_the_first", twice, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("first: stopped");
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped"));
        }),
        Scenario::reporting("a_second_service_is_refused_without_effect", two_at_a_time, |daemon| {
            daemon.worker();
            daemon.wait_for_times("second: ", 1);
            assert_eq!(daemon.line("second: "), SECOND_IS_REFUSED);
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for_times("log Rolling restart done", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("first: stopped");
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped"), "{}", daemon.transcript());
            assert_eq!(daemon.count("log Starting "), 2, "the second service has started nothing");
        })
        .for_parents_with_threads(),
        Scenario::reporting("on_event_cannot_start_a_service", one_in_another, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.line("second: "), SECOND_IS_REFUSED);
        }),
        Scenario::reporting("a_late_stop_request_does_not_kill_the_parent", stopped_late, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped"));
        }),
        Scenario::reporting("term_after_stop_all_does_not_kill_the_parent", stops_all_late, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped, as child 0"));
        }),
        Scenario::reporting("panicking_destructors_do_not_change_the_exit_status", panics_twice, |daemon| {
            daemon.ends_with(1);
            assert_eq!(daemon.count("exited with status 101"), 1, "{}", daemon.transcript());
            assert!(
                daemon.transcript().lines().any(|line| line.contains("child 1") && line.ends_with("with status 1"))
            );
            assert_eq!(daemon.count("the caller's value is dropped"), 1, "only the parent drops it");
        }),
    ]
}

fn all_stop_all() -> Report {
    serve(Prefork::new().workers(4), |worker| {
        assert!(!worker.stop_requested());
        up_until_signal(worker.id(), Signal::SIGUSR2);
        for _ in 0..100 {
            worker.stop_all();
        }
        drain(&worker);
    })
}

fn stops_all_and_ends() -> Report {
    serve(Prefork::new().workers(2), |worker| {
        assert!(!worker.stop_requested());
        if worker.id() == 0 {
            up(0);
            return drain(&worker);
        }
        up_until_signal(1, Signal::SIGUSR2);
        worker.stop_all();
    })
}

fn stops_all_alone() -> Report {
    serve(Prefork::new().workers(1).restart_policy(RestartPolicy::Always), |worker| worker.stop_all())
}

fn stops_pool() -> Report {
    serve(Prefork::new().workers(2), |worker| {
        assert!(!worker.stop_requested());
        assert_eq!(worker.pool(), "");
        if worker.id() == 0 {
            up(0);
        } else {
            up_until_signal(1, Signal::SIGUSR2);
            worker.stop_pool();
        }
        drain(&worker);
    })
}

fn with_contexts() -> Report {
    let contexts = ["zero", "one", "two"];
    serve(Prefork::new().workers(2).max_workers(contexts.len()), move |worker| {
        assert!(!worker.stop_requested());
        say(&format!("context {}", contexts[worker.id()]));
        up(worker.id());
        drain(&worker);
    })
}

fn prints_itself() -> Report {
    serve(Prefork::new().workers(2), |worker| {
        assert_eq!(taskfork::task_id(), Some(worker.id()));
        up(worker.id());
        say(&format!("{} is generation {} of {}", worker.id(), worker.generation(), worker.worker_count()));
        drain(&worker);
    })
}

const AT_ONCE: Duration = Duration::from_millis(1);

fn ends_normally_always() -> Report {
    serve(
        Prefork::new()
            .workers(1)
            .restart_policy(RestartPolicy::Always)
            .max_restarts(0)
            .restart_backoff(AT_ONCE, AT_ONCE),
        |worker| {
            up(worker.id());
            if worker.generation() == 3 {
                drain(&worker);
            }
        },
    )
}

fn fails_once_and_never() -> Report {
    serve(Prefork::new().workers(2).restart_policy(RestartPolicy::Never), |worker| {
        up(worker.id());
        if worker.id() == 1 {
            fail(1);
        }
    })
}

/// The worker fails more often than `max_restarts` allows, but each failure comes after the previous restart window has
/// ended.
fn slow_failures() -> Report {
    let window = Duration::from_millis(50);
    serve(
        Prefork::new().workers(1).max_restarts(1).restart_window(window).restart_backoff(AT_ONCE, AT_ONCE),
        move |worker| {
            up(worker.id());
            if worker.generation() == 5 {
                return drain(&worker);
            }
            assert!(!worker.wait_for_stop(Some(2 * window)));
            fail(1)
        },
    )
}

fn exits_fatally() -> Report {
    let gate = Gate::new();
    serve(Prefork::new().workers(2).fatal_exit_code(77).fatal_exit_code(status_of(78)), move |worker| {
        assert!(!worker.stop_requested());
        if worker.id() == 1 {
            gate.pass();
            fail(78);
        }
        gate.open(1);
        drain(&worker);
    })
}

fn long_backoff() -> Report {
    let delay = Duration::from_secs(500);
    serve(Prefork::new().workers(1).restart_backoff(delay, delay), |_| fail(1))
}

fn ignores_stop() -> Report {
    serve(Prefork::new().workers(1).graceful_timeout(Duration::from_millis(50)), |worker| {
        assert!(!worker.stop_requested());
        up_until_signal(worker.id(), Signal::SIGUSR2);
    })
}

#[derive(Debug)]
struct Wrong(Option<Box<Wrong>>, &'static str);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }
}

impl std::error::Error for Wrong {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.as_deref().map(|source| source as _)
    }
}

struct PrintsWhenDropped(&'static str);

impl Drop for PrintsWhenDropped {
    fn drop(&mut self) {
        say(self.0);
    }
}

fn runs_three() -> Report {
    let _callers = PrintsWhenDropped("the caller's value is dropped");
    prepare();
    let work = |worker: Worker| -> WorkResult {
        let _workers = PrintsWhenDropped("the worker's value is dropped");
        match worker.id() {
            0 => Ok(()),
            1 => Err(Wrong(Some(Box::new(Wrong(None, "no hope"))), "it is all wrong").into()),
            _ => panic!("it is too much"),
        }
    };
    run(Prefork::new().workers(3).restart_policy(RestartPolicy::Never), work).expect("workers")
}

fn has_invalid_settings() {
    prepare();
    let services = [Prefork::new().workers(3).max_workers(2), Prefork::new().fatal_exit_code(0)];
    for service in services {
        say(&format!("refused {}", service.start().expect_err("a refusal")));
    }
}

fn nested() {
    let report = serve(Prefork::new().workers(1), |_| {
        say(&format!("second: {}", Prefork::new().workers(1).start().expect_err("a refusal")));
    });
    assert!(report.is_success());
}

pub fn twice() -> Report {
    say(&format!("first: {}", one_that_drains(Prefork::new()).reason()));
    one_that_drains(Prefork::new())
}

fn one_that_drains(service: Prefork) -> Report {
    serve(service.workers(1), |worker| {
        assert!(!worker.stop_requested());
        worker.ready();
        up(worker.id());
        drain(&worker);
    })
}

/// Runs a second service, and prints its error or the reason in its report.
fn try_second() {
    let answer = run(Prefork::new().workers(1), |_| Ok(()));
    let answer = answer.map_or_else(|error| error.to_string(), |report| report.reason().to_string());
    say(&format!("second: {answer}"));
}

/// Starts a second service in another thread once the first service has a worker. Starts a third service when the first
/// has ended.
fn two_at_a_time() -> Report {
    let (started, has_started) = mpsc::channel();
    let second = thread::spawn(move || {
        if has_started.recv().is_ok() {
            try_second();
        }
    });
    let first = one_that_drains(Prefork::new().on_event(move |event, _| {
        if let Event::Started { .. } = event {
            // The other thread receives only once, so a later send may fail.
            let _ = started.send(());
        }
    }));
    say(&format!("first: {}", first.reason()));
    second.join().expect("the second");
    one_that_drains(Prefork::new())
}

fn one_in_another() -> Report {
    one_that_drains(Prefork::new().on_event(|event, _| {
        if let Event::Started { .. } = event {
            try_second();
        }
    }))
}

/// Runs a service whose parent gets one more SIGTERM after all workers have exited and before the call returns.
pub fn signals_itself_at_the_end(work: fn(&Worker)) -> Report {
    struct Signals;
    impl Drop for Signals {
        fn drop(&mut self) {
            if taskfork::task_id().is_none() {
                raise(Signal::SIGTERM);
            }
        }
    }
    let signals = Signals;
    let service = Prefork::new().workers(1).on_event(move |_, _| {
        let _ = &signals;
    });
    serve(service, move |worker| work(&worker))
}

fn stopped_late() -> Report {
    signals_itself_at_the_end(|worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(worker);
    })
}

fn stops_all_late() -> Report {
    signals_itself_at_the_end(Worker::stop_all)
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("once more");
    }
}

impl fmt::Debug for PanicsWhenDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it panics")
    }
}

impl fmt::Display for PanicsWhenDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it panics")
    }
}

impl std::error::Error for PanicsWhenDropped {}

fn panics_twice() -> Report {
    let _callers = PrintsWhenDropped("the caller's value is dropped");
    prepare();
    let work = |worker: Worker| -> WorkResult {
        if worker.id() == 0 { std::panic::panic_any(PanicsWhenDropped) } else { Err(PanicsWhenDropped.into()) }
    };
    run(Prefork::new().workers(2).restart_policy(RestartPolicy::Never), work).expect("workers")
}
