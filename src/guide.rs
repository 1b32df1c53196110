//! How to write a service with this crate, and how to run it: pages to read, with nothing to call.
//!
//! | page | what it tells |
//! |---|---|
//! | [`fork_safety`] | what may happen before the call, and what becomes of it in the workers |
//! | [`signals`] | how a service is told to stop, to reload and to grow, and how a worker hears of it |
//! | [`systemd`] | the unit files, and what their times have to do with ours |
//! | [`containers`] | the service as pid 1: zombies, SIGTERM, the CPU quota, memory |
//! | [`kubernetes`] | a manifest with probes, and the order of events when a pod goes |
//! | [`migrating`] | the options of Tornado, uvicorn and gunicorn, and ours beside them |
//!
//! What belongs to one setting is told there, at [`Prefork`](crate::Prefork) and [`Worker`](crate::Worker); what belongs to the
//! whole, such as [every signal](crate#signals) and every [limitation](crate#limitations), in the documentation of the
//! [crate].
#![doc = include_str!("guide/service.md")]

#[doc = include_str!("guide/fork_safety.md")]
pub mod fork_safety {}

#[doc = include_str!("guide/signals.md")]
pub mod signals {}

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
    const SERVICE: &str = include_str!("guide/service.md");
    const SYSTEMD: &str = include_str!("guide/systemd.md");
    const CONTAINERS: &str = include_str!("guide/containers.md");
    const KUBERNETES: &str = include_str!("guide/kubernetes.md");

    /// What stands behind the first of these, as far as it is of one word.
    fn word_after<'a>(text: &'a str, key: &str) -> &'a str {
        let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key} in the guide"));
        rest.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()
    }

    fn number_after(text: &str, key: &str) -> u64 {
        word_after(text, key).parse().unwrap_or_else(|_| panic!("{key} without a number"))
    }

    fn seconds(setting: &str) -> u64 {
        number_after(SERVICE, &format!(".{setting}(Duration::from_secs("))
    }

    #[test]
    fn whoever_stops_the_service_waits_longer_than_it_gives_its_workers() {
        let graceful = seconds("graceful_timeout");
        assert!(number_after(SYSTEMD, "TimeoutStopSec=") > graceful);
        assert!(number_after(CONTAINERS, "--stop-timeout") > graceful);
        let (_, before_stop) = KUBERNETES.split_once("preStop:").expect("a hook");
        let hook = number_after(before_stop, "seconds:");
        assert!(number_after(KUBERNETES, "terminationGracePeriodSeconds:") > hook + graceful);
    }

    #[test]
    fn whoever_watches_the_service_lets_the_parent_mend_it_first() {
        assert!(number_after(SYSTEMD, "TimeoutStartSec=") > seconds("ready_timeout"));
        let (_, liveness) = KUBERNETES.split_once("livenessProbe:").expect("a probe");
        let patience = number_after(liveness, "periodSeconds:") * number_after(liveness, "failureThreshold:");
        assert!(patience > 2 * seconds("heartbeat_timeout"));
    }

    #[test]
    fn all_of_them_mean_the_same_socket() {
        let port = number_after(SERVICE, "ListenConfig::from(\"[::]:");
        let named = [
            (SYSTEMD, "ListenStream="),
            (CONTAINERS, "EXPOSE "),
            (CONTAINERS, "--publish "),
            (KUBERNETES, "containerPort:"),
        ];
        for (text, key) in named {
            assert_eq!(number_after(text, key), port, "{key}");
        }
        assert_eq!(word_after(SYSTEMD, "FileDescriptorName="), word_after(SERVICE, ".name(\""));
    }
}
