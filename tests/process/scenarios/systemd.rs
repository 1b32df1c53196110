//! Tests of `notify_systemd`, which sends notifications to the service manager. Unix only.

use std::fs;
use std::io::ErrorKind;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::process::Command;

use nix::sys::signal::SigSet;
use sd_notify::NotifyState;
use taskfork::{Event, Handle, Prefork, Report, Worker};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Gate, LIFELINES, Signal, own_descriptors};
use crate::program::{EVER, drain, prepare, say, scratch, serve, up};

const SOCKET: &str = "NOTIFY_SOCKET";
const USEC: &str = "WATCHDOG_USEC";
const PID: &str = "WATCHDOG_PID";
const VARIABLES: [&str; 3] = [SOCKET, USEC, PID];
const FINISHED: &str = "READY=1\nSTATUS=Rolling restart done\n";
const UNSENT: &str = "log the service manager cannot be notified: ";
/// A message that the manager gets from another service.
const FOREIGN: &str = "STATUS=Of no interest\n";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("ready_is_sent_once_when_all_workers_are_ready", ready_one_by_one, |daemon| {
            let manager = Manager::of(daemon);
            daemon.workers(2);
            daemon.wait_for_times("event Ready 0", 1);
            manager.has_received_nothing();
            open_gate(daemon, 1);
            assert_eq!(manager.next(), "READY=1\nSTATUS=2 workers are up\n");
            daemon.signal(Signal::SIGTTIN);
            assert_eq!(manager.next(), "STATUS=Scaled to 3 workers\n");
            open_gate(daemon, 1);
            daemon.wait_for("event Ready 2");
            manager.has_received_nothing();
            stops_with_notification(daemon, &manager, 3);
        }),
        Scenario::reporting("without_ready_timeout_ready_is_sent_after_all_starts", started_one_by_one, |daemon| {
            let manager = Manager::of(daemon);
            daemon.wait_for("event Started 0");
            manager.has_received_nothing();
            open_gate(daemon, 1);
            assert_eq!(manager.next(), "READY=1\nSTATUS=2 workers are up\n");
            daemon.wait_for_times("up ", 2);
            stops_with_notification(daemon, &manager, 2);
        }),
        Scenario::reporting("rolling_restart_sends_reloading_with_time_and_then_ready", ready, |daemon| {
            let manager = Manager::of(daemon);
            daemon.workers(2);
            manager.expect_message("READY=1\n");
            let before = now();
            daemon.signal(Signal::SIGHUP);
            let begun = manager.next_reload_time();
            assert!((before..=now()).contains(&begun), "{begun}");
            assert_eq!(manager.next(), FINISHED);
            stops_with_notification(daemon, &manager, 2);
        }),
        Scenario::reporting("aborted_rolling_restart_sends_ready_too", ready_and_fails_later, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            manager.expect_message("READY=1\n");
            daemon.signal(Signal::SIGHUP);
            manager.expect_message("RELOADING=1\n");
            manager.expect_message("READY=1\nSTATUS=Rolling restart aborted: ");
            stops_with_notification(daemon, &manager, 1);
        }),
        Scenario::reporting("stop_during_a_rolling_restart_sends_stopping_last", ready_one_by_one, |daemon| {
            let manager = Manager::of(daemon);
            daemon.workers(2);
            open_gate(daemon, 1);
            manager.expect_message("READY=1\n");
            daemon.signal(Signal::SIGHUP);
            manager.expect_message("RELOADING=1\n");
            daemon.worker();
            // The replacement of worker 1 waits until the gate opens.
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            manager.expect_message("STOPPING=1\n");
            open_gate(daemon, 1);
            daemon.ends_with(0);
            manager.has_received_nothing();
        }),
        Scenario::reporting("failed_startup_sends_stopping_without_ready", fails_at_once, |daemon| {
            let manager = Manager::of(daemon);
            daemon.ends_with(3);
            manager.expect_message("STOPPING=1\n");
            manager.has_received_nothing();
        }),
        Scenario::reporting("giving_up_sends_stopping", fails_when_gate_opens, |daemon| {
            let manager = Manager::of(daemon);
            manager.expect_message("READY=1\n");
            daemon.worker();
            open_gate(daemon, 1);
            manager.expect_message("STOPPING=1\n");
            daemon.end();
            assert!(daemon.said("giving up"), "{}", daemon.transcript());
            manager.has_received_nothing();
        }),
        Scenario::reporting("watchdog_is_sent_until_the_stop", watched, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            (0..3).for_each(|_| while manager.next() != "WATCHDOG=1\n" {});
            // Empties the manager's queue while the parent is stopped, so that the queue has room for the later
            // messages.
            daemon.signal(Signal::SIGSTOP);
            manager.queued_messages();
            daemon.signal(Signal::SIGTERM);
            daemon.signal(Signal::SIGCONT);
            daemon.ends_with(0);
            let messages = manager.queued_messages();
            let (last, before) = messages.split_last().expect("a stop");
            assert!(last.starts_with("STOPPING=1\n"), "{messages:?}");
            assert!(before.iter().all(|message| message == "WATCHDOG=1\n"), "{messages:?}");
        }),
        Scenario::reporting("watchdog_pid_of_another_process_disables_the_watchdog", watched_by_mistake, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            manager.expect_message("READY=1\n");
            // The worker never calls `ready`, so the rolling restart takes a second. If the watchdog of 2 ms were
            // enabled, the parent would send watchdog messages during this second.
            manager.expect_rolling_restart(daemon);
            stops_with_notification(daemon, &manager, 1);
        }),
        Scenario::reporting("workers_do_not_inherit_the_notify_variables", prints_notify_variables, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            manager.expect_message("READY=1\n");
            assert!(daemon.said("left in the environment: []"), "{}", daemon.transcript());
            stops_with_notification(daemon, &manager, 1);
        }),
        Scenario::new("notify_socket_is_closed_in_workers_and_after_return", compares_descriptors, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            manager.expect_message("READY=1\n");
            manager.expect_rolling_restart(daemon);
            daemon.worker();
            stops_with_notification(daemon, &manager, 1);
            assert_eq!(daemon.count("as before: true"), 3, "{}", daemon.transcript());
        }),
        Scenario::reporting("unread_notifications_do_not_block_the_parent", watched_closely, |daemon| {
            let manager = Manager::of(daemon);
            warns_once(daemon);
            assert!(manager.queued_messages().iter().any(|message| message == "WATCHDOG=1\n"));
        }),
        Scenario::reporting("ready_is_sent_after_a_full_queue_drains", ready, |daemon| {
            let manager = Manager::with_full_queue(daemon);
            daemon.workers(2);
            daemon.wait_for_times(UNSENT, 1);
            manager.expect_message("READY=1\n");
            stops_with_notification(daemon, &manager, 2);
        }),
        Scenario::reporting(
            "queued_notifications_keep_their_order_and_reloads_coalesce",
            waits_at_gate_after_stop,
            |daemon| {
                let manager = Manager::with_full_queue(daemon);
                daemon.worker();
                daemon.wait_for_times(UNSENT, 1);
                open_gate(daemon, 2);
                daemon.signal(Signal::SIGHUP);
                daemon.wait_for("log Rolling restart done");
                let before = now();
                daemon.signal(Signal::SIGHUP);
                daemon.wait_for("log Rolling restart done");
                let after = now();
                daemon.signal(Signal::SIGTERM);
                daemon.wait_for("log Stopping");
                manager.expect_message("READY=1\n");
                let begun = manager.next_reload_time();
                assert!((before..=after).contains(&begun), "{begun}");
                assert_eq!(manager.next(), FINISHED);
                manager.expect_message("STOPPING=1\n");
                open_gate(daemon, 1);
                daemon.ends_with(0);
                manager.has_received_nothing();
                assert_eq!(daemon.count(UNSENT), 1, "{}", daemon.transcript());
            },
        ),
        Scenario::reporting("watchdog_waits_for_queued_notifications", watched_closely, |daemon| {
            let manager = Manager::with_full_queue(daemon);
            daemon.worker();
            daemon.wait_for_times(UNSENT, 1);
            while !manager.next().starts_with("READY=1\n") {}
            while manager.next() != "WATCHDOG=1\n" {}
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("missing_manager_is_logged_once", unmanaged, warns_once),
        #[cfg(target_os = "linux")]
        Scenario::reporting("abstract_notify_socket_is_supported", at_abstract_address, |daemon| {
            let address = abstract_address(daemon.pid());
            let manager = Manager::at(daemon, &SocketAddr::from_abstract_name(address).expect("an address"));
            daemon.worker();
            manager.expect_message("READY=1\n");
            stops_with_notification(daemon, &manager, 1);
        }),
        Scenario::reporting("worker_restart_sends_no_notification", ready_and_fails_once, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            manager.expect_message("READY=1\n");
            open_gate(daemon, 1);
            daemon.worker();
            daemon.wait_for("event Ready 0");
            manager.has_received_nothing();
            stops_with_notification(daemon, &manager, 1);
        }),
    ]
}

