//! The name, the CPU, the user and the groups of workers. The parent checks these settings before it starts the
//! workers, and each worker applies them to itself.
//!
//! If a worker cannot apply a setting, this module logs the error in the worker, because the parent sees only the
//! worker's exit status.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use log::{Level, log};

#[cfg(unix)]
use crate::accounts::{Account, find_group, find_user};
use crate::error::{Error, Result};
use crate::failure;
use crate::pool_name::WorkerName;
use crate::sys::{self, CallError, Identity, ProcessName, WorkerKind};
#[cfg(unix)]
use crate::sys::{IdentityPart, IdentityRefusal};

/// The settings as the program passed them to `Prefork`. The user and the group are names or numbers that have not been
/// looked up yet.
#[derive(Debug, Default)]
pub(crate) struct SetupConfig {
    pub pins_cpus: bool,
    #[cfg(unix)]
    pub user: Option<String>,
    #[cfg(unix)]
    pub group: Option<String>,
}

/// The settings for all workers of a pool, with the CPUs, the user and the groups that [`SetupConfig::resolve`] has
/// looked up.
#[derive(Debug)]
pub(crate) struct WorkerSetup {
    pool: &'static str,
    /// The name of the service. `None` if the processes keep their names.
    name: Option<String>,
    /// The CPUs to which workers are pinned. Empty if workers are not pinned.
    cpus: Vec<usize>,
    /// The user and the groups of the workers. `None` if workers keep those of the parent.
    identity: Option<Arc<Identity>>,
}

/// The settings for one worker. The parent passes these settings to a spawned worker as text. For example,
/// `1 65534:65533:65533,4 7765622f33` means CPU 1, user 65534, group 65533, the supplementary groups 65533 and 4, and
/// the name `web/3`, whose bytes are written in hexadecimal. A hyphen stands for a setting that is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChildSetup {
    pub cpu: Option<usize>,
    pub identity: Option<Arc<Identity>>,
    pub name: Option<String>,
}

impl SetupConfig {
    /// Checks the settings, and looks up the CPUs, the user and the groups. Returns `None` if the program has made none
    /// of these settings.
    ///
    /// The parent calls this function once for each pool, before it starts any worker. `kind` is the kind of the pool's
    /// workers. The caller has checked the name of the service.
    pub fn resolve(
        &self,
        kind: WorkerKind,
        service_name: Option<&str>,
        pool: &'static str,
    ) -> Result<Option<WorkerSetup>> {
        let cpus = self.cpus()?;
        let identity = self.identity(kind)?.map(Arc::new);
        let name = service_name.map(str::to_owned);
        let is_set = name.is_some() || !cpus.is_empty() || identity.is_some();
        Ok(is_set.then_some(WorkerSetup { pool, name, cpus, identity }))
    }

    fn cpus(&self) -> Result<Vec<usize>> {
        if !self.pins_cpus {
            return Ok(Vec::new());
        }
        let cpus = sys::usable_cpus()?;
        if cpus.is_empty() {
            return Err(Error::unfit("pin_cpus", "this system cannot pin workers to CPUs"));
        }
        Ok(cpus)
    }

    #[cfg(not(unix))]
    fn identity(&self, _: WorkerKind) -> Result<Option<Identity>> {
        Ok(None)
    }

    #[cfg(unix)]
    fn identity(&self, kind: WorkerKind) -> Result<Option<Identity>> {
        let user = self.user.as_deref();
        let group = self.group.as_deref();
        let Some(setting) = user.map(|_| "user").or(group.map(|_| "group")) else { return Ok(None) };
        if kind == WorkerKind::Thread {
            return Err(Error::unfit(setting, "all threads of a process have the same user and groups"));
        }
        let account = user.map(|name| find_user(name).map_err(|error| not_found("user", name, error))).transpose()?;
        let gid = group.map(|name| find_group(name).map_err(|error| not_found("group", name, error))).transpose()?;
        let own = sys::own_identity();
        if !sys::may_change_identity(kind) {
            return keep_current_identity(own, user.zip(account.map(|account| account.uid)), group.zip(gid)).map(Some);
        }
        let Some(identity) = wanted_identity(account, gid)? else { return Ok(None) };
        match sys::check_identity(&identity, kind) {
            Ok(()) => Ok(Some(identity)),
            // The process cannot change its groups. But it has this user and this group already.
            Err(_) if identity.gid == own.gid && identity.uid.is_none_or(|uid| Some(uid) == own.uid) => {
                Ok(Some(Identity { groups: None, ..identity }))
            }
            Err(refusal) => Err(unfit_identity(refusal, user, group)),
        }
    }
}

