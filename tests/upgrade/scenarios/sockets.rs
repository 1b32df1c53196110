//! Listeners through an upgrade.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use super::Scenario;
use crate::build::{Before, Build, Fate, Pool, Workers};
use crate::client::{self, Client};
use crate::daemon::{Daemon, until};
use crate::procfs;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("socket_and_port_stay_the_same", same_socket),
        Scenario::new("per_worker_sockets_stay_the_same", per_worker),
        Scenario::new("per_worker_sockets_are_added_and_retired", per_worker_scaled),
        Scenario::new("udp_socket_stays_the_same", udp),
        Scenario::new("unix_socket_keeps_its_file", unix),
        Scenario::new("file_of_a_dropped_unix_socket_is_removed", dropped_unix),
        Scenario::new("activated_sockets_are_carried_over", activated),
        Scenario::new("queued_connections_are_served_after_the_upgrade", queued),
        Scenario::new("client_keeps_its_connection_through_an_upgrade", kept_connection),
        Scenario::new("new_listener_is_bound_and_old_one_is_closed", new_listener),
        Scenario::new("listener_on_a_used_port_aborts_the_upgrade", used_port),
        Scenario::new("failed_trial_closes_its_new_listener", failed_new_listener),
        Scenario::new("foreign_listener_refuses_the_upgrade", foreign),
        Scenario::new("change_to_per_worker_sockets_is_refused", becomes_per_worker),
        Scenario::new("several_listeners_keep_their_order", several),
        Scenario::new("bound_tcp_socket_stays_the_same", |workers| bound(workers, "127.0.0.1:0")),
        Scenario::new("bound_udp_socket_stays_the_same", |workers| bound(workers, "udp:127.0.0.1:0")),
        Scenario::new("bound_unix_socket_stays_the_same", |workers| bound(workers, "unix:SCRATCH/bound")),
        Scenario::forking("fork_processes_keeps_a_bound_socket", bound_by_fork_processes),
    ]
}

fn listening(address: &str) -> Pool {
    Pool { listens: vec![address.into()], ..Pool::default() }
}

/// Returns the inodes of the sockets that the parent and this worker have in common.
fn shared_sockets(daemon: &Daemon, worker: u32) -> BTreeSet<String> {
    &procfs::sockets(daemon.pid()) & &procfs::sockets(worker)
}

/// Upgrades to a build with the same listeners, and checks that the workers of both have the same sockets.
fn keeps_sockets(workers: Workers, pool: Pool) -> Daemon {
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(pool.clone()));
    let old = daemon.ready_workers("old", 2);
    let before: Vec<_> = old.iter().map(|up| shared_sockets(&daemon, up.pid)).collect();
    let address = daemon.address(0);
    assert_eq!(client::ask(&address).build, "old");
    daemon.begin_upgrade(&Build::new("new", workers).pool(pool));
    let new = daemon.workers("new", 2);
    daemon.wait_for("new log Upgrade done");
    let after: Vec<_> = new.iter().map(|up| shared_sockets(&daemon, up.pid)).collect();
    for (before, after) in before.iter().zip(&after) {
        assert!(!(before & after).is_empty(), "{before:?} {after:?}:\n{}", daemon.transcript());
    }
    assert_eq!(client::ask(&address).build, "new");
    daemon
}

fn same_socket(workers: Workers) {
    keeps_sockets(workers, Pool::default()).stop();
}

fn per_worker(workers: Workers) {
    let mut daemon = keeps_sockets(workers, Pool { is_per_worker: true, ..Pool::default() });
    let address = daemon.address(0);
    let ids: BTreeSet<usize> = (0..100).map(|_| client::ask(&address).id).collect();
    assert_eq!(ids, BTreeSet::from([0, 1]));
    daemon.stop();
}

/// The new program has one worker more, and the third one two fewer.
fn per_worker_scaled(workers: Workers) {
    let pool = |workers| Pool { is_per_worker: true, ..Pool::of(workers) };
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(pool(2)));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers).pool(pool(3)));
    daemon.workers("new", 3);
    daemon.wait_until_runs(&["new - 0", "new - 1", "new - 2"]);
    let address = daemon.address(0);
    let ids: BTreeSet<usize> = (0..200).map(|_| client::ask(&address).id).collect();
    assert_eq!(ids, BTreeSet::from([0, 1, 2]));
    daemon.begin_upgrade(&Build::new("third", workers).pool(pool(1)));
    daemon.worker("third");
    daemon.wait_until_runs(&["third - 0"]);
    (0..100).for_each(|_| assert_eq!(client::ask(&address).build, "third"));
    daemon.stop();
}

