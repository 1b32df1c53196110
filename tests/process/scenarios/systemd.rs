//! What the service manager is told. Unix only.

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
use taskfork::{Event, Prefork, Report, Worker};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Gate, LIFELINES, Signal, own_descriptors};
use crate::program::{EVER, drain, prepare, say, scratch, serve, up};

const SOCKET: &str = "NOTIFY_SOCKET";
const USEC: &str = "WATCHDOG_USEC";
const PID: &str = "WATCHDOG_PID";
const VARIABLES: [&str; 3] = [SOCKET, USEC, PID];
const ROLLED: &str = "READY=1\nSTATUS=Rolling restart done\n";
const UNTOLD: &str = "log the service manager cannot be notified: ";
/// What another service says.
const FOREIGN: &str = "STATUS=Of no interest\n";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("ready_is_said_once_when_all_workers_are_ready", ready_one_by_one, |daemon| {
            let manager = Manager::of(daemon);
            daemon.workers(2);
            daemon.wait_for_times("told that 0 is ready", 1);
            manager.has_heard_nothing();
            open_gate(daemon, 1);
            assert_eq!(manager.next(), "READY=1\nSTATUS=2 workers are up\n");
            daemon.signal(Signal::SIGTTIN);
            assert_eq!(manager.next(), "STATUS=Scaled to 3 processes\n");
            open_gate(daemon, 1);
            daemon.wait_for("told that 2 is ready");
            manager.has_heard_nothing();
            stops_saying_so(daemon, &manager, 3);
        }),
        Scenario::reporting(
            "where_nobody_asks_for_readiness_ready_is_said_when_all_are_started",
            started_one_by_one,
            |daemon| {
                let manager = Manager::of(daemon);
                daemon.wait_for("told that 0 is started");
                manager.has_heard_nothing();
                open_gate(daemon, 1);
                assert_eq!(manager.next(), "READY=1\nSTATUS=2 workers are up\n");
                daemon.wait_for_times("up ", 2);
                stops_saying_so(daemon, &manager, 2);
            },
        ),
        Scenario::reporting("a_roll_is_told_at_its_beginning_with_the_time_and_at_its_end", ready, |daemon| {
            let manager = Manager::of(daemon);
            daemon.workers(2);
            manager.hears("READY=1\n");
            let before = now();
            daemon.signal(Signal::SIGHUP);
            let begun = manager.next_roll();
            assert!((before..=now()).contains(&begun), "{begun}");
            assert_eq!(manager.next(), ROLLED);
            stops_saying_so(daemon, &manager, 2);
        }),
        Scenario::reporting("a_roll_that_fails_is_over_as_well", ready_and_fails_later, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            manager.hears("READY=1\n");
            daemon.signal(Signal::SIGHUP);
            manager.hears("RELOADING=1\n");
            manager.hears("READY=1\nSTATUS=Rolling restart aborted: ");
            stops_saying_so(daemon, &manager, 1);
        }),
        Scenario::reporting("a_stop_in_a_roll_is_the_last_thing_said", ready_one_by_one, |daemon| {
            let manager = Manager::of(daemon);
            daemon.workers(2);
            open_gate(daemon, 1);
            manager.hears("READY=1\n");
            daemon.signal(Signal::SIGHUP);
            manager.hears("RELOADING=1\n");
            daemon.worker();
            // The second one's replacement waits.
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            manager.hears("STOPPING=1\n");
            open_gate(daemon, 1);
            daemon.ends_with(0);
            manager.has_heard_nothing();
        }),
        Scenario::reporting("a_startup_that_fails_is_a_stop_of_what_never_was_ready", fails_at_once, |daemon| {
            let manager = Manager::of(daemon);
            daemon.ends_with(3);
            manager.hears("STOPPING=1\n");
            manager.has_heard_nothing();
        }),
        Scenario::reporting("to_give_up_is_to_stop", fails_when_told, |daemon| {
            let manager = Manager::of(daemon);
            manager.hears("READY=1\n");
            daemon.worker();
            open_gate(daemon, 1);
            manager.hears("STOPPING=1\n");
            daemon.end();
            assert!(daemon.said("giving up"), "{}", daemon.transcript());
            manager.has_heard_nothing();
        }),
        Scenario::reporting("signs_of_life_are_given_until_the_stop", watched, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            (0..3).for_each(|_| while manager.next() != "WATCHDOG=1\n" {});
            // What waits for the manager leaves room for what follows.
            daemon.signal(Signal::SIGSTOP);
            manager.all();
            daemon.signal(Signal::SIGTERM);
            daemon.signal(Signal::SIGCONT);
            daemon.ends_with(0);
            let said = manager.all();
            let (last, before) = said.split_last().expect("a stop");
            assert!(last.starts_with("STOPPING=1\n"), "{said:?}");
            assert!(before.iter().all(|message| message == "WATCHDOG=1\n"), "{said:?}");
        }),
        Scenario::reporting("a_watchdog_of_another_process_is_none", watched_by_mistake, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            manager.hears("READY=1\n");
            // A replacement that says nothing has to live for a second.
            manager.hears_of_roll(daemon);
            stops_saying_so(daemon, &manager, 1);
        }),
        Scenario::reporting("a_worker_knows_of_no_service_manager", looks_around, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            manager.hears("READY=1\n");
            assert!(daemon.said("left in the environment: []"), "{}", daemon.transcript());
            stops_saying_so(daemon, &manager, 1);
        }),
        Scenario::new("nothing_of_it_is_open_in_a_fork_nor_in_the_parent_afterwards", compares_descriptors, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            manager.hears("READY=1\n");
            manager.hears_of_roll(daemon);
            daemon.worker();
            stops_saying_so(daemon, &manager, 1);
            assert_eq!(daemon.count("as before: true"), 3, "{}", daemon.transcript());
        }),
        Scenario::reporting("a_manager_that_does_not_read_holds_nobody_up", watched_closely, |daemon| {
            let manager = Manager::of(daemon);
            warns_once(daemon);
            assert!(manager.all().iter().any(|message| message == "WATCHDOG=1\n"));
        }),
        Scenario::reporting("a_manager_whose_queue_was_full_hears_that_all_are_ready", ready, |daemon| {
            let manager = Manager::with_full_queue(daemon);
            daemon.workers(2);
            daemon.wait_for_times(UNTOLD, 1);
            manager.hears("READY=1\n");
            stops_saying_so(daemon, &manager, 2);
        }),
        Scenario::reporting("what_did_not_fit_is_said_in_its_order_and_of_rolls_the_last", lingers, |daemon| {
            let manager = Manager::with_full_queue(daemon);
            daemon.worker();
            daemon.wait_for_times(UNTOLD, 1);
            open_gate(daemon, 2);
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log Rolling restart done");
            let before = now();
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log Rolling restart done");
            let after = now();
            daemon.signal(Signal::SIGTERM);
            daemon.wait_for("log Stopping");
            manager.hears("READY=1\n");
            let begun = manager.next_roll();
            assert!((before..=after).contains(&begun), "{begun}");
            assert_eq!(manager.next(), ROLLED);
            manager.hears("STOPPING=1\n");
            open_gate(daemon, 1);
            daemon.ends_with(0);
            manager.has_heard_nothing();
            assert_eq!(daemon.count(UNTOLD), 1, "{}", daemon.transcript());
        }),
        Scenario::reporting("signs_of_life_wait_for_what_has_to_be_said", watched_closely, |daemon| {
            let manager = Manager::with_full_queue(daemon);
            daemon.worker();
            daemon.wait_for_times(UNTOLD, 1);
            while !manager.next().starts_with("READY=1\n") {}
            while manager.next() != "WATCHDOG=1\n" {}
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("a_manager_that_is_not_there_is_warned_of_once", unmanaged, warns_once),
        #[cfg(target_os = "linux")]
        Scenario::reporting("an_address_that_is_no_file_is_one_too", at_abstract_address, |daemon| {
            let address = abstract_address(daemon.pid());
            let manager = Manager::at(daemon, &SocketAddr::from_abstract_name(address).expect("an address"));
            daemon.worker();
            manager.hears("READY=1\n");
            stops_saying_so(daemon, &manager, 1);
        }),
        Scenario::reporting("of_a_restart_nothing_is_said", ready_and_fails_once, |daemon| {
            let manager = Manager::of(daemon);
            daemon.worker();
            manager.hears("READY=1\n");
            open_gate(daemon, 1);
            daemon.worker();
            daemon.wait_for("told that 0 is ready");
            manager.has_heard_nothing();
            stops_saying_so(daemon, &manager, 1);
        }),
    ]
}

