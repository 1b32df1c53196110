//! Stress tests: many signals of all kinds for a long time, and thousands of workers. Linux only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, signal};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{RngExt, SeedableRng};
use taskfork::{Event, Prefork, Report, RestartPolicy};

use crate::Scenario;
use crate::census::{Census, UpSource};
use crate::daemon::{Daemon, kill};
use crate::os::{Gate, Signal, idle};
use crate::procfs::{children, descriptors, is_living_child, wait_until_alone};
use crate::program::{fail, fork, say, serve, serve_watched, up};
use crate::room::lacks_room;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("pool_recovers_from_a_storm_of_kills_and_requests", six_that_beat, |daemon| {
            let mut watch = Watch::new(daemon, 6, UpSource::Parent);
            watch.settle();
            watch.storm(&ALL_SIGNALS);
            watch.settle();
            watch.stop();
            // SIGUSR1 has the number 10. Forked workers inherit the handler for it. A spawned worker has to install
            // this handler, and SIGUSR1 may kill the worker before that.
            assert!(!daemon.is_forking || !daemon.said("killed by signal 10"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::threading("thread_pool_recovers_from_a_storm_of_failures", six_that_fail, |daemon| {
            let mut census = Census::new(6, UpSource::Parent);
            let seed = Seed::draw();
            let mut rng = seed.rng(0);
            settle_threads(daemon, &mut census);
            for _ in 0..ALL_SIGNALS.signals {
                let pause = ALL_SIGNALS.longest_pause.mul_f64(rng.random_range(0.0..1.0));
                let until = Instant::now() + pause;
                let left = || until.saturating_duration_since(Instant::now());
                while let Some(line) = daemon.line_within(left()) {
                    census.note(&line);
                    assert_eq!(census.crowded(), None, "{}", daemon.transcript());
                }
                daemon.signal(*ALL_SIGNALS.at_parent.choose(&mut rng).expect("a signal"));
            }
            daemon.signal(Signal::SIGUSR2);
            settle_threads(daemon, &mut census);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("is stale") && daemon.said("report: stopped"), "{}", daemon.transcript());
            assert!(daemon.said("one thread is left"), "{}", daemon.transcript());
        }),
        Scenario::new("fork_processes_recovers_from_kills_by_four_operators", four_idle, survives_four_operators),
        Scenario::reporting(
            "restart_window_service_recovers_from_kills_by_four_operators",
            four_idle_with_a_restart_window,
            survives_four_operators,
        )
        .forking(),
        Scenario::reporting("two_thousand_workers_run_with_few_descriptors", two_thousand, |daemon| {
            let mut watch = Watch::new(daemon, MANY, UpSource::Parent);
            watch.settle();
            watch.kill(MANY / 10);
            watch.settle();
            watch.replace_all();
            watch.stop();
        })
        .forking()
        .needs(room_for_many),
    ]
}

const MANY: usize = 2000;
/// The parent has fewer open descriptors than this, with any number of workers.
const DESCRIPTORS: usize = 20;

/// The signals that simulated operators send to a service. Each operator sends `signals` of them.
struct Storm {
    operators: u64,
    signals: u32,
    longest_pause: Duration,
    at_workers: &'static [Signal],
    at_parent: &'static [Signal],
}

const ALL_SIGNALS: Storm = Storm {
    operators: 1,
    signals: 400,
    longest_pause: Duration::from_millis(50),
    at_workers: &[Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGSTOP, Signal::SIGCONT],
    at_parent: &[Signal::SIGHUP, Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGUSR1],
};

const KILLS_AND_HUPS: Storm = Storm {
    operators: 4,
    signals: 100,
    longest_pause: Duration::from_millis(100),
    at_workers: &[Signal::SIGKILL],
    at_parent: &[Signal::SIGHUP],
};

fn survives_four_operators(daemon: &mut Daemon) {
    let mut watch = Watch::new(daemon, 4, UpSource::Worker);
    watch.settle();
    watch.storm(&KILLS_AND_HUPS);
    watch.settle();
    watch.stop();
}

/// The test's handle for a daemon under a storm of signals. It derives the living processes from the lines of the log.
struct Watch<'a> {
    daemon: &'a mut Daemon,
    parent: u32,
    census: Mutex<Census>,
    up_source: UpSource,
    seed: Seed,
}

