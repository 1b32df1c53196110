//! Tests of [`Status`]: what `on_interval` and [`Handle::status`] show while the service runs.

use std::mem;
use std::time::Duration;

use taskfork::{Event, Handle, Prefork, Report, Role, Status, Supervisor, WorkerState, WorkerStatus};

use super::handles::{HANDLE, keep_handle};
use crate::Scenario;
use crate::os::{Gate, Signal};
use crate::program::{EVER, drain, end_with, prepare, say, serve, up};

/// The period of `on_interval`. The programs print a line only if it differs from the line before.
const PERIOD: Duration = Duration::from_millis(10);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("on_interval_shows_each_state_of_the_workers", prints_changes, |daemon| {
            let gate = Gate::of(daemon.scratch());
            let old = daemon.workers(2);
            let entry = |up: &crate::daemon::Up, generation, rest: &str| {
                format!("[{}/{generation} {} {rest}]", up.id, up.event_pid())
            };
            let first = |rest| entry(&old[0], 0, rest);
            let starting = format!("{} {}", first("starting 0 None"), entry(&old[1], 0, "starting 0 None"));
            daemon.wait_for_times(&format!("status starting 0/2 0 restarts {starting}"), 1);
            gate.open(2);
            let ready = format!("{} {}", first("ready 0 None"), entry(&old[1], 0, "ready 0 None"));
            daemon.wait_for_times(&format!("status running 2/2 0 restarts {ready}"), 1);
            daemon.send(old[1], Signal::SIGKILL);
            let new = daemon.worker();
            let exit = format!("1 Some({})", daemon.killed_exit());
            let second = |state: &str| entry(&new, 1, &format!("{state} {exit}"));
            let restarted = format!("{} {}", first("ready 0 None"), second("starting"));
            daemon.wait_for_times(&format!("status running 1/2 1 restarts {restarted}"), 1);
            gate.open(1);
            let restarted = format!("{} {}", first("ready 0 None"), second("ready"));
            daemon.wait_for_times(&format!("status running 2/2 1 restarts {restarted}"), 1);
            daemon.signal(Signal::SIGTERM);
            let stopping = format!("{} {}", first("stopping 0 None"), second("stopping"));
            daemon.wait_for_times(&format!("status stopping 0/0 1 restarts {stopping}"), 1);
            gate.open(2);
            daemon.ends_with(0);
            assert!(daemon.said(&format!("service Some(\"shop\") {} ", daemon.pid())), "{}", daemon.transcript());
        }),
        Scenario::reporting("handle_status_fits_the_event", asks_in_on_event, |daemon| {
            daemon.workers(2);
            daemon.wait_for_times("is ready: ready", 2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for line in [
                "at the start: starting 0/2, waiting waiting",
                "0 is ready: ready true",
                "1 is ready: ready true",
                "at the stop: stopping",
                "after the end: false",
            ] {
                assert_eq!(daemon.count(line), 1, "{line}:\n{}", daemon.transcript());
            }
            assert_eq!(daemon.count("in the worker: false"), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("last_heartbeat_shows_the_last_heartbeat", shows_heartbeats, |daemon| {
            daemon.worker();
            daemon.wait_for_times("no heartbeat", 1);
            Gate::of(daemon.scratch()).open(1);
            daemon.wait_for("a heartbeat");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("status_counts_the_units_of_work", does_work, |daemon| {
            let gate = Gate::of(daemon.scratch());
            daemon.workers(2);
            daemon.wait_for_times("work 2: 1/7 1/7", 1);
            gate.open(2);
            daemon.wait_for_times("work 0: 0/8 0/8", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("cpu_time_grows_with_the_work_of_a_process", shows_cpu_time, |daemon| {
            daemon.worker();
            daemon.wait_for_times("it has worked", 1);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::reporting("private_memory_shows_what_a_process_has_filled", shows_memory, |daemon| {
            daemon.worker();
            daemon.wait_for_times("little memory", 1);
            Gate::of(daemon.scratch()).open(1);
            daemon.wait_for("much memory, much sampled");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::new("panic_in_on_interval_leaves_no_worker_behind", panics_in_on_interval, |daemon| {
            daemon.workers(2);
            assert!(!daemon.end().success());
            assert!(daemon.said("a panic in on_interval"), "{}", daemon.transcript());
        })
        .for_threads_too(),
        Scenario::new("status_contains_all_pools", has_two_pools, |daemon| {
            daemon.wait_for_times("pools web 1/1 with 1 unit, jobs 2/2 with 4 units", 1);
            daemon.wait_for_times("pools web 1/1 with 1 unit, jobs 3/3 with 6 units", 1);
            daemon.ends_with(0);
        }),
        #[cfg(target_os = "linux")]
        Scenario::reporting("status_counts_the_connections_that_wait", accepts_nothing, |daemon| {
            use std::net::{SocketAddr, TcpStream};

            let addresses = [(); 2].map(|()| {
                let line = daemon.wait_for("log Listening on 127");
                line.rsplit(' ').next().expect("an address").parse::<SocketAddr>().expect("an address")
            });
            daemon.wait_for_times("queues [Some(0), Some(0), None]", 1);
            let connect = |address: SocketAddr| TcpStream::connect(address).expect("a connection");
            let _clients = [connect(addresses[0]), connect(addresses[0])];
            daemon.wait_for_times("queues [Some(2), Some(0), None]", 1);
            let _others = [(); 8].map(|()| connect(addresses[1]));
            daemon.wait_for_times("queues [Some(2), Some(8), None]", 1);
            // Before that, the signal would kill a worker.
            daemon.wait_for_times("up ", 2);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for_times("queues []", 1);
            Gate::of(daemon.scratch()).open(2);
            daemon.ends_with(0);
        }),
    ]
}

/// Returns a callback of `on_interval` that prints what `describe` returns, if that has changed.
fn print_changes(describe: impl Fn(&Status) -> String + 'static) -> impl FnMut(&Status, &Handle) + 'static {
    let mut last = String::new();
    let mut age = Duration::ZERO;
    move |status, _| {
        assert!(status.age() > age, "{:?} after {age:?}", status.age());
        age = status.age();
        let line = describe(status);
        if line != last {
            say(&line);
        }
        last = line;
    }
}

fn describe(status: &Status) -> String {
    let pool = &status.pools()[0];
    let workers: Vec<String> = pool.workers().iter().map(describe_worker).collect();
    let ready = format!("{}/{} {} restarts", pool.ready(), pool.wanted(), pool.restarts());
    format!("status {} {ready} {}", status.state(), workers.join(" "))
}

fn describe_worker(worker: &WorkerStatus) -> String {
    let is_coming = matches!(worker.state(), WorkerState::Waiting | WorkerState::Starting);
    assert_eq!(worker.since_ready().is_none(), is_coming, "{worker:?}");
    assert!(worker.age() >= worker.since_ready(), "{worker:?}");
    assert_eq!(worker.last_heartbeat(), None, "no heartbeat_timeout");
    let pid = worker.pid().unwrap_or_default();
    let exit = worker.last_exit();
    format!("[{}/{} {pid} {} {} {exit:?}]", worker.id(), worker.generation(), worker.state(), worker.restarts())
}

fn prints_changes() -> Report {
    let gate = Gate::new();
    let mut print = print_changes(describe);
    let mut is_first = true;
    let service =
        Prefork::new().workers(2).name("shop").ready_timeout(EVER).on_interval(PERIOD, move |status, handle| {
            if is_first {
                let now = std::time::SystemTime::now();
                assert!(status.started_at() <= now && !status.version().is_empty());
                say(&format!("service {:?} {} {}", status.name(), status.pid(), status.version()));
            }
            is_first = false;
            print(status, handle);
        });
    serve(service, move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        gate.pass();
        worker.ready();
        drain(&worker);
        gate.pass();
    })
}

fn asks_in_on_event() -> Report {
    let service = Prefork::new().workers(2).ready_timeout(EVER).on_event(|event, handle| {
        keep_handle(event, handle);
        let status = handle.status().expect("a status");
        let pool = &status.pools()[0];
        match event {
            Event::Starting { .. } => {
                let states: Vec<String> = pool.workers().iter().map(|worker| worker.state().to_string()).collect();
                let line = format!("{} {}/{}, {}", status.state(), pool.ready(), pool.wanted(), states.join(" "));
                say(&format!("at the start: {line}"));
            }
            Event::Ready { process } => {
                let worker = pool.workers().iter().find(|worker| worker.process() == Some(*process));
                let worker = worker.expect("the process");
                let has_time = worker.cpu_time().is_some() == cfg!(any(target_os = "linux", windows));
                let has_time = has_time || process.is_thread();
                say(&format!("{} is ready: {} {has_time}", process.id, worker.state()));
            }
            Event::Stopping { .. } => say(&format!("at the stop: {}", status.state())),
            _ => {}
        }
    });
    let report = serve(service, |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        say(&format!("in the worker: {}", has_status()));
        worker.ready();
        drain(&worker);
    });
    say(&format!("after the end: {}", has_status()));
    report
}

fn has_status() -> bool {
    HANDLE.get().and_then(Handle::status).is_some()
}

/// The worker sends one heartbeat after the test has opened the gate.
fn shows_heartbeats() -> Report {
    let gate = Gate::new();
    let describe = |status: &Status| {
        let workers = status.pools()[0].workers();
        let has_beaten =
            workers.iter().any(|worker| worker.last_heartbeat().is_some() && worker.last_heartbeat() < worker.age());
        if has_beaten { "a heartbeat" } else { "no heartbeat" }.to_owned()
    };
    let service = Prefork::new().workers(1).heartbeat_timeout(EVER).on_interval(PERIOD, print_changes(describe));
    serve(service, move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        gate.pass();
        worker.heartbeat();
        drain(&worker);
    })
}

/// Each worker completes seven units of work, and one more after the test has opened the gate.
fn does_work() -> Report {
    let gate = Gate::new();
    let describe = |status: &Status| {
        let pool = &status.pools()[0];
        let counts = |worker: &WorkerStatus| format!("{}/{}", worker.work_in_progress(), worker.work_completed());
        let counts: Vec<String> = pool.workers().iter().map(counts).collect();
        format!("work {}: {}", pool.work_in_progress(), counts.join(" "))
    };
    serve(Prefork::new().workers(2).on_interval(PERIOD, print_changes(describe)), move |worker| {
        assert!(!worker.stop_requested());
        for _ in 0..7 {
            drop(worker.begin_work());
        }
        let unit = worker.begin_work();
        up(worker.id());
        gate.pass();
        drop(unit);
        drain(&worker);
    })
}

fn shows_cpu_time() -> Report {
    let describe = |status: &Status| {
        let times = status.pools()[0].workers().iter().filter_map(WorkerStatus::cpu_time);
        // The resolution is 10 ms on Linux.
        if times.sum::<Duration>() > Duration::from_millis(30) { "it has worked" } else { "it works" }.to_owned()
    };
    let service = Prefork::new().workers(1).on_interval(PERIOD, print_changes(describe));
    serve(service, |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        while !worker.stop_requested() {}
    })
}

/// The worker fills memory after the test has opened the gate.
fn shows_memory() -> Report {
    // Wine also counts some memory that a process has reserved and not filled.
    const MUCH: u64 = if cfg!(windows) { 256 << 20 } else { 64 << 20 };
    let gate = Gate::new();
    let describe = |status: &Status| {
        let size = |bytes: Option<u64>| match bytes {
            None => "none",
            Some(0..MUCH) => "little",
            Some(_) => "much",
        };
        let worker = status.pools()[0].workers().first();
        let sampled = worker.and_then(WorkerStatus::last_private_memory).map(|sample| sample.bytes());
        format!("{} memory, {} sampled", size(worker.and_then(WorkerStatus::private_memory)), size(sampled))
    };
    let service = Prefork::new().workers(1).max_memory(1 << 40).on_interval(PERIOD, print_changes(describe));
    serve(service, move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        gate.pass();
        let filled = std::hint::black_box(vec![1_u8; MUCH as usize]);
        drain(&worker);
        drop(filled);
    })
}

fn panics_in_on_interval() {
    let service = Prefork::new().workers(2).ready_timeout(EVER).on_interval(PERIOD, |status, _| {
        assert!(status.pools()[0].ready() < 2, "a panic in on_interval");
    });
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        worker.ready();
        drain(&worker);
    });
}

/// Scales the second pool when all workers are ready, and stops the service when it has been scaled. Each worker of the
/// first pool has one unit of work in progress, and each worker of the second pool has two.
fn has_two_pools() {
    prepare();
    let mut print = print_changes(|status| {
        let pools = status.pools().iter().map(|pool| {
            let units = match pool.work_in_progress() {
                1 => "1 unit".to_owned(),
                units => format!("{units} units"),
            };
            format!("{} {}/{} with {units}", pool.name(), pool.ready(), pool.wanted())
        });
        format!("pools {}", pools.collect::<Vec<_>>().join(", "))
    });
    let pool = |workers| Prefork::new().workers(workers).ready_timeout(EVER);
    let service =
        Supervisor::new().pool("web", pool(1)).pool("jobs", pool(2)).on_interval(PERIOD, move |status, handle| {
            print(status, handle);
            let ready: Vec<usize> = status.pools().iter().map(|pool| pool.ready()).collect();
            match ready[..] {
                [1, 2] => handle.in_pool("jobs").scale(3),
                [1, 3] => handle.stop(),
                _ => {}
            }
        });
    match service.start() {
        Ok(Role::Worker(worker)) => {
            assert!(!worker.stop_requested());
            let units = if worker.pool() == "web" { 1 } else { 2 };
            (0..units).for_each(|_| mem::forget(worker.begin_work()));
            worker.ready();
            drain(&worker);
        }
        Ok(_) => {}
        Err(error) => end_with(&error),
    }
}

/// The workers accept no connections. The listeners are a shared TCP socket, a TCP socket for each worker, and UDP.
#[cfg(target_os = "linux")]
fn accepts_nothing() -> Report {
    use taskfork::ListenConfig;

    let gate = Gate::new();
    let describe = |status: &Status| {
        let queues: Vec<_> = status.pools()[0].listeners().iter().map(|listener| listener.queued()).collect();
        format!("queues {queues:?}")
    };
    let service = Prefork::new()
        .workers(2)
        .listen("127.0.0.1:0")
        .listen(ListenConfig::from("127.0.0.1:0").per_worker())
        .listen("udp:127.0.0.1:0");
    serve(service.on_interval(PERIOD, print_changes(describe)), move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
        gate.pass();
    })
}
