//! Finds out in the parent, before a worker starts, whether workers can change their user and groups.
//!
//! # Safety
//! The system calls take integers and change nothing.

use std::io;

use crate::sys::{Identity, WorkerKind};

/// The reason why workers cannot have an identity.
#[derive(Debug)]
pub(crate) struct IdentityRefusal {
    pub part: IdentityPart,
    pub reason: String,
    pub error: io::Error,
}

/// The part of an identity that workers cannot have.
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only the check on Linux refuses an identity"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdentityPart {
    User,
    Group,
    SupplementaryGroups,
}

/// Returns whether this process, or a worker of this kind, may have the right to change its user or its groups.
#[cfg(not(target_os = "linux"))]
pub(crate) fn may_change_identity(_: WorkerKind) -> bool {
    nix::unistd::geteuid().is_root()
}

/// Does nothing, because root may change to every user and group on these systems.
#[cfg(not(target_os = "linux"))]
pub(crate) fn check_identity(_: &Identity, _: WorkerKind) -> Result<(), IdentityRefusal> {
    Ok(())
}

#[cfg(target_os = "linux")]
pub(crate) use linux::{check_identity, may_change_identity};

#[cfg(target_os = "linux")]
mod linux {
    use std::{fs, io};

    use nix::errno::Errno;
    use nix::unistd::{Gid, Uid, geteuid};

    use super::super::capability::Capability;
    use super::super::{has_groups, ids};
    use super::{Identity, IdentityPart, IdentityRefusal, WorkerKind};
    use crate::sys::CallError;

    /// Returns whether this process, or a worker of this kind, may have the right to change its user or its groups.
    pub(crate) fn may_change_identity(kind: WorkerKind) -> bool {
        let is_available = |capability: Capability| capability.is_available(kind).unwrap_or(false);
        geteuid().is_root() || is_available(Capability::SETUID) || is_available(Capability::SETGID)
    }

    /// Returns an error if workers of this kind cannot change to this identity. Checks only the parts that the worker
    /// would have to change, in the order in which it would change them.
    pub(crate) fn check_identity(identity: &Identity, kind: WorkerKind) -> Result<(), IdentityRefusal> {
        let &Identity { uid, gid, ref groups } = identity;
        let wanted = groups.as_deref().filter(|groups| !has_groups(gid, groups));
        if let Some(groups) = wanted {
            let refusal = refused(IdentityPart::SupplementaryGroups);
            check_capability(Capability::SETGID, kind).map_err(&refusal)?;
            check_setgroups().map_err(&refusal)?;
            check_mapping("gid_map", "group", groups).map_err(&refusal)?;
        }
        if !ids::has_group(Gid::from_raw(gid)).unwrap_or(false) {
            let refusal = refused(IdentityPart::Group);
            check_capability(Capability::SETGID, kind).map_err(&refusal)?;
            check_mapping("gid_map", "group", &[gid]).map_err(&refusal)?;
            check_call("setresgid", libc::SYS_setresgid).map_err(&refusal)?;
        }
        let Some(uid) = uid else { return Ok(()) };
        if !ids::has_user(Uid::from_raw(uid)).unwrap_or(false) {
            let refusal = refused(IdentityPart::User);
            check_capability(Capability::SETUID, kind).map_err(&refusal)?;
            // Without CAP_KILL, the parent could not stop a worker of another user (kill(2)). The parent forks its
            // workers with its own capabilities, so `Fork` stands for the parent itself.
            check_capability(Capability::KILL, WorkerKind::Fork).map_err(&refusal)?;
            check_mapping("uid_map", "user", &[uid]).map_err(&refusal)?;
            check_call("setresuid", libc::SYS_setresuid).map_err(&refusal)?;
        }
        Ok(())
    }

    type Problem = (String, io::Error);

    fn refused(part: IdentityPart) -> impl Fn(Problem) -> IdentityRefusal {
        move |(reason, error)| IdentityRefusal { part, reason, error }
    }

    fn check_capability(capability: Capability, kind: WorkerKind) -> Result<(), Problem> {
        match capability.is_available(kind) {
            Ok(true) => Ok(()),
            Ok(false) => Err((format!("the process lacks {}", capability.name), Errno::EPERM.into())),
            Err(CallError { call, source }) => Err((format!("{call} failed"), source)),
        }
    }

    /// Returns an error if this user namespace forbids setgroups(2) (user_namespaces(7)).
    fn check_setgroups() -> Result<(), Problem> {
        match fs::read_to_string("/proc/self/setgroups") {
            Ok(rule) if rule.trim() == "deny" => {
                Err(("this user namespace forbids setgroups".into(), Errno::EPERM.into()))
            }
            _ => Ok(()),
        }
    }

    /// Returns an error if an id has no mapping in this user namespace (user_namespaces(7)). Without `/proc`, accepts
    /// every id.
    fn check_mapping(map: &str, what: &str, ids: &[u32]) -> Result<(), Problem> {
        let Ok(map) = fs::read_to_string(format!("/proc/self/{map}")) else { return Ok(()) };
        match ids.iter().find(|&&id| !is_mapped(&map, id)) {
            Some(id) => Err((format!("{what} {id} has no mapping in this user namespace"), Errno::EINVAL.into())),
            None => Ok(()),
        }
    }

    /// Returns whether a line of the map contains this id. A line consists of the first id inside the namespace, the
    /// first id outside, and the number of ids.
    fn is_mapped(map: &str, id: u32) -> bool {
        map.lines().any(|line| {
            let mut fields = line.split_whitespace().map(str::parse::<u64>);
            let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (fields.next(), fields.next(), fields.next()) else {
                return false;
            };
            (first..first + count).contains(&u64::from(id))
        })
    }

    /// Returns an error if the system refuses a call of setresuid(2) or setresgid(2) that changes nothing. A seccomp
    /// filter can refuse such a call.
    fn check_call(name: &str, call: libc::c_long) -> Result<(), Problem> {
        // SAFETY: setresuid(2) and setresgid(2) change no id that is -1.
        match unsafe { libc::syscall(call, -1, -1, -1) } {
            0 => Ok(()),
            _ => Err((format!("{name} is not permitted"), io::Error::last_os_error())),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn ids_are_mapped_by_any_line() {
            let map = "         0       1000          1\n      1000     100000      65536\n";
            for (id, expected) in [(0, true), (1, false), (999, false), (1000, true), (66535, true), (66536, false)] {
                assert_eq!(is_mapped(map, id), expected, "{id}");
            }
            assert!(is_mapped("0 0 4294967295\n", 4_294_967_294));
            assert!(!is_mapped("", 0));
        }
    }
}