/// The side of systemd.
struct Manager(UnixDatagram);

impl Manager {
    fn of(daemon: &mut Daemon) -> Manager {
        let path = daemon.scratch().join("notify");
        Manager::at(daemon, &SocketAddr::from_pathname(path).expect("an address"))
    }

    fn at(daemon: &mut Daemon, address: &SocketAddr) -> Manager {
        let manager = Manager::listening(address);
        start(daemon);
        manager
    }

    /// Others have said so much that there is no room for more.
    fn with_full_queue(daemon: &mut Daemon) -> Manager {
        let address = SocketAddr::from_pathname(daemon.scratch().join("notify")).expect("an address");
        let manager = Manager::listening(&address);
        while said_by_another(&address).is_ok() {}
        start(daemon);
        manager
    }

    fn listening(address: &SocketAddr) -> Manager {
        let socket = UnixDatagram::bind_addr(address).expect("a socket");
        // Longer than any program lives.
        socket.set_read_timeout(Some(EVER)).expect("a timeout");
        Manager(socket)
    }

    /// Of the service.
    fn next(&self) -> String {
        let mut messages = std::iter::repeat_with(|| self.receive().expect("a message"));
        messages.find(|message| message != FOREIGN).expect("a message")
    }

    /// When it begins, in microseconds.
    fn next_roll(&self) -> i128 {
        let message = self.next();
        let time = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.lines().next());
        time.and_then(|time| time.parse().ok()).unwrap_or_else(|| panic!("{message}"))
    }

    /// The next message begins so.
    fn hears(&self, beginning: &str) {
        let message = self.next();
        assert!(message.starts_with(beginning), "{message}");
    }

    /// Of one that succeeds, and nothing else.
    fn hears_of_roll(&self, daemon: &Daemon) {
        daemon.signal(Signal::SIGHUP);
        self.hears("RELOADING=1\n");
        assert_eq!(self.next(), ROLLED);
    }

    fn receive(&self) -> std::io::Result<String> {
        let mut message = [0; 1000];
        let len = loop {
            match self.0.recv(&mut message) {
                // A wait that has a timeout ends so when this process has been frozen.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        Ok(String::from_utf8(message[..len].to_vec()).expect("a text"))
    }

    /// What is there already.
    fn all(&self) -> Vec<String> {
        self.0.set_nonblocking(true).expect("a socket");
        let said = std::iter::from_fn(|| match self.receive() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            received => Some(received.expect("a message")),
        });
        let said = said.collect();
        self.0.set_nonblocking(false).expect("a socket");
        said
    }

    fn has_heard_nothing(&self) {
        assert_eq!(self.all(), Vec::<String>::new());
    }
}

