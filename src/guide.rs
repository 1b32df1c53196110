//! Documentation that shows how to write a service with this crate and how to run it. This module contains no code.
//!
//! | page | content |
//! |---|---|
//! | [`fork_safety`] | The objects that a program may create before the call that forks the workers, and their state in the workers. |
//! | [`signals`] | How to stop, reload and scale a service with signals, and how to handle signals in a worker. |
//! | [`async_runtimes`] | tokio and other runtimes in the workers: graceful stop, failures, heartbeats, and how to use axum, actix-web, tonic and others. |
//! | [`jobs`] | Workers that take jobs from a queue, and why two processes can have the same id. |
//! | [`pools`] | Several kinds of workers under one parent, and what mpservice, gunicorn's dirty workers and a Procfile have instead. |
//! | [`deploying`] | A directory for each version, upgrades of a running service without a lost connection, rollbacks, and how the processes appear in `ps` and systemd. |
//! | [`limits`] | How to choose the number of workers, timeouts, restart limits, memory and descriptors, also for systemd and Kubernetes. |
//! | [`observability`] | Which events to count, what the status of the service contains, and how to make metrics of both. |
//! | [`autoscaling`] | How to change the number of workers with the load. |
//! | [`recycling`] | Which setting replaces a process for which trouble: age, requests, memory. |
//! | [`reloading`] | How to read the configuration again on HUP. |
//! | [`logging`] | Logging with `tracing` and `env_logger` in the parent and in the workers. |
//! | [`systemd`] | Unit files for a service and its socket, with timeouts that match those of the service. |
//! | [`containers`] | How to run a service as pid 1 of a container: signals, zombie processes, the CPU quota, memory. |
//! | [`kubernetes`] | A manifest with probes, and the order of events when a pod is stopped. |
//! | [`migrating`] | The options of Tornado, uvicorn, gunicorn and granian, and the settings of taskfork that replace them. Also: the signals of nginx and unicorn, and libraries for upgrades. |
//!
//! The methods of [`Prefork`](crate::Prefork) and [`Worker`](crate::Worker) document the settings. The documentation of
//! the [crate] lists [all signals](crate#signals) and all [limitations](crate#limitations).
#![doc = include_str!("guide/service.md")]
#![doc = concat!("\n```rust,no_run\n", include_str!("../examples/service.rs"), "```\n\n")]
#![doc = include_str!("guide/service_run.md")]

#[doc = include_str!("guide/fork_safety.md")]
pub mod fork_safety {}

#[doc = include_str!("guide/signals.md")]
pub mod signals {}

#[doc = include_str!("guide/async_runtimes.md")]
pub mod async_runtimes {}

#[doc = include_str!("guide/jobs.md")]
#[doc = concat!("\n```rust,no_run\n", include_str!("../examples/jobs.rs"), "```\n\n")]
#[doc = include_str!("guide/jobs_details.md")]
pub mod jobs {}

#[doc = include_str!("guide/pools.md")]
#[doc = concat!("\n```rust,no_run\n", include_str!("../examples/pools.rs"), "```\n\n")]
#[doc = include_str!("guide/pools_details.md")]
pub mod pools {}

#[doc = include_str!("guide/deploying.md")]
pub mod deploying {}

#[doc = include_str!("guide/limits.md")]
pub mod limits {}

#[doc = include_str!("guide/recycling.md")]
pub mod recycling {}

#[doc = include_str!("guide/reloading.md")]
#[doc = concat!("\n```rust,no_run\n", include_str!("../examples/reload.rs"), "```\n\n")]
#[doc = include_str!("guide/reloading_details.md")]
pub mod reloading {}

#[doc = include_str!("guide/logging.md")]
#[doc = concat!("\n```rust,no_run\n", include_str!("../examples/tracing.rs"), "```\n\n")]
#[doc = include_str!("guide/logging_details.md")]
pub mod logging {}

#[doc = include_str!("guide/observability.md")]
pub mod observability {}

#[doc = include_str!("guide/autoscaling.md")]
#[doc = concat!("\n```rust,no_run\n", include_str!("../examples/autoscale.rs"), "```\n\n")]
#[doc = include_str!("guide/autoscaling_details.md")]
pub mod autoscaling {}

#[doc = include_str!("guide/systemd.md")]
pub mod systemd {}

#[doc = include_str!("guide/containers.md")]
pub mod containers {}

#[doc = include_str!("guide/kubernetes.md")]
pub mod kubernetes {}

#[doc = include_str!("guide/migrating.md")]
pub mod migrating {}

#[cfg(test)]
mod tests {
    const SERVICE: &str = include_str!("../examples/service.rs");
    const SYSTEMD: &str = include_str!("guide/systemd.md");
    const DEPLOYING: &str = include_str!("guide/deploying.md");
    const CONTAINERS: &str = include_str!("guide/containers.md");
    const KUBERNETES: &str = include_str!("guide/kubernetes.md");

    /// Returns the word that follows the first occurrence of `key` in `text`.
    fn word_after<'a>(text: &'a str, key: &str) -> &'a str {
        let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key} in the guide"));
        rest.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()
    }

    fn number_after(text: &str, key: &str) -> u64 {
        word_after(text, key).parse().unwrap_or_else(|_| panic!("no number after {key} in the guide"))
    }

    fn seconds(setting: &str) -> u64 {
        number_after(SERVICE, &format!(".{setting}(Duration::from_secs("))
    }

    #[test]
    fn outer_stop_timeouts_exceed_the_graceful_timeout() {
        let graceful = seconds("graceful_timeout");
        assert!(number_after(SYSTEMD, "TimeoutStopSec=") > graceful);
        assert!(number_after(CONTAINERS, "--stop-timeout") > graceful);
        let (_, before_stop) = KUBERNETES.split_once("preStop:").expect("preStop in the manifest");
        let hook_seconds = number_after(before_stop, "seconds:");
        assert!(number_after(KUBERNETES, "terminationGracePeriodSeconds:") > hook_seconds + graceful);
    }

    #[test]
    fn outer_watchdogs_wait_longer_than_the_parent() {
        assert!(number_after(SYSTEMD, "TimeoutStartSec=") > seconds("ready_timeout"));
        let (_, liveness) = KUBERNETES.split_once("livenessProbe:").expect("livenessProbe in the manifest");
        let until_restart = number_after(liveness, "periodSeconds:") * number_after(liveness, "failureThreshold:");
        assert!(until_restart > 2 * seconds("heartbeat_timeout"));
    }

    #[test]
    fn reload_timeout_exceeds_trial_and_rolling_restart() {
        let trial = 60;
        let rolling_restart = 2 * seconds("ready_timeout") + seconds("graceful_timeout");
        assert!(number_after(DEPLOYING, "TimeoutStartSec=") > trial + rolling_restart);
    }

    #[test]
    fn all_pages_use_the_same_port_and_socket_name() {
        let port = number_after(SERVICE, "unwrap_or(\"[::]:");
        let mentions = [
            (SYSTEMD, "ListenStream="),
            (CONTAINERS, "EXPOSE "),
            (CONTAINERS, "--publish "),
            (KUBERNETES, "containerPort:"),
        ];
        for (text, key) in mentions {
            assert_eq!(number_after(text, key), port, "{key}");
        }
        assert_eq!(word_after(SYSTEMD, "FileDescriptorName="), word_after(SERVICE, ".name(\""));
    }
}