/// A simulated service manager: the receiving end of NOTIFY_SOCKET.
pub struct Manager(UnixDatagram);

impl Manager {
    pub fn of(daemon: &mut Daemon) -> Manager {
        let path = daemon.scratch().join("notify");
        Manager::at(daemon, &SocketAddr::from_pathname(path).expect("an address"))
    }

    fn at(daemon: &mut Daemon, address: &SocketAddr) -> Manager {
        let manager = Manager::listening(address);
        start(daemon);
        manager
    }

    /// Fills the manager's queue with messages of another service before the daemon starts.
    fn with_full_queue(daemon: &mut Daemon) -> Manager {
        let address = SocketAddr::from_pathname(daemon.scratch().join("notify")).expect("an address");
        let manager = Manager::listening(&address);
        while send_from_new_socket(&address).is_ok() {}
        start(daemon);
        manager
    }

    fn listening(address: &SocketAddr) -> Manager {
        let socket = UnixDatagram::bind_addr(address).expect("a socket");
        // The watchdog ends every program before this timeout expires.
        socket.set_read_timeout(Some(EVER)).expect("a timeout");
        Manager(socket)
    }

    /// Returns the next message of the tested service. Skips messages of the other service.
    pub fn next(&self) -> String {
        let mut messages = std::iter::repeat_with(|| self.receive().expect("a message"));
        messages.find(|message| message != FOREIGN).expect("a message")
    }