/// Returns the identity of workers that have this user, this group or both. Without a group, workers get the user's
/// group.
#[cfg(unix)]
fn wanted_identity(account: Option<Account>, gid: Option<u32>) -> Result<Option<Identity>> {
    let Some(account) = account else {
        return Ok(gid.map(|gid| Identity { uid: None, gid, groups: Some(vec![gid]) }));
    };
    let Some(gid) = gid.or(account.record.as_ref().map(|&(_, gid)| gid)) else {
        let problem = format!("no user has the number {}, so a group must be set", account.uid);
        return Err(Error::unfit("group", problem));
    };
    let groups = account.record.map_or(Ok(vec![gid]), |(name, _)| sys::groups_of(&name, gid))?;
    Ok(Some(Identity { uid: Some(account.uid), gid, groups: Some(groups) }))
}

/// Returns the error for an identity that workers cannot have. It names the setting that requires the refused part.
#[cfg(unix)]
fn unfit_identity(refusal: IdentityRefusal, user: Option<&str>, group: Option<&str>) -> Error {
    let IdentityRefusal { part, reason, error } = refusal;
    let (setting, name) = match (part, user, group) {
        (IdentityPart::Group, _, Some(group)) | (_, None, Some(group)) => ("group", group),
        (_, user, _) => ("user", user.unwrap_or_default()),
    };
    Error::unfit_for(setting, format!("workers cannot change to {name}: {reason}"), error)
}

/// Checks the settings `user` and `group` in a parent that has no right to change its user or its groups. So this
/// function accepts only the parent's `own` user and group, and returns EPERM for any other user or group.
#[cfg(unix)]
fn keep_current_identity(own: Identity, user: Option<(&str, u32)>, group: Option<(&str, u32)>) -> Result<Identity> {
    let refused = |setting, name| {
        let error = nix::errno::Errno::EPERM.into();
        Error::unfit_for(setting, format!("it takes root to become {name}"), error)
    };
    match (user, group) {
        (Some((name, uid)), _) if own.uid != Some(uid) => Err(refused("user", name)),
        (_, Some((name, gid))) if own.gid != gid => Err(refused("group", name)),
        (None, _) => Ok(Identity { uid: None, ..own }),
        _ => Ok(own),
    }
}

#[cfg(unix)]
fn not_found(setting: &'static str, name: &str, error: std::io::Error) -> Error {
    Error::unfit_for(setting, format!("cannot look up {name}"), error)
}

impl WorkerSetup {
    /// Returns the settings for worker `id`. If there are more workers than CPUs, several workers get the same CPU.
    pub fn for_worker(&self, id: usize) -> ChildSetup {
        let cpu = (!self.cpus.is_empty()).then(|| self.cpus[id % self.cpus.len()]);
        let name = self.name.as_ref().map(|name| match self.pool {
            "" => format!("{name}/{id}"),
            pool => format!("{name}/{pool}/{id}"),
        });
        ChildSetup { cpu, identity: self.identity.clone(), name }
    }
}