impl Watch<'_> {
    fn new(daemon: &mut Daemon, workers: usize, up_source: UpSource) -> Watch<'_> {
        let parent = daemon.pid();
        Watch { daemon, parent, census: Mutex::new(Census::new(workers, up_source)), up_source, seed: Seed::draw() }
    }

    fn census(&self) -> MutexGuard<'_, Census> {
        self.census.lock().expect("no panic under the lock")
    }

    fn read_line(&mut self) {
        let line = self.daemon.next_line();
        note_line(&line, &self.census, self.daemon);
        assert!(descriptors(self.parent) < DESCRIPTORS, "{} descriptors", descriptors(self.parent));
    }

    /// Reads lines until the log shows exactly the wanted processes, and /proc lists the same. While the two differ, at
    /// least one log line is still missing. If no line arrives, the daemon's watchdog makes the test fail.
    fn settle(&mut self) {
        while !(self.census().is_settled() && self.census().pids() == children(self.parent)) {
            if self.up_source == UpSource::Worker {
                self.end_rolling_restart();
            }
            self.read_line();
        }
    }

    /// Sends all signals of the storm, and then kills one more worker. The parent handles requests before exits. So
    /// when the log has the exit of this worker, the parent has handled every request of the storm.
    fn storm(&mut self, storm: &Storm) {
        let parent = self.parent;
        let census = &self.census;
        let seed = &self.seed;
        thread::scope(|scope| {
            let operators = (0..storm.operators).map(|number| {
                let mut rng = seed.rng(number);
                scope.spawn(move || send_storm(parent, census, storm, &mut rng))
            });
            let operators: Vec<_> = operators.collect();
            while !operators.iter().all(ScopedJoinHandle::is_finished) {
                if let Some(line) = self.daemon.line_within(Duration::from_millis(10)) {
                    note_line(&line, census, self.daemon);
                }
            }
        });
        self.kill(1);
    }

    fn kill(&mut self, mut workers: usize) {
        let mut rng = self.seed.rng(u64::MAX);
        while workers > 0 {
            if send_to_random_worker(self.parent, &mut self.census(), Signal::SIGKILL, &mut rng) {
                workers -= 1;
            } else {
                self.read_line();
            }
        }
    }

    /// Kills the replacement of a rolling restart, which aborts the rolling restart. This saves time, because without
    /// `ready_timeout` each replacement takes a second.
    fn end_rolling_restart(&mut self) {
        let mut census = self.census();
        if census.is_rolling() {
            for pid in census.replacements() {
                send(self.parent, &mut census, pid, Signal::SIGKILL);
            }
        }
    }

    fn replace_all(&mut self) {
        let before = self.census().names();
        self.daemon.signal(Signal::SIGHUP);
        while !self.census().is_rolling() {
            self.read_line();
        }
        while self.census().is_rolling() {
            self.read_line();
            assert!(self.census().count_starting() <= 1, "{}", self.daemon.transcript());
        }
        self.settle();
        assert!(self.census().names().is_disjoint(&before));
        assert!(self.daemon.said("log Rolling restart done"));
    }

    fn stop(&mut self) {
        self.daemon.signal(Signal::SIGTERM);
        self.daemon.wait_for("log Stopping");
        assert!(descriptors(self.parent) < DESCRIPTORS);
        self.daemon.ends_with(0);
    }
}

fn settle_threads(daemon: &mut Daemon, census: &mut Census) {
    while !census.is_settled() {
        census.note(&daemon.next_line());
    }
}

fn note_line(line: &str, census: &Mutex<Census>, daemon: &Daemon) {
    let mut census = census.lock().expect("no panic under the lock");
    census.note(line);
    let crowded = census.crowded();
    drop(census);
    assert_eq!(crowded, None, "more than two processes of one worker:\n{}", daemon.transcript());
}

fn send_storm(parent: u32, census: &Mutex<Census>, storm: &Storm, rng: &mut SmallRng) {
    for _ in 0..storm.signals {
        thread::sleep(storm.longest_pause.mul_f64(rng.random_range(0.0..1.0)));
        let at = if rng.random_bool(0.6) { storm.at_workers } else { storm.at_parent };
        let &signal = at.choose(rng).expect("a signal");
        if at == storm.at_parent {
            kill(parent, signal);
        } else {
            send_to_random_worker(parent, &mut census.lock().expect("no panic under the lock"), signal, rng);
        }
    }
}

/// Sends the signal to a random worker that the parent restarts if it exits. Returns whether the signal was sent.
fn send_to_random_worker(parent: u32, census: &mut Census, signal: Signal, rng: &mut SmallRng) -> bool {
    census.restartable().into_iter().choose(rng).is_some_and(|pid| send(parent, census, pid, signal))
}

/// Sends the signal if the pid is still that of a living child of the parent. Otherwise another process may have got
/// the pid. Returns whether the signal was sent.
fn send(parent: u32, census: &mut Census, pid: u32, signal: Signal) -> bool {
    let is_sent = is_living_child(pid, parent) && nix::sys::signal::kill(Pid::from_raw(pid as i32), signal).is_ok();
    if is_sent {
        census.was_sent(pid, signal);
    }
    is_sent
}

/// The seed of a storm's random numbers. The same seed does not repeat a storm exactly, because the storm also depends
/// on the daemon's timing.
struct Seed(u64);

const SEED: &str = "TASKFORK_STORM_SEED";