    /// Reads the next message, which must be RELOADING=1, and returns its MONOTONIC_USEC.
    fn next_reload_time(&self) -> i128 {
        let message = self.next();
        let time = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.lines().next());
        time.and_then(|time| time.parse().ok()).unwrap_or_else(|| panic!("{message}"))
    }

    /// Asserts that the next message begins with `beginning`.
    pub fn expect_message(&self, beginning: &str) {
        let message = self.next();
        assert!(message.starts_with(beginning), "{message}");
    }

    /// Requests a rolling restart, and asserts that the next messages report its start and its success.
    fn expect_rolling_restart(&self, daemon: &Daemon) {
        daemon.signal(Signal::SIGHUP);
        self.expect_message("RELOADING=1\n");
        assert_eq!(self.next(), FINISHED);
    }

    fn receive(&self) -> std::io::Result<String> {
        let mut message = [0; 1000];
        let len = loop {
            match self.0.recv(&mut message) {
                // A receive with a timeout can fail with EINTR after this process was stopped and continued: signal(7).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        Ok(String::from_utf8(message[..len].to_vec()).expect("a text"))
    }

    /// Returns the messages that are in the queue now.
    pub fn queued_messages(&self) -> Vec<String> {
        self.0.set_nonblocking(true).expect("a socket");
        let messages = std::iter::from_fn(|| match self.receive() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            received => Some(received.expect("a message")),
        });
        let messages = messages.collect();
        self.0.set_nonblocking(false).expect("a socket");
        messages
    }

    pub fn has_received_nothing(&self) {
        assert_eq!(self.queued_messages(), Vec::<String>::new());
    }
}