impl ChildSetup {
    /// Names this worker process, pins it to its CPU, and changes its user and groups. If the change of the user or the
    /// groups fails, logs the error and exits with status 1.
    ///
    /// Call this before `Lifeline::hold`, which makes the kernel send SIGTERM to the worker when the parent ends
    /// (`PR_SET_PDEATHSIG`, prctl(2)). On Linux, a change of the user clears `PR_SET_PDEATHSIG`.
    pub fn apply(&self, worker: WorkerName) {
        // Before the change of the user, because that can take away the right to write to files in /proc.
        if let Some(name) = &self.name {
            match ProcessName::set(name) {
                Ok(set) => set.keep(),
                Err(error) => warn_of_name(name, error),
            }
        }
        self.pin(worker);
        let Some(identity) = &self.identity else { return };
        match sys::drop_privileges(identity) {
            Ok(None) => {}
            Ok(Some(remains)) => log!(target: "taskfork", Level::Warn, "{worker}: {remains}"),
            Err(error) => {
                failure::report(&format_args!("{:?}", Error::from(error).starting(worker.id).in_pool(worker.pool)));
                log::logger().flush();
                sys::exit_now(1);
            }
        }
    }

    /// Pins the calling thread to the worker's CPU. If this fails, logs a warning, and the thread continues unpinned.
    /// This is not treated as a failure of the worker, because the system may have withdrawn the CPU from the process
    /// since the start of the service.
    pub fn pin(&self, worker: WorkerName) {
        let Some(cpu) = self.cpu else { return };
        if let Err(error) = sys::pin_to(cpu) {
            log!(target: "taskfork", Level::Warn, "{worker} is not pinned to CPU {cpu}: {:?}", Error::from(error));
        }
    }
}

/// Logs that this process cannot have this name. This is not treated as a failure, because the process works without
/// the name too.
pub(crate) fn warn_of_name(name: &str, error: CallError) {
    log!(target: "taskfork", Level::Warn, "the process cannot be named {name}: {:?}", Error::from(error));
}

impl fmt::Display for ChildSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cpu {
            Some(cpu) => write!(f, "{cpu} ")?,
            None => f.write_str("- ")?,
        }
        match self.identity.as_deref() {
            Some(identity) => write_identity(f, identity)?,
            None => f.write_str("-")?,
        }
        f.write_str(" ")?;
        write_name(f, self.name.as_deref())
    }
}

fn write_identity(f: &mut fmt::Formatter<'_>, Identity { uid, gid, groups }: &Identity) -> fmt::Result {
    match uid {
        Some(uid) => write!(f, "{uid}:{gid}:")?,
        None => write!(f, "-:{gid}:")?,
    }
    let Some(groups) = groups else { return f.write_str("-") };
    groups.iter().enumerate().try_for_each(|(at, group)| write!(f, "{}{group}", if at == 0 { "" } else { "," }))
}

impl FromStr for ChildSetup {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<ChildSetup, ()> {
        let (cpu, rest) = text.split_once(' ').ok_or(())?;
        let (identity, name) = rest.split_once(' ').ok_or(())?;
        let cpu = unless_none(cpu, |cpu| cpu.parse().map_err(|_| ()))?;
        let identity = unless_none(identity, |identity| {
            let mut fields = identity.splitn(3, ':');
            let mut next = || fields.next().ok_or(());
            let uid = unless_none(next()?, |uid| uid.parse().map_err(|_| ()))?;
            let gid = next()?.parse().map_err(|_| ())?;
            let groups = unless_none(next()?, |groups| {
                let groups = groups.split(',').filter(|group| !group.is_empty());
                groups.map(|group| group.parse().map_err(|_| ())).collect()
            })?;
            Ok(Arc::new(Identity { uid, gid, groups }))
        })?;
        let name = parse_name(name)?;
        Ok(ChildSetup { cpu, identity, name })
    }
}

/// Writes the bytes of a name in hexadecimal, so that the name contains no separator. Writes a hyphen if there is no
/// name.
pub(crate) fn write_name(f: &mut fmt::Formatter<'_>, name: Option<&str>) -> fmt::Result {
    match name {
        Some(name) => name.bytes().try_for_each(|byte| write!(f, "{byte:02x}")),
        None => f.write_str("-"),
    }
}

/// Returns the name that [`write_name`] has written. A name is never empty.
pub(crate) fn parse_name(text: &str) -> std::result::Result<Option<String>, ()> {
    unless_none(text, from_hex)
}

