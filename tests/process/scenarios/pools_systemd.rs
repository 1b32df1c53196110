//! Tests of `notify_systemd` in a service with several pools. Unix only.

use taskfork::{Report, Supervisor};

use super::pools::{be_ready_and_drain, member, members, pool, say_up, serve_pools, web_and_jobs};
use super::systemd::{Manager, manage, open_gate};
use crate::Scenario;
use crate::os::{Gate, Signal};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("ready_is_sent_when_all_pools_are_ready", jobs_wait, |daemon| {
            let manager = Manager::of(daemon);
            members(daemon, 2);
            daemon.wait_for_times("is ready", 1);
            manager.has_received_nothing();
            open_gate(daemon, 1);
            assert_eq!(manager.next(), "READY=1\nSTATUS=2 workers are up\n");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let messages = manager.queued_messages();
            let stops = messages.iter().filter(|message| message.starts_with("STOPPING=1\n"));
            assert_eq!(stops.count(), 1, "{messages:?}");
        }),
        Scenario::reporting("reloading_is_sent_once_for_a_roll_of_all_pools", ready, |daemon| {
            let manager = Manager::of(daemon);
            members(daemon, 2);
            manager.expect_message("READY=1\n");
            for _ in 0..2 {
                daemon.signal(Signal::SIGHUP);
                (0..2).for_each(|_| drop(member(daemon)));
                manager.expect_message("RELOADING=1\n");
                let until_ready: Vec<String> = std::iter::repeat_with(|| manager.next())
                    .take_while(|message| !message.starts_with("READY=1\n"))
                    .collect();
                assert!(until_ready.iter().all(|message| message.starts_with("STATUS=")), "{until_ready:?}");
            }
            assert_eq!(daemon.count("log jobs: Rolling restart\n"), 0);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("service_is_ready_without_an_optional_pool_that_failed", optional_fails, |daemon| {
            let manager = Manager::of(daemon);
            assert_eq!(manager.next(), "READY=1\nSTATUS=1 workers are up\n");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
    ]
}

fn managed(service: Supervisor) -> Supervisor {
    manage(&[]);
    service.notify_systemd()
}

/// The worker of `jobs` is ready when the gate opens.
fn jobs_wait() -> Report {
    let service = managed(web_and_jobs(pool(1), pool(1)));
    let gate = Gate::new();
    serve_pools(service, move |worker| {
        if worker.pool() == "web" {
            return be_ready_and_drain(&worker);
        }
        worker.enable_graceful_stop();
        say_up(&worker);
        gate.pass();
        worker.ready();
        super::pools::drain(&worker);
    })
}

fn ready() -> Report {
    serve_pools(managed(web_and_jobs(pool(1), pool(1))), |worker| be_ready_and_drain(&worker))
}

fn optional_fails() -> Report {
    serve_pools(managed(web_and_jobs(pool(1), pool(1).optional())), |worker| match worker.pool() {
        "web" => be_ready_and_drain(&worker),
        _ => crate::program::fail(3),
    })
}
