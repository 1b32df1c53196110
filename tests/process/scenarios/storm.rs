//! Everything at once and for long, and thousands of workers. Linux only.

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
use crate::census::{Census, SaysUp};
use crate::daemon::{Daemon, kill};
use crate::os::{Gate, Signal, idle};
use crate::procfs::{children, descriptors, is_living_child, wait_until_alone};
use crate::program::{fail, fork, say, serve, serve_watched, up};
use crate::room::lacks_room;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting(
            "after_a_storm_of_kills_and_requests_the_parent_settles_at_its_target_and_stops_clean",
            six_that_beat,
            |daemon| {
                let mut watch = Watch::new(daemon, 6, SaysUp::Parent);
                watch.settle();
                watch.storm(&EVERYTHING);
                watch.settle();
                watch.stop();
                // The handler that was there before the fork. A program that is started has to install it first.
                assert!(!daemon.is_forking || !daemon.said("killed by signal 10"), "{}", daemon.transcript());
            },
        )
        .for_processes(),
        Scenario::threading(
            "after_a_storm_of_failures_and_requests_the_threads_settle_at_their_target_and_stop_clean",
            six_that_fail,
            |daemon| {
                let (mut census, seed) = (Census::new(6, SaysUp::Parent), Seed::draw());
                let mut rng = seed.rng(0);
                settle_threads(daemon, &mut census);
                for _ in 0..EVERYTHING.signals {
                    let pause = EVERYTHING.longest_pause.mul_f64(rng.random_range(0.0..1.0));
                    let until = Instant::now() + pause;
                    let left = || until.saturating_duration_since(Instant::now());
                    while let Some(line) = daemon.line_within(left()) {
                        census.hear(&line);
                        assert_eq!(census.crowded(), None, "{}", daemon.transcript());
                    }
                    daemon.signal(*EVERYTHING.at_parent.choose(&mut rng).expect("a signal"));
                }
                daemon.signal(Signal::SIGUSR2);
                settle_threads(daemon, &mut census);
                daemon.signal(Signal::SIGTERM);
                daemon.ends_with(0);
                assert!(daemon.said("is stale") && daemon.said("report: stopped"), "{}", daemon.transcript());
                assert!(daemon.said("one thread is left"), "{}", daemon.transcript());
            },
        ),
        Scenario::new(
            "after_a_storm_from_four_sides_fork_processes_has_its_four_workers_again",
            four_idle,
            kills_and_rolls_from_four_sides,
        ),
        Scenario::reporting(
            "after_a_storm_from_four_sides_a_service_with_a_restart_window_has_its_four_workers_again",
            four_idle_with_a_window,
            kills_and_rolls_from_four_sides,
        )
        .forking(),
        Scenario::reporting(
            "two_thousand_workers_are_started_restarted_replaced_and_stopped_with_few_descriptors",
            two_thousand,
            |daemon| {
                let mut watch = Watch::new(daemon, MANY, SaysUp::Parent);
                watch.settle();
                watch.kill(MANY / 10);
                watch.settle();
                watch.replace_all();
                watch.stop();
            },
        )
        .forking()
        .needs(room_for_many),
    ]
}

const MANY: usize = 2000;
/// Of the parent, however many workers it has.
const DESCRIPTORS: usize = 20;

/// What is thrown at a service, by each of the operators.
struct Weather {
    operators: u64,
    signals: u32,
    longest_pause: Duration,
    at_workers: &'static [Signal],
    at_parent: &'static [Signal],
}

const EVERYTHING: Weather = Weather {
    operators: 1,
    signals: 400,
    longest_pause: Duration::from_millis(50),
    at_workers: &[Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGSTOP, Signal::SIGCONT],
    at_parent: &[Signal::SIGHUP, Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGUSR1],
};

const KILLS_AND_ROLLS: Weather = Weather {
    operators: 4,
    signals: 100,
    longest_pause: Duration::from_millis(100),
    at_workers: &[Signal::SIGKILL],
    at_parent: &[Signal::SIGHUP],
};

fn kills_and_rolls_from_four_sides(daemon: &mut Daemon) {
    let mut watch = Watch::new(daemon, 4, SaysUp::Worker);
    watch.settle();
    watch.storm(&KILLS_AND_ROLLS);
    watch.settle();
    watch.stop();
}

/// The operator, who takes note of every line.
struct Watch<'a> {
    daemon: &'a mut Daemon,
    parent: u32,
    census: Mutex<Census>,
    says_up: SaysUp,
    seed: Seed,
}

impl Watch<'_> {
    fn new(daemon: &mut Daemon, workers: usize, says_up: SaysUp) -> Watch<'_> {
        let parent = daemon.pid();
        Watch { daemon, parent, census: Mutex::new(Census::new(workers, says_up)), says_up, seed: Seed::draw() }
    }

    fn census(&self) -> MutexGuard<'_, Census> {
        self.census.lock().expect("nobody who panicked")
    }

    fn hear_next(&mut self) {
        let line = self.daemon.next_line();
        hear(&line, &self.census, self.daemon);
        assert!(descriptors(self.parent) < DESCRIPTORS, "{} descriptors", descriptors(self.parent));
    }

    /// Until the log and the system agree that everybody is there, and nobody else. What they do not agree about is still
    /// to be told; if it never is, the alarm tells.
    fn settle(&mut self) {
        while !(self.census().is_settled() && self.census().pids() == children(self.parent)) {
            if self.says_up == SaysUp::Worker {
                self.end_roll();
            }
            self.hear_next();
        }
    }

    /// The last blow is one that is told of: whatever was asked for before it is known then, since requests come before
    /// ends.
    fn storm(&mut self, weather: &Weather) {
        let (parent, census, seed) = (self.parent, &self.census, &self.seed);
        thread::scope(|scope| {
            let operators = (0..weather.operators).map(|number| {
                let mut rng = seed.rng(number);
                scope.spawn(move || rage(parent, census, weather, &mut rng))
            });
            let operators: Vec<_> = operators.collect();
            while !operators.iter().all(ScopedJoinHandle::is_finished) {
                if let Some(line) = self.daemon.line_within(Duration::from_millis(10)) {
                    hear(&line, census, self.daemon);
                }
            }
        });
        self.kill(1);
    }

    fn kill(&mut self, mut workers: usize) {
        let mut rng = self.seed.rng(u64::MAX);
        while workers > 0 {
            if strike(self.parent, &mut self.census(), Signal::SIGKILL, &mut rng) {
                workers -= 1;
            } else {
                self.hear_next();
            }
        }
    }

    /// Without readiness, each replacement takes a second. One that dies ends the roll.
    fn end_roll(&mut self) {
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
            self.hear_next();
        }
        while self.census().is_rolling() {
            self.hear_next();
            assert!(self.census().count() <= before.len() + 1, "{}", self.daemon.transcript());
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
        census.hear(&daemon.next_line());
    }
}