/// The program starts in earnest once there is somebody to be told.
fn start(daemon: &mut Daemon) {
    daemon.wait_for("waits to be managed");
    daemon.signal(Signal::SIGUSR2);
}

/// From a socket of its own, since each holds so much only.
fn said_by_another(address: &SocketAddr) -> std::io::Result<usize> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(FOREIGN.as_bytes(), address)
}

/// Through a rolling restart to the end.
fn warns_once(daemon: &mut Daemon) {
    daemon.worker();
    daemon.wait_for_times(UNTOLD, 1);
    daemon.signal(Signal::SIGHUP);
    daemon.worker();
    daemon.wait_for_times("log Rolling restart done", 1);
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
    assert_eq!(daemon.count(UNTOLD), 1, "{}", daemon.transcript());
}

fn stops_saying_so(daemon: &mut Daemon, manager: &Manager, workers: usize) {
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
    assert_eq!(manager.all(), [format!("STOPPING=1\nSTATUS=Stopping {workers} processes\n")]);
}

fn open_gate(daemon: &Daemon, times: usize) {
    fs::write(daemon.scratch().join("gate"), vec![0; times]).expect("a gate");
}

/// In microseconds.
fn now() -> i128 {
    match NotifyState::monotonic_usec_now() {
        Ok(NotifyState::MonotonicUsec(now)) => now,
        other => panic!("{other:?}"),
    }
}

const MANAGED: &str = "MANAGED";

/// The launcher of itself, as systemd is, once somebody listens. The program has this variable, and whichever else.
fn manage(variables: &[(&str, &str)]) {
    if std::env::var_os(MANAGED).is_some() {
        return;
    }
    let told = SigSet::from(Signal::SIGUSR2);
    told.thread_block().expect("a mask");
    prepare();
    say("waits to be managed");
    told.wait().expect("a signal");
    launch(variables);
}

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

/// The first worker is ready at once, the others when the gate is opened, and the parent says who is when it is told.
fn ready_one_by_one() -> Report {
    manage(&[]);
    let gate = Gate::new();
    serve(service(2).ready_timeout(EVER).on_event(tell_of_the_ready), move |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        if worker.id() > 0 {
            gate.pass();
        }
        worker.ready();
        drain(&worker);
    })
}

fn tell_of_the_ready(event: &Event) {
    if let Event::Ready { process } = event {
        say(&format!("told that {} is ready", process.id));
    }
}

/// The parent waits after the first start.
fn started_one_by_one() -> Report {
    manage(&[]);
    let gate = Gate::new();
    let service = service(2).on_event(move |event| {
        if let Event::Started { process } = event {
            say(&format!("told that {} is started", process.id));
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

/// Once it is asked to stop, the worker waits for the gate.
fn lingers() -> Report {
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
    serve(service(1).ready_timeout(EVER).on_event(tell_of_the_ready), move |worker| {
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

fn fails_when_told() -> Report {
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

/// By whoever has the variable.
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

fn looks_around() -> Report {
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
            // That by which it wakes the parent.
            let own = 1 + LIFELINES;
            let is_as_before = open.is_superset(&before) && open.len() == before.len() + own;
            say(&format!("as before: {is_as_before} {before:?} {open:?}"));
            be_ready_and_drain(&worker);
        }
    });
    say(&format!("as before: {}", own_descriptors() == before));
    assert!(report.is_success(), "{report:?}");
}
