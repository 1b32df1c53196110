//! The check of the settings of a [`Prefork`](super::Prefork).

use std::num::NonZero;
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::policy::{Config, Delays};
use crate::sys::{self, FEW_PROCESSES};

/// The shortest valid time, because poll(2) and epoll_wait(2) measure timeouts in milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

impl Config {
    /// Checks all settings, and replaces the number 0 of workers by the number of CPUs.
    pub(crate) fn checked(mut self) -> Result<Config> {
        if self.workers == 0 {
            self.workers = cpus().min(self.max_workers.max(1));
        }
        self.check_workers()?;
        self.check_times()?;
        if self.max_surge == 0 && self.max_unavailable == 0 {
            return Err(Error::unfit(
                "max_surge",
                "0 needs a max_unavailable of at least 1, because otherwise no process could be replaced",
            ));
        }
        let limits = [("max_requests", self.max_requests), ("max_memory", self.max_memory)];
        if let Some((name, _)) = limits.into_iter().find(|(_, limit)| *limit == Some(0)) {
            return Err(Error::unfit(name, "0 would replace every process again and again"));
        }
        if self.restart_window.is_some() && self.max_restarts.is_none() {
            return Err(Error::unfit("restart_window", "there is no max_restarts that it could limit"));
        }
        // On Unix, only the low eight bits of an exit status reach the parent.
        let possible = if cfg!(unix) { 1..=255 } else { i32::MIN..=i32::MAX };
        match self.fatal_exit_codes.iter().find(|&&code| code == 0 || !possible.contains(&code)) {
            Some(0) => Err(Error::unfit("fatal_exit_code", "0 means success")),
            Some(code) => Err(Error::unfit("fatal_exit_code", format!("no process exits with status {code} here"))),
            None => Ok(self),
        }
    }

    fn check_workers(&self) -> Result<()> {
        let &Config { workers, max_workers, .. } = self;
        if max_workers < workers {
            return Err(Error::unfit("max_workers", format!("{max_workers} is below the {workers} workers asked for")));
        }
        check_process_limit(workers)
    }

    fn check_times(&self) -> Result<()> {
        let Delays { first, max } = self.delays;
        let times = [
            ("restart_backoff", Some(first)),
            ("restart_backoff", Some(max)),
            ("graceful_timeout", Some(self.graceful_timeout)),
            ("restart_window", self.restart_window),
            ("ready_timeout", self.ready_timeout),
            ("heartbeat_timeout", self.heartbeat_timeout),
            ("abort_timeout", Some(self.abort_timeout)),
            ("max_lifetime", self.max_lifetime),
        ];
        for (name, time) in times.into_iter().filter_map(|(name, time)| Some((name, time?))) {
            check_time(name, time)?;
        }
        if first > max {
            return Err(Error::unfit(
                "restart_backoff",
                format!("the first delay, {first:?}, is longer than the longest, {max:?}"),
            ));
        }
        Ok(())
    }
}

/// Refuses a time that is too short to wait for, and a time that is longer than a year.
pub(super) fn check_time(setting: &'static str, time: Duration) -> Result<()> {
    if time < SHORTEST {
        return Err(Error::unfit(setting, format!("{time:?} is less than a millisecond")));
    }
    if time > LONGEST {
        return Err(Error::unfit(setting, format!("{time:?} is more than a year")));
    }
    Ok(())
}

/// Checks that the system allows this number of workers. This is the limit of the whole system. The user's limit
/// (`RLIMIT_NPROC`) may be lower. In that case fork(2) fails.
pub(crate) fn check_process_limit(workers: usize) -> Result<()> {
    if workers <= FEW_PROCESSES {
        return Ok(());
    }
    let limit = sys::process_limit();
    if workers > limit { Err(Error::too_many(workers, limit)) } else { Ok(()) }
}

