//! What the workers of the program under test do.

use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::unistd::pause;
use taskfork::{Connection, Listener, Worker};

use crate::build::{Fate, Pool};
use crate::facts;
use crate::gate::Gate;
use crate::program::{build, name_of, say, scratch};

/// The interval at which a worker sends heartbeats.
const BEAT: Duration = Duration::from_millis(50);

/// A worker of `fork_processes`. SIGTERM kills it.
pub fn idle(id: usize) -> ! {
    if build().prints_facts {
        say(&format!("facts {}", facts::own()));
    }
    say(&format!("up - {id} 0 {}", std::process::id()));
    loop {
        pause();
    }
}

/// Serves clients until a stop request, and then until they have closed their connections.
pub fn serve(worker: Worker, binds: Vec<Listener>) {
    worker.enable_graceful_stop();
    if build().prints_facts {
        say(&format!("facts {}", facts::own()));
    }
    let this = format!("{} {}", name_of(worker.pool()), worker.id());
    say(&format!("up {this} {} {}", worker.generation(), std::process::id()));
    let fate = fate(&worker);
    match fate {
        Fate::ExitsWith(status) => std::process::exit(status),
        Fate::NeverReady => {
            worker.wait_for_stop(None);
            return;
        }
        Fate::WaitsAtGate => Gate::of(&scratch(), "ready").pass(),
        Fate::Serves | Fate::IsSilent => {}
    }
    let worker = Arc::new(worker);
    let answer = format!("{} {this} {}\n", build().name, std::process::id());
    let binds = Arc::new(binds);
    let mut threads = Vec::new();
    for which in 0..worker.listeners().len() {
        let worker = Arc::clone(&worker);
        let answer = answer.clone();
        threads.push(thread::spawn(move || accept(&worker.listeners()[which], &answer)));
    }
    for which in 0..binds.len() {
        let binds = Arc::clone(&binds);
        let answer = answer.clone();
        threads.push(thread::spawn(move || accept(&binds[which], &answer)));
    }
    worker.ready();
    while !worker.wait_for_stop(Some(BEAT)) {
        if fate != Fate::IsSilent {
            worker.heartbeat();
        }
    }
    let connections = threads.into_iter().flat_map(|thread| thread.join().expect("a thread"));
    connections.for_each(|connection| connection.join().expect("a thread"));
    say(&format!("drained {this} {}", std::process::id()));
}

fn fate(worker: &Worker) -> Fate {
    let pool = build().pools.iter().find(|pool| pool.name == worker.pool()).unwrap_or(&build().pools[0]);
    let has_fate = |pool: &Pool| pool.fate_of.is_none_or(|id| id == worker.id());
    if has_fate(pool) { pool.fate } else { Fate::Serves }
}

/// Answers the clients of a listener until the stop request. Returns the threads of the connections.
fn accept(listener: &Listener, answer: &str) -> Vec<JoinHandle<()>> {
    let mut connections = Vec::new();
    if let Some(socket) = listener.as_udp() {
        while let Ok((_, client)) = listener.recv_from(&mut [0; 100]) {
            let _ = socket.send_to(answer.as_bytes(), client);
        }
        return connections;
    }
    while let Ok((connection, _)) = listener.accept() {
        let answer = answer.to_owned();
        connections.push(thread::spawn(move || answer_lines(connection, &answer)));
    }
    connections
}

/// Answers each line that the client sends.
fn answer_lines(connection: Connection, answer: &str) {
    let Ok(mut writer) = connection.try_clone() else { return };
    for _ in BufReader::new(connection).lines().map_while(Result::ok) {
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