/// Returns the text of these hexadecimal digits.
fn from_hex(hex: &str) -> std::result::Result<String, ()> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = hex.as_bytes().chunks(2).map(|pair| match pair {
        &[high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    });
    let bytes = pairs.collect::<Option<_>>().ok_or(())?;
    String::from_utf8(bytes).ok().filter(|name| !name.is_empty()).ok_or(())
}

fn unless_none<T>(
    text: &str,
    parse: impl FnOnce(&str) -> std::result::Result<T, ()>,
) -> std::result::Result<Option<T>, ()> {
    if text == "-" { Ok(None) } else { parse(text).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_setup_round_trips_as_text() {
        let identities = [
            None,
            Some(Identity { uid: Some(33), gid: 34, groups: Some(vec![34, 4]) }),
            Some(Identity { uid: Some(33), gid: 34, groups: Some(vec![]) }),
            Some(Identity { uid: None, gid: 34, groups: None }),
        ];
        for identity in identities {
            for cpu in [None, Some(3)] {
                for name in [None, Some("web 1ö/3".to_owned())] {
                    let setup = ChildSetup { cpu, identity: identity.clone().map(Arc::new), name };
                    assert_eq!(setup.to_string().parse(), Ok(setup.clone()), "{setup}");
                }
            }
        }
        for wrong in ["", "- -", "- ", "x - -", "-1 - -", "- 1 -", "- 1:2 -", "- 1:-:3 -", "- 1:2:3,x -", "- 1:2:3:4 -"]
        {
            assert_eq!(wrong.parse::<ChildSetup>(), Err(()), "{wrong}");
        }
        for wrong in ["- - - -", "- - ", "- - 7", "- - 776", "- - 7x", "- - ff", "- - ööö"] {
            assert_eq!(wrong.parse::<ChildSetup>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn cpus_and_names_are_assigned_by_id() {
        let setup = WorkerSetup { pool: "", name: Some("web".into()), cpus: vec![2, 5, 6], identity: None };
        let assigned: Vec<_> = (0..5).map(|id| setup.for_worker(id).cpu.expect("a CPU")).collect();
        assert_eq!(assigned, [2, 5, 6, 2, 5]);
        assert_eq!(setup.for_worker(3).name.as_deref(), Some("web/3"));
        let jobs = WorkerSetup { pool: "jobs", name: Some("shop".into()), cpus: vec![], identity: None };
        assert_eq!(jobs.for_worker(2).name.as_deref(), Some("shop/jobs/2"));
        let setup = WorkerSetup { pool: "jobs", name: None, cpus: vec![], identity: None }.for_worker(1);
        assert_eq!(setup, ChildSetup::default());
    }

    #[cfg(unix)]
    #[test]
    fn without_root_only_the_own_user_is_accepted() {
        let own = Identity { uid: Some(33), gid: 34, groups: None };
        let refused = |user, group| keep_current_identity(own.clone(), user, group).expect_err("a refusal");
        assert_eq!(keep_current_identity(own.clone(), Some(("me", 33)), None).ok(), Some(own.clone()));
        assert_eq!(keep_current_identity(own.clone(), Some(("me", 33)), Some(("mine", 34))).ok(), Some(own.clone()));
        assert_eq!(
            keep_current_identity(own.clone(), None, Some(("mine", 34))).ok(),
            Some(Identity { uid: None, ..own.clone() })
        );
        assert_eq!(refused(Some(("root", 0)), None).setting(), Some("user"));
        assert_eq!(refused(Some(("root", 0)), Some(("wheel", 0))).setting(), Some("user"));
        assert_eq!(refused(Some(("me", 33)), Some(("wheel", 0))).setting(), Some("group"));
        let error = refused(None, Some(("wheel", 0)));
        assert_eq!(error.setting(), Some("group"));
        assert_eq!(error.io_error().map(std::io::Error::kind), Some(std::io::ErrorKind::PermissionDenied));
        assert!(format!("{error:?}").starts_with("group: it takes root to become wheel: "), "{error}");
    }
}
