//! Signals that arrive faster than the parent can act on them. Linux only.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use taskfork::{Event, Handle, Prefork, Report};

use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Signal, idle, ignore, raise};
use crate::procfs::peak_memory;
use crate::program::{say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_flood_of_sigusr1_neither_fills_nor_blocks_the_parent", ignore_sigusr1, |daemon| {
            let workers = daemon.workers(16);
            let peak = peak_memory(daemon.pid());
            let flood = Flood::start(daemon.pid(), Signal::SIGUSR1);
            flood.wait_for(1_000);
            kill(workers[3].pid, Signal::SIGKILL);
            daemon.wait_for("restarting");
            flood.wait_for(500_000);
            let growth = peak_memory(daemon.pid()).saturating_sub(peak);
            assert!(growth < 4 << 20, "the parent has grown by {} KiB", growth >> 10);
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping ");
            flood.stop();
            kill(workers[0].pid, Signal::SIGKILL);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::reporting("an_endless_stream_of_requests_does_not_delay_exits", scales_for_ever, |daemon| {
            let worker = daemon.worker();
            daemon.signal(Signal::SIGTTIN);
            daemon.wait_for("log Scaled to 2 workers");
            kill(worker.pid, Signal::SIGKILL);
            daemon.wait_for(&format!("{worker} killed by signal 9, restarting"));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::spawning("a_flood_of_handle_calls_does_not_delay_the_parent", calls_its_handle, |daemon| {
            let worker = daemon.worker();
            daemon.wait_for("a million calls");
            let peak = peak_memory(daemon.pid());
            kill(worker.pid, Signal::SIGKILL);
            daemon.wait_for(&format!("{worker} killed by signal 9, restarting"));
            daemon.wait_for("a million calls");
            let growth = peak_memory(daemon.pid()).saturating_sub(peak);
            assert!(growth < 4 << 20, "the parent has grown by {} KiB", growth >> 10);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
    ]
}

/// Worker 0 also ignores SIGTERM, so that the service does not end during the flood. The restarted worker may get
/// SIGUSR1 before it ignores this signal, and then it is restarted again.
fn ignore_sigusr1() -> Report {
    serve(Prefork::new().workers(16).max_restarts(u32::MAX), |worker| {
        ignore(Signal::SIGUSR1);
        if worker.id() == 0 {
            ignore(Signal::SIGTERM);
        }
        up(worker.id());
        idle()
    })
}

/// The parent requests the next change of the number of workers as soon as it has begun the last one.
fn scales_for_ever() -> Report {
    let service = Prefork::new().workers(1).max_restarts(u32::MAX).on_event(|event, _| match event {
        Event::Scaled { workers: 1, .. } => raise(Signal::SIGTTIN),
        Event::Scaled { .. } => raise(Signal::SIGTTOU),
        _ => {}
    });
    serve(service, |worker| {
        up(worker.id());
        idle()
    })
}

/// A thread of the parent calls the handle until the service has ended.
fn calls_its_handle() -> Report {
    let (sender, receiver) = mpsc::channel::<Handle>();
    let is_over = Arc::<AtomicBool>::default();
    let flag = Arc::clone(&is_over);
    let caller = thread::spawn(move || {
        let Ok(handle) = receiver.recv() else { return };
        while !flag.load(Ordering::Relaxed) {
            for _ in 0..1_000_000 {
                handle.scale(1);
            }
            say("a million calls");
        }
    });
    let service = Prefork::new().workers(1).on_event(move |event, handle| {
        if matches!(event, Event::Starting { .. }) {
            sender.send(handle.clone()).expect("the thread");
        }
    });
    let report = serve(service, |worker| {
        up(worker.id());
        idle()
    });
    is_over.store(true, Ordering::Relaxed);
    caller.join().expect("the thread");
    report
}

/// A thread that sends one signal in a loop.
struct Flood {
    sent: Arc<AtomicU32>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Flood {
    fn start(pid: u32, signal: Signal) -> Flood {
        let sent = Arc::new(AtomicU32::new(0));
        let is_over = Arc::new(AtomicBool::new(false));
        let counter = Arc::clone(&sent);
        let flag = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                kill(pid, signal);
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Flood { sent, is_over, thread }
    }

    fn wait_for(&self, signals: u32) {
        while self.sent.load(Ordering::Relaxed) < signals {
            thread::yield_now();
        }
    }

    fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the flood");
    }
}
