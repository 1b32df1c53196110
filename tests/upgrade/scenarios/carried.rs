//! What the new parent takes over: drains, readiness, ages and counts.

use nix::sys::signal::Signal;

use super::Scenario;
use crate::build::{Build, Fate, Pool, Workers};
use crate::client::{Answer, Client};
use crate::daemon::{Daemon, kill};
use crate::procfs;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("drain_continues_through_an_upgrade", drain),
        Scenario::new("deadline_of_a_drain_is_carried_over", deadline),
        Scenario::new("stop_after_an_upgrade_waits_for_old_drains", stop_waits),
        Scenario::new("ages_readiness_and_restarts_are_carried_over", status),
        Scenario::new("old_workers_that_stay_are_not_ready_again", stay_ready),
        Scenario::new("old_worker_that_stays_is_restarted_by_the_new_program", restarted_later),
        Scenario::new("restart_budget_starts_afresh", budget),
        Scenario::new("number_set_by_ttin_is_kept", ttin),
        Scenario::new("number_set_by_ttou_is_kept", ttou),
    ]
}

/// Connects until the worker with this id answers, and returns the connection.
fn client_of(daemon: &Daemon, id: usize) -> (Client, Answer) {
    let address = daemon.address(0);
    loop {
        let mut client = Client::connect(&address).expect("a connection");
        let answer = client.ask();
        if answer.id == id {
            return (client, answer);
        }
    }
}

/// Worker 2 was removed before the upgrade, and still has a client.
fn drain(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(Pool::of(3)));
    daemon.ready_workers("old", 3);
    let (mut client, answer) = client_of(&daemon, 2);
    daemon.signal(Signal::SIGTTOU);
    daemon.wait_for("log Scaled to 2 workers");
    let new = Build::new("new", workers).pool(Pool::of(3));
    daemon.begin_upgrade(&new);
    daemon.wait_for("The new program supervises 4 processes");
    daemon.wait_until_runs(&["new - 0", "new - 1", "old - 2"]);
    assert_eq!(client.ask(), answer);
    drop(client);
    daemon.wait_for_end_of_upgrade(&new);
    daemon.assert_runs(&["new - 0", "new - 1"]);
    daemon.stop();
    assert!(daemon.said(&format!("old drained - 2 {}", answer.pid)), "{}", daemon.transcript());
    assert!(!daemon.said("restarting"), "{}", daemon.transcript());
}

/// The new parent kills the worker whose deadline the old parent has set.
fn deadline(workers: Workers) {
    let pool = Pool { graceful_timeout_ms: 5000, ..Pool::of(3) };
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(pool.clone()));
    daemon.ready_workers("old", 3);
    let (client, answer) = client_of(&daemon, 2);
    daemon.signal(Signal::SIGTTOU);
    daemon.wait_for("log Scaled to 2 workers");
    let new = Build::new("new", workers).pool(pool);
    daemon.begin_upgrade(&new);
    daemon.wait_for(&format!("new log child 2 (pid {}) did not stop in time", answer.pid));
    daemon.wait_for_end_of_upgrade(&new);
    drop(client);
    daemon.stop();
}

fn stop_waits(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    let (mut client, answer) = client_of(&daemon, 1);
    daemon.begin_upgrade(&Build::new("new", workers));
    daemon.workers("new", 2);
    daemon.wait_until_runs(&["new - 0", "new - 1", "old - 1"]);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_times("new drained", 2);
    assert_eq!(client.ask(), answer);
    drop(client);
    daemon.ends_with(0);
    assert!(daemon.said(&format!("old drained - 1 {}", answer.pid)), "{}", daemon.transcript());
}

/// A line of the command `status`.
#[derive(Debug)]
struct Line {
    id: usize,
    generation: u32,
    pid: u32,
    age: u64,
    ready: u64,
    restarts: u32,
}