fn hear(line: &str, census: &Mutex<Census>, daemon: &Daemon) {
    let mut census = census.lock().expect("nobody who panicked");
    census.hear(line);
    let crowded = census.crowded();
    drop(census);
    assert_eq!(crowded, None, "too many processes of a child:\n{}", daemon.transcript());
}

fn rage(parent: u32, census: &Mutex<Census>, weather: &Weather, rng: &mut SmallRng) {
    for _ in 0..weather.signals {
        thread::sleep(weather.longest_pause.mul_f64(rng.random_range(0.0..1.0)));
        let at = if rng.random_bool(0.6) { weather.at_workers } else { weather.at_parent };
        let &signal = at.choose(rng).expect("a signal");
        if at == weather.at_parent {
            kill(parent, signal);
        } else {
            strike(parent, &mut census.lock().expect("nobody who panicked"), signal, rng);
        }
    }
}

/// Sends it to a worker, if there is one.
fn strike(parent: u32, census: &mut Census, signal: Signal, rng: &mut SmallRng) -> bool {
    census.restartable().into_iter().choose(rng).is_some_and(|pid| send(parent, census, pid, signal))
}

/// Sends it to the process if it is a worker: its pid may be somebody else's by now.
fn send(parent: u32, census: &mut Census, pid: u32, signal: Signal) -> bool {
    let is_sent = is_living_child(pid, parent) && nix::sys::signal::kill(Pid::from_raw(pid as i32), signal).is_ok();
    if is_sent {
        census.was_sent(pid, signal);
    }
    is_sent
}

/// What a storm is drawn from. It cannot be repeated exactly, because the daemon has its part in it.
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

/// The handler for USR1 is there before the first fork, since the default kills. Who is late in his first life is the end
/// of all, so the next one waits for him.
fn six_that_beat() -> Report {
    extern "C" fn reopen(_: libc::c_int) {}
    // SAFETY: the handler does nothing.
    unsafe { signal(Signal::SIGUSR1, SigHandler::Handler(reopen)) }.expect("a handler");
    let service = Prefork::new().workers(6).max_workers(12).max_restarts(100_000);
    let service = service.restart_backoff(Duration::from_millis(1), Duration::from_millis(20));
    let service = service.ready_timeout(Duration::from_secs(2)).heartbeat_timeout(Duration::from_millis(500));
    let (gate, opener) = (Gate::new(), Gate::new());
    let mut first = 0..6;
    let service = service.on_event(move |event| {
        if matches!(event, Event::Started { .. }) && first.next().is_some() {
            gate.pass();
        }
    });
    serve(service.graceful_timeout(Duration::from_secs(1)), move |worker| {
        // Long enough for some of the blows to come before it is ready. From here on SIGTERM is a request.
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

/// In every way that a thread can, until they are asked by SIGUSR2 to be good. Who hangs is found stale, and returns.
fn six_that_fail() -> Report {
    static ARE_GOOD: AtomicBool = AtomicBool::new(false);
    extern "C" fn be_good(_: libc::c_int) {
        ARE_GOOD.store(true, Ordering::Relaxed);
    }
    extern "C" fn reopen(_: libc::c_int) {}
    // SAFETY: the handlers are async-signal-safe.
    unsafe {
        signal(Signal::SIGUSR1, SigHandler::Handler(reopen)).expect("a handler");
        signal(Signal::SIGUSR2, SigHandler::Handler(be_good)).expect("a handler");
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
                _ if ARE_GOOD.load(Ordering::Relaxed) => {}
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

fn four_idle_with_a_window() -> Report {
    let service = Prefork::new().workers(4).max_restarts(10_000).restart_window(Duration::from_secs(60));
    serve(service.restart_backoff(Duration::from_millis(1), Duration::from_millis(20)), |worker| {
        up(worker.id());
        idle()
    })
}

/// It takes a few seconds. But to replace them all, one process has to wait for another one ten thousand times, and on a
/// busy machine each time for a processor as well.
fn two_thousand() -> Report {
    let service = Prefork::new().workers(MANY).max_restarts(MANY as u32);
    serve_watched(service.ready_timeout(Duration::from_secs(60)), 240, |worker| {
        worker.ready();
        idle()
    })
}

fn room_for_many() -> Option<&'static str> {
    /// Some more than there are at a time.
    const TASKS: u64 = if cfg!(taskfork_portable) { 5000 } else { 2500 };
    /// Twice what they were seen to take.
    const MEMORY: u64 = 1 << 30;
    lacks_room(TASKS, MEMORY)
}