/// Lets the program start its service, now that the manager's socket exists.
fn start(daemon: &mut Daemon) {
    daemon.wait_for("waits to be managed");
    daemon.signal(Signal::SIGUSR2);
}

/// Sends a message of another service. Each call uses a new socket, because one socket's send buffer limits how much of
/// the queue it can fill.
fn send_from_new_socket(address: &SocketAddr) -> std::io::Result<usize> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(FOREIGN.as_bytes(), address)
}

/// Lets the daemon do a rolling restart and then stop. Asserts that it warns exactly once.
fn warns_once(daemon: &mut Daemon) {
    daemon.worker();
    daemon.wait_for_times(UNSENT, 1);
    daemon.signal(Signal::SIGHUP);
    daemon.worker();
    daemon.wait_for_times("log Rolling restart done", 1);
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
    assert_eq!(daemon.count(UNSENT), 1, "{}", daemon.transcript());
}

/// Stops the daemon, and asserts that the only remaining message is STOPPING=1.
fn stops_with_notification(daemon: &mut Daemon, manager: &Manager, workers: usize) {
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
    assert_eq!(manager.queued_messages(), [format!("STOPPING=1\nSTATUS=Stopping {workers} processes\n")]);
}

pub fn open_gate(daemon: &Daemon, times: usize) {
    fs::write(daemon.scratch().join("gate"), vec![0; times]).expect("a gate");
}

/// Returns the monotonic time in microseconds.
fn now() -> i128 {
    match NotifyState::monotonic_usec_now() {
        Ok(NotifyState::MonotonicUsec(now)) => now,
        other => panic!("{other:?}"),
    }
}

const MANAGED: &str = "MANAGED";

/// Waits for SIGUSR2, and then executes this program again with NOTIFY_SOCKET and `variables` set, as systemd does. In
/// the executed program, returns at once.
pub fn manage(variables: &[(&str, &str)]) {
    if std::env::var_os(MANAGED).is_some() {
        return;
    }
    let start_signal = SigSet::from(Signal::SIGUSR2);
    start_signal.thread_block().expect("a mask");
    prepare();
    say("waits to be managed");
    start_signal.wait().expect("a signal");
    launch(variables);
}

/// Executes this program again with NOTIFY_SOCKET and `variables` set. In the executed program, returns at once.
fn launch(variables: &[(&str, &str)]) {
    if std::env::var_os(MANAGED).is_some() {
        return;
    }
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(std::env::args_os().skip(1)).env(MANAGED, "yes").env(SOCKET, scratch().join("notify"));
    panic!("{}", command.envs(variables.iter().copied()).exec());
}

fn service(workers: usize) -> Prefork {
    Prefork::new().workers(workers).notify_systemd()
}

fn drained(service: Prefork) -> Report {
    serve(service, |worker| be_ready_and_drain(&worker))
}

fn be_ready_and_drain(worker: &Worker) {
    assert!(!worker.stop_requested());
    up(worker.id());
    worker.ready();
    drain(worker);
}

/// Worker 0 becomes ready at once, and the other workers become ready when the gate opens. The parent prints each
/// `Event::Ready`.
fn ready_one_by_one() -> Report {
    manage(&[]);
    let gate = Gate::new();
    serve(service(2).ready_timeout(EVER).on_event(print_ready), move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        if worker.id() > 0 {
            gate.pass();
        }
        worker.ready();
        drain(&worker);
    })
}

fn print_ready(event: &Event, _: &Handle) {
    if let Event::Ready { process } = event {
        say(&format!("event Ready {}", process.id));
    }
}