fn udp(workers: Workers) {
    keeps_sockets(workers, listening("udp:127.0.0.1:0")).stop();
}

fn unix(workers: Workers) {
    let pool = || listening("unix:SCRATCH/socket");
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(pool()));
    daemon.ready_workers("old", 2);
    let path = daemon.scratch().join("socket");
    let inode = || path.symlink_metadata().map(|file| file.ino()).ok();
    let before = inode();
    daemon.upgrade(&Build::new("new", workers).pool(pool()));
    assert_eq!(inode(), before);
    assert_eq!(client::ask(&daemon.address(0)).build, "new");
    daemon.stop();
    assert_eq!(inode(), None);
}

/// The new program does not listen on the path any more.
fn dropped_unix(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(listening("unix:SCRATCH/socket")));
    daemon.ready_workers("old", 2);
    let path = daemon.scratch().join("socket");
    let mut client = Client::connect(&daemon.address(0)).expect("a connection");
    let answer = client.ask();
    let new = Build::new("new", workers);
    daemon.begin_upgrade(&new);
    daemon.workers("new", 2);
    assert_eq!(client.ask(), answer);
    drop(client);
    daemon.wait_for_end_of_upgrade(&new);
    assert!(until(|| !path.exists()), "{}", daemon.transcript());
    daemon.stop();
}

/// A shell passes a socket as systemd does (sd_listen_fds(3)).
fn activated(workers: Workers) {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address").to_string();
    let build = |name: &str| Build { is_activated: true, ..Build::new(name, workers) };
    let mut daemon = Daemon::start_by(|scratch| {
        build("old").install(&scratch.join("program"));
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$1\"", "sh"]).arg(scratch.join("program"));
        pass_as_3(&mut command, socket.as_raw_fd());
        command
    });
    daemon.ready_workers("old", 2);
    for name in ["new", "third"] {
        daemon.upgrade(&build(name));
        assert_eq!(client::ask(&address).build, name);
    }
    daemon.stop();
}

/// Makes the command inherit this descriptor with the number 3, the first one of sd_listen_fds(3).
fn pass_as_3(command: &mut Command, number: i32) {
    let pass = move || {
        // SAFETY: dup2(2) and fcntl(2) only change descriptors of this process, which executes a program now.
        match unsafe { if number == 3 { libc::fcntl(3, libc::F_SETFD, 0) } else { libc::dup2(number, 3) } } {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec it only calls dup2(2) and fcntl(2), which are async-signal-safe.
    unsafe { command.pre_exec(pass) };
}

/// No worker accepts connections while the upgrade is in progress. (All workers are stopped.)
fn queued(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    let old = daemon.ready_workers("old", 2);
    let new = Build::new("new", workers).window(Before::WaitsAtGate);
    daemon.begin_upgrade(&new);
    let trial = daemon.worker("new");
    daemon.wait_for("new window ");
    let pids = [old[0].pid, old[1].pid, trial.pid];
    pids.into_iter().for_each(|pid| crate::daemon::kill(pid, Signal::SIGSTOP));
    let address = daemon.address(0);
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(&address).expect("a place in the queue")).collect();
    daemon.leave_gate_open("window");
    daemon.wait_for("The new program supervises");
    pids.into_iter().for_each(|pid| crate::daemon::kill(pid, Signal::SIGCONT));
    clients.iter_mut().for_each(|client| assert_ne!(client.ask().pid, 0));
    drop(clients);
    daemon.wait_for_end_of_upgrade(&new);
    daemon.stop();
}

fn kept_connection(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let mut client = Client::connect(&daemon.address(0)).expect("a connection");
    let answer = client.ask();
    let new = Build::new("new", workers);
    daemon.begin_upgrade(&new);
    daemon.workers("new", 2);
    daemon.wait_for_times("The new program supervises", 1);
    (0..10).for_each(|_| assert_eq!(client.ask(), answer));
    drop(client);
    daemon.wait_for_end_of_upgrade(&new);
    daemon.stop();
}

/// An old worker with a client keeps the old address open.
fn new_listener(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(listening("127.0.0.1:0")));
    daemon.ready_workers("old", 2);
    let old_address = daemon.address(0);
    let mut client = Client::connect(&old_address).expect("a connection");
    client.ask();
    let new = Build::new("new", workers).pool(listening("unix:SCRATCH/socket"));
    daemon.begin_upgrade(&new);
    daemon.workers("new", 2);
    let new_address = format!("unix:{}/socket", daemon.scratch().display());
    assert_eq!(client::ask(&new_address).build, "new");
    assert_eq!(client.ask().build, "old");
    drop(client);
    daemon.wait_for_end_of_upgrade(&new);
    assert!(until(|| TcpStream::connect(&old_address).is_err()), "{}", daemon.transcript());
    daemon.stop();
    assert!(!Path::new(new_address.trim_start_matches("unix:")).exists());
}

