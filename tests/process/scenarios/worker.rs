//! A worker process behaves like a program that was started on its own: random numbers, hash keys, child programs.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::process::{Command, Stdio};

use taskfork::{Event, Prefork, Report};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Signal, idle};
use crate::program::{drain, fork, say, serve, try_fork};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("siblings_and_replacements_have_their_own_random_numbers", random_numbers, |daemon| {
            expect_different_lines(daemon, "drew ", 6);
        }),
        Scenario::reporting("parent_and_workers_draw_different_random_numbers", parent_draws, |daemon| {
            expect_different_lines(daemon, "drew ", 6);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::new("siblings_have_their_own_hash_keys", hash_keys, |daemon| {
            expect_different_lines(daemon, "hash ", 4);
        }),
        Scenario::new("worker_can_run_child_programs", runs_programs, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("ran: true"));
        }),
        Scenario::new(
            "a_second_call_in_a_worker_is_refused",
            || {
                fork(1, 0);
                say(&format!("second: {}", try_fork(2, 0).expect_err("a refusal")));
            },
            |daemon| {
                daemon.ends_with(0);
                assert!(daemon.said("second: this process is worker 0 already"), "{}", daemon.transcript());
            },
        ),
        Scenario::new(
            "impossible_worker_count_is_refused_at_once",
            || {
                say(&format!("refused: {}", try_fork(usize::MAX, 0).expect_err("a refusal")));
            },
            |daemon| {
                daemon.ends_with(0);
                assert!(daemon.said(&format!("refused: {} workers asked for", usize::MAX)), "{}", daemon.transcript());
            },
        ),
    ]
}

fn expect_different_lines(daemon: &mut Daemon, prefix: &str, n: usize) {
    let drawn: HashSet<String> = (0..n).map(|_| daemon.wait_for(prefix)).collect();
    assert_eq!(drawn.len(), n, "{drawn:?}");
}

fn random_numbers() {
    let _: u64 = rand::random();
    let id = fork(4, 100);
    say(&format!("drew {}", rand::random::<u64>()));
    if id < 2 { std::process::exit(1) } else { idle() }
}

fn parent_draws() -> Report {
    let draw = || say(&format!("drew {}", rand::random::<u64>()));
    let service = Prefork::new().workers(3).on_event(move |event, _| {
        if matches!(event, Event::Started { .. }) {
            draw();
        }
    });
    serve(service, move |worker| {
        assert!(!worker.stop_requested());
        draw();
        drain(&worker);
    })
}

fn hash_keys() {
    fork(4, 100);
    say(&format!("hash {}", RandomState::new().hash_one(1)));
    idle();
}

fn runs_programs() {
    fork(1, 0);
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    let status = command.arg("--help").stdout(Stdio::null()).status().expect("a program");
    say(&format!("ran: {}", status.success()));
}