impl Seed {
    fn draw() -> Seed {
        Seed(std::env::var(SEED).map_or_else(|_| rand::random(), |seed| seed.parse().expect("a number")))
    }

    fn rng(&self, number: u64) -> SmallRng {
        SmallRng::seed_from_u64(self.0.wrapping_add(number))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{SEED}={}", self.0);
        }
    }
}

/// The program installs a handler for SIGUSR1 before the first fork, because the signal's default action kills a
/// process. If a worker's first process misses its `ready_timeout`, the service ends. So the parent starts the next
/// worker only when the previous one is ready.
fn six_that_beat() -> Report {
    extern "C" fn reopen(_: libc::c_int) {}
    // SAFETY: the handler does nothing.
    unsafe { signal(Signal::SIGUSR1, SigHandler::Handler(reopen)) }.expect("a handler");
    let service = Prefork::new().workers(6).max_workers(12).max_restarts(100_000);
    let service = service.restart_backoff(Duration::from_millis(1), Duration::from_millis(20));
    let service = service.ready_timeout(Duration::from_secs(2)).heartbeat_timeout(Duration::from_millis(500));
    let gate = Gate::new();
    let opener = Gate::new();
    let mut first = 0..6;
    let service = service.on_event(move |event, _| {
        if matches!(event, Event::Started { .. }) && first.next().is_some() {
            gate.pass();
        }
    });
    serve(service.graceful_timeout(Duration::from_secs(1)), move |worker| {
        // This wait delays `ready`, so that some signals arrive before the worker is ready. The call also makes SIGTERM
        // a stop request.
        worker.wait_for_stop(Some(Duration::from_millis(rand::random_range(0..50))));
        worker.ready();
        if worker.generation() == 0 {
            opener.open(1);
        }
        while !worker.wait_for_stop(Some(Duration::from_millis(50))) {
            worker.heartbeat();
        }
    })
}

/// Threads that fail, return or hang at random until the program gets SIGUSR2. If a thread hangs for too long, the
/// parent abandons it as stale. The thread returns later.
fn six_that_fail() -> Report {
    static IS_CALM: AtomicBool = AtomicBool::new(false);
    extern "C" fn calm_down(_: libc::c_int) {
        IS_CALM.store(true, Ordering::Relaxed);
    }
    extern "C" fn reopen(_: libc::c_int) {}
    // SAFETY: the handlers are async-signal-safe.
    unsafe {
        signal(Signal::SIGUSR1, SigHandler::Handler(reopen)).expect("a handler");
        signal(Signal::SIGUSR2, SigHandler::Handler(calm_down)).expect("a handler");
    }
    let service = Prefork::new().workers(6).max_workers(12).max_restarts(100_000).restart_policy(RestartPolicy::Always);
    let service = service.restart_backoff(Duration::from_millis(1), Duration::from_millis(20));
    let service = service.ready_timeout(Duration::from_secs(10)).heartbeat_timeout(Duration::from_millis(500));
    let report = serve(service.graceful_timeout(Duration::from_millis(500)), |worker| {
        worker.wait_for_stop(Some(Duration::from_millis(rand::random_range(0..50))));
        worker.ready();
        while !worker.wait_for_stop(Some(Duration::from_millis(10))) {
            worker.heartbeat();
            match rand::random_range(0..200) {
                _ if IS_CALM.load(Ordering::Relaxed) => {}
                0 | 1 => fail(1),
                2 => return,
                3 => thread::sleep(Duration::from_millis(rand::random_range(0..3000))),
                _ => {}
            }
        }
    });
    wait_until_alone();
    say("one thread is left");
    report
}

fn four_idle() {
    up(fork(4, 10_000));
    idle();
}

fn four_idle_with_a_restart_window() -> Report {
    let service = Prefork::new().workers(4).max_restarts(10_000).restart_window(Duration::from_secs(60));
    // Without a ready timeout, ten kills of one worker in the first 10 s would be a startup failure.
    let service = service.ready_timeout(Duration::from_secs(60));
    serve(service.restart_backoff(Duration::from_millis(1), Duration::from_millis(20)), |worker| {
        worker.ready();
        up(worker.id());
        idle()
    })
}

/// The scenario usually takes a few seconds, but its limit is 240 s. During the rolling restart, one process waits for
/// another about ten thousand times. On a busy machine, each time the other process first has to wait for a CPU.
fn two_thousand() -> Report {
    let service = Prefork::new().workers(MANY).max_restarts(MANY as u32);
    serve_watched(service.ready_timeout(Duration::from_secs(60)), 240, |worker| {
        worker.ready();
        idle()
    })
}

fn room_for_many() -> Option<&'static str> {
    /// The number of processes and threads, somewhat more than exist at the same time.
    const TASKS: u64 = if cfg!(taskfork_portable) { 5000 } else { 2500 };
    /// The bytes of memory, twice the measured use.
    const MEMORY: u64 = 1 << 30;
    lacks_room(TASKS, MEMORY)
}
