//! Notifications to the service manager during an upgrade (sd_notify(3)).

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Scenario;
use crate::build::{Before, Build, Fate, Pool, Workers};
use crate::daemon::Daemon;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("upgrade_sends_reloading_and_then_ready", succeeds),
        Scenario::new("aborted_upgrade_sends_ready_too", fails),
        Scenario::new("watchdog_is_sent_before_and_after_the_exec", watchdog),
        Scenario::new("stop_in_the_window_sends_stopping", stops),
    ]
}

/// The socket of the service manager.
struct Manager(UnixDatagram);

impl Manager {
    /// Starts a service that notifies a manager. The watchdog interval is in microseconds.
    fn start(build: &Build, watchdog: Option<u32>) -> (Daemon, Manager) {
        let mut manager = None;
        let mut daemon = Daemon::start_by(|scratch| {
            build.install(&scratch.join("program"));
            let path = scratch.join("notify");
            let socket = UnixDatagram::bind(&path).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
            manager = Some(Manager(socket));
            let mut command = Command::new(scratch.join("program"));
            command.env("NOTIFY_SOCKET", path);
            command.envs(watchdog.map(|interval| ("WATCHDOG_USEC", interval.to_string())));
            command
        });
        daemon.ready_workers("old", 2);
        let manager = manager.expect("a manager");
        assert!(manager.next_state().starts_with("READY=1\n"));
        (daemon, manager)
    }

    fn next(&self) -> String {
        let mut message = [0; 1000];
        let length = self.0.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    /// Returns the next message that changes the state of the service.
    fn next_state(&self) -> String {
        loop {
            let message = self.next();
            if ["READY=1", "RELOADING=1", "STOPPING=1"].iter().any(|state| message.contains(state)) {
                return message;
            }
        }
    }
}

fn notifying(name: &str, workers: Workers) -> Build {
    Build { notifies_systemd: true, ..Build::new(name, workers) }
}

/// Returns the microseconds of `CLOCK_MONOTONIC`.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec, and cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// systemd accepts the message RELOADING=1 only with the time, which must not be before the reload was requested.
fn succeeds(workers: Workers) {
    let (mut daemon, manager) = Manager::start(&notifying("old", workers), None);
    for name in ["new", "third"] {
        let before = now();
        let new = notifying(name, workers);
        daemon.begin_upgrade(&new);
        let reloading = manager.next_state();
        let time = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("a time");
        assert!(reloading.contains("RELOADING=1\n"), "{reloading}");
        assert!((before..=now()).contains(&time.parse().expect("a number")), "{reloading}");
        let ready = manager.next_state();
        assert!(ready.contains("READY=1\n") && ready.contains("Upgrade done"), "{ready}");
        daemon.wait_for_end_of_upgrade(&new);
    }
    daemon.stop();
    assert!(manager.next_state().contains("STOPPING=1\n"));
}

fn fails(workers: Workers) {
    let (mut daemon, manager) = Manager::start(&notifying("old", workers), None);
    daemon.begin_upgrade(&notifying("new", workers).pool(Pool::default().fate(Fate::ExitsWith(7))));
    assert!(manager.next_state().contains("RELOADING=1\n"));
    let ready = manager.next_state();
    assert!(ready.contains("READY=1\n") && ready.contains("Upgrade aborted"), "{ready}");
    daemon.stop();
}

fn watchdog(workers: Workers) {
    let (mut daemon, manager) = Manager::start(&notifying("old", workers), Some(200_000));
    daemon.upgrade(&notifying("new", workers));
    while !manager.next_state().contains("Upgrade done") {}
    (0..3).for_each(|_| while manager.next() != "WATCHDOG=1\n" {});
    daemon.stop();
}

fn stops(workers: Workers) {
    let (mut daemon, manager) = Manager::start(&notifying("old", workers), None);
    daemon.begin_upgrade(&notifying("new", workers).window(Before::WaitsAtGate));
    daemon.wait_for("new window ");
    daemon.signal(Signal::SIGTERM);
    daemon.leave_gate_open("window");
    assert!(manager.next_state().contains("RELOADING=1\n"));
    while !manager.next_state().contains("STOPPING=1\n") {}
    daemon.ends_with(0);
}