/// Returns the number of CPUs that this process may use, or 1 if the number is unknown. On Linux, std considers the CPU
/// affinity and the CPU quota of the cgroup (v1 and v2).
fn cpus() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::RestartPolicy;
    use crate::prefork::Prefork;

    fn refused(prefork: Prefork) -> (&'static str, String) {
        let error = prefork.pool.config.checked().expect_err("an invalid setting");
        (error.setting().expect("a setting"), error.to_string())
    }

    #[test]
    fn errors_name_the_invalid_setting() {
        let new = Prefork::new;
        let zero = Duration::ZERO;
        let ms = Duration::from_millis;
        let endless = Duration::MAX;
        for (name, prefork) in [
            ("graceful_timeout", new().graceful_timeout(zero)),
            ("graceful_timeout", new().graceful_timeout(endless)),
            ("ready_timeout", new().ready_timeout(zero)),
            ("ready_timeout", new().ready_timeout(endless)),
            ("heartbeat_timeout", new().heartbeat_timeout(Duration::from_nanos(1))),
            ("heartbeat_timeout", new().heartbeat_timeout(endless)),
            ("abort_timeout", new().abort_timeout(zero)),
            ("abort_timeout", new().abort_timeout(endless)),
            ("restart_window", new().restart_window(zero)),
            ("restart_window", new().restart_window(endless)),
            ("max_lifetime", new().max_lifetime(zero)),
            ("max_lifetime", new().max_lifetime(endless)),
            ("max_requests", new().max_requests(0)),
            ("max_memory", new().max_memory(0)),
            ("restart_backoff", new().restart_backoff(zero, ms(1))),
            ("restart_backoff", new().restart_backoff(ms(1), endless)),
            ("restart_backoff", new().restart_backoff(ms(2), ms(1))),
            ("max_workers", new().workers(3).max_workers(2)),
            ("max_workers", new().max_workers(0)),
            ("max_surge", new().max_surge(0)),
            ("max_surge", new().max_unavailable(0).max_surge(0)),
            ("fatal_exit_code", new().fatal_exit_code(3).fatal_exit_code(0)),
            #[cfg(unix)]
            ("fatal_exit_code", new().fatal_exit_code(256)),
            #[cfg(unix)]
            ("fatal_exit_code", new().fatal_exit_code(-1)),
            ("restart_window", new().restart_window(Duration::from_secs(60))),
            ("workers", new().workers(usize::MAX)),
        ] {
            let (setting, text) = refused(prefork);
            assert_eq!(setting, name, "{text}");
        }
        assert_eq!(refused(new().workers(3).max_workers(2)).1, "max_workers: 2 is below the 3 workers asked for");
        assert_eq!(refused(new().ready_timeout(zero)).1, "ready_timeout: 0ns is less than a millisecond");
    }

    #[test]
    fn defaults_match_the_documentation() {
        let config = Prefork::default().workers(3).pool.config.checked().expect("valid settings");
        assert_eq!(
            (config.max_restarts, config.restart_policy, config.max_workers),
            (None, RestartPolicy::OnFailure, usize::MAX)
        );
        assert_eq!(config.graceful_timeout, Duration::from_secs(30));
        assert_eq!(config.abort_timeout, Duration::from_secs(1));
        assert_eq!((config.max_surge, config.max_unavailable), (1, 0));
        assert_eq!((config.delays.first, config.delays.max), (Duration::from_millis(10), Duration::from_secs(1)));
        let off = [config.restart_window, config.ready_timeout, config.heartbeat_timeout, config.max_lifetime];
        assert!(off.iter().all(Option::is_none) && config.fatal_exit_codes.is_empty());
    }

    #[test]
    fn default_worker_count_respects_max_workers() {
        let config = Prefork::new().max_workers(1).pool.config.checked().expect("valid settings");
        assert_eq!((config.workers, config.max_workers), (1, 1));
    }

    #[test]
    fn boundary_values_are_accepted() {
        let ms = Duration::from_millis(1);
        let prefork = Prefork::new()
            .workers(3)
            .max_workers(3)
            .restart_backoff(ms, ms)
            .graceful_timeout(LONGEST)
            .fatal_exit_code(255);
        let config = prefork.max_restarts(0).max_lifetime(ms).pool.config.checked().expect("valid settings");
        Prefork::new().max_surge(0).max_unavailable(1).pool.config.checked().expect("valid settings");
        assert_eq!((config.workers, config.max_restarts), (3, Some(0)));
    }
}
