//! The future that `stopped` returns: how async code notices a stop request.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use taskfork::{Prefork, Report, RestartPolicy, WorkResult, Worker};
use tokio::runtime::{Builder, Runtime};

use super::stop_requests::{drains_on_int, drains_on_term, one};
use crate::Scenario;
use crate::os::{Signal, no_terminal};
use crate::program::{drain, end_with, prepare, run, say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("stopped_completes_after_a_term", awaits_stopped, drains_on_term),
        Scenario::reporting("stopped_completes_after_ctrl_c", awaits_stopped, drains_on_int).needs(no_terminal),
        Scenario::reporting("stopped_completes_in_a_runtime_with_threads", awaits_in_threads, drains_on_term),
        Scenario::reporting("stopped_completes_without_an_async_runtime", parks, drains_on_term),
        Scenario::reporting("stopped_completes_after_the_worker_is_dropped", outlives_the_worker, drains_on_term),
        Scenario::reporting("stopped_works_in_a_select_loop", selects, drains_on_term),
        Scenario::reporting("async_worker_that_ends_is_restarted", end_once, |daemon| {
            // A restarted worker may be up before another worker is up for the first time.
            let processes = daemon.workers(2 * ENDS.len());
            for (id, pair) in processes.chunks(2).enumerate() {
                assert!(pair[0].id == id && pair[1].id == id && pair[0] != pair[1], "{}", daemon.transcript());
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("drained "), ENDS.len(), "{}", daemon.transcript());
        }),
    ]
}

pub fn single() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn several() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn awaits_stopped() -> Report {
    one(|worker| awaits_in(&single(), worker))
}

fn awaits_in_threads() -> Report {
    one(|worker| awaits_in(&several(), worker))
}

fn awaits_in(runtime: &Runtime, worker: &Worker) {
    runtime.block_on(async {
        let stopped = worker.stopped();
        let tasks: Vec<_> = (0..3).map(|_| tokio::spawn(stopped.clone())).collect();
        up(worker.id());
        for task in tasks {
            task.await.expect("no panic");
        }
        stopped.await;
        worker.stopped().await;
        assert!(worker.stop_requested());
        say("drained");
    });
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

pub fn block_on(future: impl Future<Output = ()>) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    while future.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending {
        thread::park();
    }
}

fn parks() -> Report {
    one(|worker| {
        let stopped = worker.stopped();
        up(worker.id());
        block_on(stopped);
        say("drained");
    })
}

fn outlives_the_worker() -> Report {
    serve(Prefork::new().workers(1), |worker| {
        let stopped = worker.stopped();
        let id = worker.id();
        drop(worker);
        single().block_on(async {
            let waiting = tokio::spawn(stopped);
            up(id);
            waiting.await.expect("no panic");
        });
        say("drained");
    })
}

fn selects() -> Report {
    one(|worker| {
        single().block_on(async {
            let mut rounds = 0;
            loop {
                tokio::select! {
                    biased;
                    () = worker.stopped() => break,
                    () = tokio::task::yield_now() => rounds += 1,
                }
                if rounds == 1000 {
                    up(worker.id());
                }
            }
            say("drained");
        });
    })
}

/// The ways in which an async worker ends while one of its tasks waits for the stop request.
const ENDS: [fn() -> WorkResult; 3] = [|| Err("an error".into()), || panic!("a panic"), || Ok(())];

fn end_once() -> Report {
    prepare();
    let service = Prefork::new().workers(ENDS.len()).restart_policy(RestartPolicy::Always);
    let report = run(service, |worker| {
        prepare();
        if worker.generation() > 0 {
            worker.enable_graceful_stop();
            up(worker.id());
            drain(&worker);
            return Ok(());
        }
        let runtime = if worker.id() == 0 { single() } else { several() };
        runtime.block_on(async {
            let waiting = tokio::spawn(worker.stopped());
            tokio::task::yield_now().await;
            up(worker.id());
            assert!(!waiting.is_finished());
            ENDS[worker.id()]()
        })
    });
    report.unwrap_or_else(|error| end_with(&error))
}