/// The parent starts worker 0, and then waits until the gate opens.
fn started_one_by_one() -> Report {
    manage(&[]);
    let gate = Gate::new();
    let service = service(2).on_event(move |event, _| {
        if let Event::Started { process } = event {
            say(&format!("event Started {}", process.id));
            if process.id == 0 {
                gate.pass();
            }
        }
    });
    drained(service)
}

fn ready() -> Report {
    manage(&[]);
    drained(service(2).ready_timeout(EVER))
}

/// After a stop request, the worker waits until the gate opens, and then exits.
fn waits_at_gate_after_stop() -> Report {
    manage(&[]);
    let gate = Gate::new();
    serve(service(1).ready_timeout(EVER).graceful_timeout(EVER), move |worker| {
        be_ready_and_drain(&worker);
        gate.pass();
    })
}

fn ready_and_fails_once() -> Report {
    manage(&[]);
    let gate = Gate::new();
    serve(service(1).ready_timeout(EVER).on_event(print_ready), move |worker| {
        if worker.generation() > 0 {
            return be_ready_and_drain(&worker);
        }
        up(worker.id());
        worker.ready();
        gate.pass();
        resume_unwind(Box::new("once"))
    })
}

fn ready_and_fails_later() -> Report {
    manage(&[]);
    serve(service(1).ready_timeout(EVER), |worker| {
        if worker.generation() > 0 {
            resume_unwind(Box::new("the replacement"));
        }
        be_ready_and_drain(&worker);
    })
}

fn fails_at_once() -> Report {
    manage(&[]);
    serve(service(1).ready_timeout(EVER), |_| resume_unwind(Box::new("at once")))
}

fn fails_when_gate_opens() -> Report {
    manage(&[]);
    let gate = Gate::new();
    serve(service(1).max_restarts(0), move |worker| {
        up(worker.id());
        gate.pass();
        resume_unwind(Box::new("for good"))
    })
}

fn watched() -> Report {
    manage(&[(USEC, "200000"), (PID, &std::process::id().to_string())]);
    drained(service(1))
}

fn watched_by_mistake() -> Report {
    manage(&[(USEC, "2000"), (PID, "1")]);
    serve(service(1), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

/// Without WATCHDOG_PID, every process that has WATCHDOG_USEC must send watchdog messages.
fn watched_closely() -> Report {
    manage(&[(USEC, "2000")]);
    drained(service(1))
}

fn unmanaged() -> Report {
    launch(&[(USEC, "2000")]);
    drained(service(1))
}

#[cfg(target_os = "linux")]
fn at_abstract_address() -> Report {
    manage(&[(SOCKET, &format!("@{}", abstract_address(std::process::id())))]);
    drained(service(1))
}

#[cfg(target_os = "linux")]
fn abstract_address(pid: u32) -> String {
    format!("taskfork-test-notify-{pid}")
}

fn prints_notify_variables() -> Report {
    manage(&[(USEC, "60000000"), (PID, &std::process::id().to_string())]);
    serve(service(1), |worker| {
        let left: Vec<_> = VARIABLES.into_iter().filter(|name| std::env::var_os(name).is_some()).collect();
        say(&format!("left in the environment: {left:?}"));
        be_ready_and_drain(&worker);
    })
}

fn compares_descriptors() {
    manage(&[]);
    prepare();
    let before = own_descriptors();
    let report = serve(service(1), {
        let before = before.clone();
        move |worker| {
            let open = own_descriptors();
            // A worker has a descriptor that wakes the parent. On some platforms it needs another one to detect the
            // parent's exit.
            let own = 1 + LIFELINES;
            let is_as_before = open.is_superset(&before) && open.len() == before.len() + own;
            say(&format!("as before: {is_as_before} {before:?} {open:?}"));
            be_ready_and_drain(&worker);
        }
    });
    say(&format!("as before: {}", own_descriptors() == before));
    assert!(report.is_success(), "{report:?}");
}
