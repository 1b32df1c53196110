//! The settings of one pool, and the settings of the whole service.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::Backend;
use super::check::check_time;
use crate::error::{Error, Result};
use crate::listener::{ListenConfig, ListenerNames};
use crate::pid_file::PidFile;
use crate::policy::{Config, Delays, RestartPolicy};
use crate::setup::SetupConfig;
use crate::supervisor::{OnEvent, OnInterval};

/// Without a ready timeout, a service that cannot start ends after this many failures of one worker in a row.
const STARTUP_FAILURES: u32 = 10;

/// The settings of one pool. The name of the pool is [`Config::pool`].
#[derive(Debug)]
pub(crate) struct PoolSettings {
    pub config: Config,
    /// If `None`, the workers are threads in `run_threads`, and processes of the default backend otherwise.
    pub backend: Option<Backend>,
    pub listens: Vec<ListenConfig>,
    pub setup: SetupConfig,
    /// Whether the failure of this pool does not end the service.
    pub optional: bool,
}

/// The settings that concern all pools of a service.
#[derive(Default)]
pub(crate) struct ServiceSettings {
    /// The name of the service, which is also the name of the parent's process.
    pub name: Option<String>,
    pub on_event: Option<OnEvent>,
    pub on_interval: Option<OnInterval>,
    pub pid_file: Option<PathBuf>,
    pub upgrade: UpgradeSettings,
    #[cfg(unix)]
    pub is_activated: bool,
    #[cfg(unix)]
    pub notifies: bool,
}

/// The settings of upgrades. `None`: the default.
#[derive(Debug, Default)]
pub(crate) struct UpgradeSettings {
    /// The path of the new program.
    pub program: Option<PathBuf>,
    pub timeout: Option<Duration>,
}

impl UpgradeSettings {
    const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
    const LONGEST_TIMEOUT: Duration = Duration::from_secs(60 * 60);

    /// Returns the longest time of the trial, and of the new program's way to its call.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(UpgradeSettings::DEFAULT_TIMEOUT)
    }

    fn check(&self) -> Result<()> {
        if self.program.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(Error::unfit("program", "the path is empty"));
        }
        let timeout = self.timeout();
        if timeout > UpgradeSettings::LONGEST_TIMEOUT {
            return Err(Error::unfit("upgrade_timeout", format!("{timeout:?} is more than an hour")));
        }
        check_time("upgrade_timeout", timeout)
    }
}

impl ServiceSettings {
    /// Returns the name of a setting that the program has made, or `None` if it has made no setting of the service.
    pub fn first_set(&self) -> Option<&'static str> {
        #[cfg(unix)]
        let of_unix = [(self.is_activated, "socket_activation"), (self.notifies, "notify_systemd")];
        #[cfg(not(unix))]
        let of_unix = [];
        let settings = [
            (self.name.is_some(), "name"),
            (self.on_event.is_some(), "on_event"),
            (self.on_interval.is_some(), "on_interval"),
            (self.pid_file.is_some(), "pid_file"),
            (self.upgrade.program.is_some(), "program"),
            (self.upgrade.timeout.is_some(), "upgrade_timeout"),
        ];
        let settings = settings.into_iter().chain(of_unix);
        settings.filter(|(is_set, _)| *is_set).map(|(_, setting)| setting).next()
    }

    /// Refuses values that have no use.
    pub fn check(&self) -> Result<()> {
        self.check_name()?;
        self.pid_file.as_deref().map_or(Ok(()), PidFile::check_path)?;
        self.upgrade.check()?;
        self.on_interval.as_ref().map_or(Ok(()), |interval| check_time("on_interval", interval.period))
    }

    /// Refuses a name that no tool could show, and a name that would look like the name of a worker.
    fn check_name(&self) -> Result<()> {
        let Some(name) = &self.name else { return Ok(()) };
        if name.is_empty() {
            return Err(Error::unfit("name", "the name is empty"));
        }
        match name.chars().find(|&char| char == '/' || char.is_control()) {
            Some('/') => Err(Error::unfit("name", format!("{name:?} contains '/', which separates a worker's id"))),
            Some(char) => Err(Error::unfit("name", format!("{name:?} contains the control character {char:?}"))),
            None => Ok(()),
        }
    }
}

impl PoolSettings {
    /// Returns the names of the listeners in their order, or `None` if there are no listeners.
    pub fn listener_names(&self) -> ListenerNames {
        let names = || self.listens.iter().map(|listen| listen.own_name().map(str::to_owned)).collect();
        (!self.listens.is_empty()).then(names)
    }
}

impl Default for PoolSettings {
    fn default() -> PoolSettings {
        let config = Config {
            pool: "",
            workers: 0,
            max_workers: usize::MAX,
            restart_policy: RestartPolicy::OnFailure,
            max_restarts: None,
            restart_window: None,
            startup_failures: Some(STARTUP_FAILURES),
            delays: Delays { first: Duration::from_millis(10), max: Duration::from_secs(1) },
            fatal_exit_codes: Vec::new(),
            graceful_timeout: Duration::from_secs(30),
            ready_timeout: None,
            heartbeat_timeout: None,
            abort_timeout: Duration::from_secs(1),
            max_lifetime: None,
            max_requests: None,
            max_memory: None,
            max_surge: 1,
            max_unavailable: 0,
            drain: None,
        };
        PoolSettings { config, backend: None, listens: Vec::new(), setup: SetupConfig::default(), optional: false }
    }
}

impl fmt::Debug for ServiceSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceSettings").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_that_are_too_short_or_too_long_are_refused() {
        let check = |period| {
            let on_interval = Some(OnInterval { period, call: Box::new(|_, _| {}) });
            ServiceSettings { on_interval, ..ServiceSettings::default() }.check()
        };
        for period in [Duration::ZERO, Duration::from_micros(999), Duration::from_secs(367 * 86_400), Duration::MAX] {
            assert_eq!(check(period).expect_err("a refusal").setting(), Some("on_interval"), "{period:?}");
        }
        for period in [Duration::from_millis(1), Duration::from_secs(366 * 86_400)] {
            assert!(check(period).is_ok(), "{period:?}");
        }
    }

    #[test]
    fn upgrade_settings_without_a_use_are_refused() {
        let timeout = |time| UpgradeSettings { program: None, timeout: Some(time) };
        let empty = UpgradeSettings { program: Some(PathBuf::new()), timeout: None };
        let hour = Duration::from_secs(3600);
        for (setting, upgrade) in [
            ("program", empty),
            ("upgrade_timeout", timeout(Duration::ZERO)),
            ("upgrade_timeout", timeout(hour + Duration::from_nanos(1))),
            ("upgrade_timeout", timeout(Duration::MAX)),
        ] {
            let error = ServiceSettings { upgrade, ..ServiceSettings::default() }.check().expect_err("a refusal");
            assert_eq!(error.setting(), Some(setting), "{error}");
        }
        for time in [Duration::from_millis(1), hour] {
            assert!(timeout(time).check().is_ok(), "{time:?}");
        }
        assert_eq!(UpgradeSettings::default().timeout(), Duration::from_secs(60), "the documented default");
    }

    #[test]
    fn names_that_tools_cannot_show_are_refused() {
        let check = |name: &str| ServiceSettings { name: Some(name.into()), ..ServiceSettings::default() }.check();
        for name in ["", "web/3", "a\0b", "a\nb", "\u{7f}"] {
            assert_eq!(check(name).expect_err("a refusal").setting(), Some("name"), "{name:?}");
        }
        for name in ["web", "größe 7", "-", "a name that is longer than the system can show"] {
            assert!(check(name).is_ok(), "{name}");
        }
    }
}