fn used_port(workers: Workers) {
    let used = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let address = used.local_addr().expect("an address").to_string();
    daemon.begin_upgrade(&Build::new("new", workers).pool(listening(&address)));
    let line = daemon.wait_for("log Upgrade aborted: ");
    assert!(line.contains(&address) && line.contains("in use"), "{line}");
    daemon.wait_until_runs(&["old - 0", "old - 1"]);
    daemon.stop();
}

/// The trial fails after the new listener was opened.
fn failed_new_listener(workers: Workers) {
    let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let both = vec!["127.0.0.1:0".into(), format!("udp:{port}"), "unix:SCRATCH/socket".into()];
    let pool = Pool { listens: both, fate: Fate::ExitsWith(7), ..Pool::default() };
    daemon.begin_upgrade(&Build::new("new", workers).pool(pool));
    daemon.wait_for("log Upgrade aborted: ");
    assert!(until(|| UdpSocket::bind(port).is_ok()), "{port} is used:\n{}", daemon.transcript());
    assert!(until(|| !daemon.scratch().join("socket").exists()), "socket exists:\n{}", daemon.transcript());
    daemon.stop();
}

fn foreign(workers: Workers) {
    let mut daemon = Daemon::start(&Build { has_foreign_listener: true, ..Build::new("old", workers) });
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers));
    let line = daemon.wait_for("log Upgrade aborted: ");
    assert!(line.contains("descriptor") && line.contains("127.0.0.1:") && line.contains("bind"), "{line}");
    daemon.wait_until_runs(&["old - 0", "old - 1"]);
    daemon.stop();
    assert!(!daemon.said("new up"), "{}", daemon.transcript());
}

fn becomes_per_worker(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.begin_upgrade(&Build::new("new", workers).pool(Pool { is_per_worker: true, ..Pool::default() }));
    let line = daemon.wait_for("log Upgrade aborted: ");
    assert!(line.contains("per_worker"), "{line}");
    daemon.stop();
}

/// Two listeners of the same text, and one of another text between them.
fn several(workers: Workers) {
    let listens = ["127.0.0.1:0", "unix:SCRATCH/socket", "127.0.0.1:0"].map(str::to_owned).to_vec();
    let pool = Pool { listens, ..Pool::default() };
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(pool.clone()));
    daemon.ready_workers("old", 2);
    let addresses: Vec<String> = (0..3).map(|nth| daemon.address(nth)).collect();
    for name in ["new", "third"] {
        daemon.upgrade(&Build::new(name, workers).pool(pool.clone()));
        addresses.iter().for_each(|address| assert_eq!(client::ask(address).build, name));
    }
    daemon.stop();
}

/// The program binds a socket before the call. It prints the address.
fn bound(workers: Workers, address: &str) {
    let build = |name: &str| {
        let pool = Pool { listens: Vec::new(), ..Pool::default() };
        Build { binds: vec![address.into()], ..Build::new(name, workers).pool(pool) }
    };
    let mut daemon = Daemon::start(&build("old"));
    daemon.ready_workers("old", 2);
    let line = daemon.lines_with("old bound ").into_iter().next().expect("an address").to_owned();
    let address = line.trim_start_matches("old bound ").to_owned();
    assert_eq!(client::ask(&address).build, "old");
    for name in ["new", "third"] {
        daemon.upgrade(&build(name));
        assert_eq!(client::ask(&address).build, name);
        assert!(daemon.said(&format!("{name} bound {address}")), "{}", daemon.transcript());
    }
    daemon.stop();
    if let Some(path) = address.strip_prefix("unix:") {
        assert!(!Path::new(path).exists());
    }
}

fn bound_by_fork_processes(_: Workers) {
    let build = |name: &str| Build { binds: vec!["127.0.0.1:0".into()], ..Build::fork_processes(name) };
    let mut daemon = Daemon::start(&build("old"));
    daemon.workers("old", 2);
    let line = daemon.lines_with("old bound ").into_iter().next().expect("an address").to_owned();
    let address = line.trim_start_matches("old bound ");
    daemon.upgrade(&build("new"));
    assert!(daemon.said(&format!("new bound {address}")), "{}", daemon.transcript());
    assert!(TcpStream::connect(address).is_ok());
    daemon.stop();
}