fn read_status(daemon: &mut Daemon) -> Vec<Line> {
    daemon.command("status");
    let mut lines = Vec::new();
    loop {
        let line = daemon.wait_for("status ");
        if line.ends_with("status end") {
            return lines;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap_or_else(|_| panic!("{line}"));
        lines.push(Line {
            id: number(3) as usize,
            generation: number(4) as u32,
            pid: number(5) as u32,
            age: number(8),
            ready: number(10),
            restarts: number(12) as u32,
        });
    }
}

/// The replacement of worker 1 waits before it is ready, so the old process is still there.
fn status(workers: Workers) {
    let mut daemon = Daemon::start(&Build { takes_commands: true, ..Build::new("old", workers) });
    let first = daemon.ready_workers("old", 2);
    kill(first[1].pid, Signal::SIGKILL);
    let restarted = daemon.worker("old");
    daemon.wait_for(&format!("(pid {}) is ready", restarted.pid));
    let before = read_status(&mut daemon);
    let gated = Pool { fate: Fate::WaitsAtGate, fate_of: Some(1), ..Pool::default() };
    let new = Build { takes_commands: true, ..Build::new("new", workers).pool(gated) };
    daemon.begin_upgrade(&new);
    daemon.workers("new", 2);
    let after = read_status(&mut daemon);
    let old = |lines: &[Line]| {
        let line = lines.iter().find(|line| line.pid == restarted.pid).unwrap_or_else(|| panic!("{lines:?}"));
        (line.id, line.generation, line.restarts, line.age, line.ready)
    };
    let (id, generation, restarts, age, ready) = old(&before);
    let now = old(&after);
    assert_eq!((now.0, now.1, now.2), (id, generation, restarts));
    assert_eq!((id, generation, restarts), (1, 1, 1));
    assert!(now.3 >= age && now.4 >= ready, "{before:?} {after:?}");
    daemon.leave_gate_open("ready");
    daemon.wait_for_end_of_upgrade(&new);
    daemon.stop();
}

/// Old workers have been ready once. The new parent does not wait for their readiness.
fn stay_ready(workers: Workers) {
    let pool = Pool { ready_timeout_ms: Some(1000), ..Pool::default() };
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(pool.clone()));
    let old = daemon.ready_workers("old", 2);
    let fails = Pool { fate: Fate::ExitsWith(7), fate_of: Some(1), ..pool };
    daemon.begin_upgrade(&Build::new("new", workers).pool(fails));
    daemon.wait_for("new log Upgrade aborted: ");
    // This is longer than the timeout that must not be applied, and not a wait for an event.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    daemon.wait_until_runs(&["new - 0", "old - 1"]);
    assert!(procfs::runs(old[1].pid));
    daemon.stop();
    assert!(!daemon.said("not ready in time"), "{}", daemon.transcript());
}

/// The replacement of worker 1 has failed once. When its old process is killed, the new program serves its id.
fn restarted_later(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    let old = daemon.ready_workers("old", 2);
    let gated = Pool { fate: Fate::WaitsAtGate, fate_of: Some(1), ..Pool::default() };
    daemon.begin_upgrade(&Build::new("new", workers).pool(gated));
    let new = daemon.workers("new", 2);
    kill(new[1].pid, Signal::SIGKILL);
    daemon.wait_for("new log Upgrade aborted: ");
    daemon.wait_until_runs(&["new - 0", "old - 1"]);
    daemon.leave_gate_open("ready");
    kill(old[1].pid, Signal::SIGKILL);
    let restarted = daemon.worker("new");
    assert_eq!(restarted.id, 1);
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    daemon.stop();
}

/// The limit of one restart is used up before the upgrade.
fn budget(workers: Workers) {
    let pool = Pool { max_restarts: Some(1), ..Pool::default() };
    let mut daemon = Daemon::start(&Build::new("old", workers).pool(pool.clone()));
    let old = daemon.ready_workers("old", 2);
    kill(old[1].pid, Signal::SIGKILL);
    daemon.worker("old");
    let new = Build::new("new", workers).pool(pool);
    daemon.begin_upgrade(&new);
    let workers = daemon.workers("new", 2);
    daemon.wait_for_end_of_upgrade(&new);
    kill(workers[1].pid, Signal::SIGKILL);
    daemon.worker("new");
    daemon.stop();
    assert!(!daemon.said("giving up"), "{}", daemon.transcript());
}

fn ttin(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.signal(Signal::SIGTTIN);
    daemon.worker("old");
    daemon.wait_for_times("is ready", 3);
    daemon.upgrade(&Build::new("new", workers));
    daemon.assert_runs(&["new - 0", "new - 1", "new - 2"]);
    daemon.stop();
}

fn ttou(workers: Workers) {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.signal(Signal::SIGTTOU);
    daemon.wait_for("old drained - 1");
    daemon.upgrade(&Build::new("new", workers));
    daemon.assert_runs(&["new - 0"]);
    daemon.stop();
}
