//! Workers that do not exit at once after the death of their parent: they hang, drain, or have made the call in a
//! thread. Unix only, because on Windows the system ends all workers with their parent.

use std::thread;
use std::time::{Duration, Instant};

use taskfork::{Backend, Prefork, Report, RestartPolicy, Role, Worker};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Signal, idle, raise};
use crate::program::{EVER, drain, end_with, prepare, say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_hung_worker_is_killed_after_its_parent_died", hangs, loses_parent).for_processes(),
        Scenario::reporting("a_busy_worker_is_killed_after_its_parent_died", spins, loses_parent).for_processes(),
        Scenario::reporting("a_worker_drains_after_the_death_of_its_parent", drains, |daemon| {
            loses_parent(daemon);
            assert!(daemon.said("drained 0"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("while_the_parent_lives_no_timer_kills_workers", outlives_the_timeout, |daemon| {
            let worker = daemon.worker();
            daemon.send(worker, Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("drained 0"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::spawning("an_exited_calling_thread_does_not_keep_orphans", calls_in_a_thread, loses_parent),
        #[cfg(all(target_os = "linux", not(taskfork_portable)))]
        Scenario::spawning("user_is_refused_outside_the_main_thread", changes_user_in_a_thread, |daemon| {
            daemon.ends_with(1);
            assert!(daemon.said("error user: the call that spawns"), "{}", daemon.transcript());
            assert!(!daemon.said("Starting"), "{}", daemon.transcript());
        }),
        #[cfg(all(target_os = "linux", not(taskfork_portable)))]
        Scenario::spawning("worker_that_lost_its_lifeline_is_refused", changes_group_before_the_call, |daemon| {
            daemon.end();
            assert!(daemon.said("error backend: a worker has changed its user"), "{}", daemon.transcript());
        })
        .needs(super::not_root),
        #[cfg(target_os = "linux")]
        Scenario::reporting("a_refused_timer_for_orphans_is_logged", no_timers, |daemon| {
            daemon.ends_with(0);
            let has_timers = cfg!(taskfork_portable);
            assert_eq!(daemon.said("timer_create"), !has_timers, "{}", daemon.transcript());
        })
        .for_processes(),
    ]
}

fn loses_parent(daemon: &mut Daemon) {
    daemon.worker();
    daemon.signal(Signal::SIGKILL);
    daemon.end();
}

fn one(graceful_timeout: Duration, work: impl Fn(&Worker) + Send + Sync + 'static) -> Report {
    serve(Prefork::new().workers(1).graceful_timeout(graceful_timeout), move |worker| work(&worker))
}

fn hangs() -> Report {
    one(Duration::from_millis(100), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        idle();
    })
}

/// The worker also gets a further stop request in each round. If these requests gave the worker more time, it would
/// never be killed: no round takes a second.
fn spins() -> Report {
    one(Duration::from_secs(1), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        loop {
            raise(Signal::SIGTERM);
        }
    })
}

fn drains() -> Report {
    one(EVER, |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        drain(worker);
    })
}

/// The worker gets a stop request from the test. It then runs for longer than the graceful timeout.
fn outlives_the_timeout() -> Report {
    const TIMEOUT: Duration = Duration::from_millis(1);
    let service = Prefork::new().workers(1).graceful_timeout(TIMEOUT).restart_policy(RestartPolicy::Never);
    serve(service, |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        assert!(worker.wait_for_stop(None));
        let requested = Instant::now();
        while requested.elapsed() < 100 * TIMEOUT {}
        say("drained 0");
    })
}

#[cfg(target_os = "linux")]
fn no_timers() -> Report {
    use nix::sys::resource::{Resource, setrlimit};

    one(EVER, |worker| {
        setrlimit(Resource::RLIMIT_SIGPENDING, 0, 0).expect("a limit");
        worker.enable_graceful_stop();
        assert!(!worker.stop_requested());
    })
}

/// Makes the call in a thread, which exits when the call returns. The worker serves in the main thread.
fn start_in_a_thread(prefork: fn() -> Prefork) -> Report {
    prepare();
    let start = move || prefork().workers(1).backend(Backend::Spawn).start();
    match thread::spawn(start).join().expect("the result of the call") {
        Ok(Role::Parent(report)) => report,
        Ok(_) => {
            up(0);
            idle()
        }
        Err(error) => end_with(&error),
    }
}

fn calls_in_a_thread() -> Report {
    start_in_a_thread(Prefork::new)
}

#[cfg(all(target_os = "linux", not(taskfork_portable)))]
fn changes_user_in_a_thread() -> Report {
    start_in_a_thread(|| Prefork::new().user(nix::unistd::getuid().to_string()))
}

#[cfg(all(target_os = "linux", not(taskfork_portable)))]
fn changes_group_before_the_call() -> Report {
    if std::env::var_os("TASKFORK_WORKER").is_some() {
        nix::unistd::setegid(1.into()).expect("another group");
    }
    start_in_a_thread(|| Prefork::new().max_restarts(0))
}
