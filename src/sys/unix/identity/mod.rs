//! Changes the user and the groups of this process so that the process cannot undo the change.
//!
//! # Safety
//! The system calls read and write arrays and integers of the right size. They change only the user and the groups of
//! this process. The functions of the C library make this change in all threads of the process. The bare system calls
//! on Linux would change only the calling thread (nptl(7)).

#[cfg(target_os = "linux")]
mod capability;
#[cfg(target_os = "linux")]
mod keyring;
mod refusal;
#[cfg(target_os = "linux")]
mod thread_check;

use std::io;

use nix::unistd::{Gid, Uid};

pub(crate) use refusal::{IdentityPart, IdentityRefusal, check_identity, may_change_identity};

use crate::sys::{CallError, Identity};

/// Returns the effective user and group of this process.
pub(crate) fn own_identity() -> Identity {
    let uid = nix::unistd::geteuid().as_raw();
    let gid = nix::unistd::getegid().as_raw();
    Identity { uid: Some(uid), gid, groups: None }
}

/// Changes the user and the groups of this process. Returns an error if a part was not changed, or if the process could
/// undo the change. After an error, the process has an unknown mix of old and new rights, so the caller must end the
/// process.
///
/// This function changes the user last, because the other changes require the rights of the old user. It skips a call
/// that would change nothing, because the system may refuse even such a call. For example, setgroups(2) fails in a user
/// namespace that maps one id.
///
/// Returns a sentence if a part of the old rights remains that the calling thread cannot take from other threads.
pub(crate) fn drop_privileges(identity: &Identity) -> Result<Option<&'static str>, CallError> {
    let &Identity { uid, gid, ref groups } = identity;
    let becomes_unprivileged = uid.is_some_and(|uid| uid != 0);
    let changes_user = becomes_unprivileged && !uid.map_or(Ok(true), |uid| ids::has_user(Uid::from_raw(uid)))?;
    // The new keyring counts for the quota of the present user, and a user other than root has a low one.
    let remains = if changes_user { leave_keyring()? } else { None };
    if let Some(groups) = groups.as_ref().filter(|groups| !has_groups(gid, groups)) {
        set_groups(groups)?;
    }
    let gid = Gid::from_raw(gid);
    if !ids::has_group(gid)? {
        ids::set_group(gid)?;
    }
    let Some(uid) = uid.map(Uid::from_raw) else { return Ok(remains) };
    if !ids::has_user(uid)? {
        ids::set_user(uid)?;
    }
    if becomes_unprivileged {
        finish(uid, gid)?;
    }
    Ok(remains)
}

/// Leaves the session keyring. Returns a sentence if other threads keep it.
#[cfg(target_os = "linux")]
fn leave_keyring() -> Result<Option<&'static str>, CallError> {
    use super::threads::{Threads, thread_count};

    let is_left = keyring::leave_session()? && thread_count()? != Threads::One;
    Ok(is_left.then_some("the threads that the program has started before the call keep the parent's session keyring"))
}

#[cfg(not(target_os = "linux"))]
fn leave_keyring() -> Result<Option<&'static str>, CallError> {
    Ok(None)
}

/// Gives up what a change from root to another user leaves. Then tries to become root again, and checks all threads.
#[cfg(target_os = "linux")]
fn finish(uid: Uid, gid: Gid) -> Result<(), CallError> {
    capability::drop_all()?;
    // The function of the C library would make this call in all threads, and would end the process if only some
    // succeed. SAFETY: setuid(2) takes an integer.
    if unsafe { libc::syscall(libc::SYS_setuid, 0) } == 0 {
        return Err(CallError::new("setuid", io::Error::other("it could become root again")));
    }
    thread_check::check_threads(uid, gid)
}

/// Tries to become root again. Returns an error if the process has become root.
#[cfg(not(target_os = "linux"))]
fn finish(_: Uid, _: Gid) -> Result<(), CallError> {
    match nix::unistd::setuid(Uid::from_raw(0)) {
        Ok(()) => Err(CallError::new("setuid", io::Error::other("it could become root again"))),
        Err(_) => Ok(()),
    }
}

/// Returns whether this process has exactly these groups. The group `gid` counts as one of them in any case, because
/// the process gets it as its own group.
#[cfg(target_os = "linux")]
fn has_groups(gid: u32, groups: &[u32]) -> bool {
    use std::collections::BTreeSet;

    let Ok(current) = nix::unistd::getgroups() else { return false };
    let current: BTreeSet<u32> = current.into_iter().map(Gid::as_raw).chain([gid]).collect();
    current == groups.iter().copied().chain([gid]).collect()
}

/// Returns false, because root may always call setgroups(2) on these systems.
#[cfg(not(target_os = "linux"))]
fn has_groups(_: u32, _: &[u32]) -> bool {
    false
}

/// Sets the real, the effective and the saved id, and then checks that all three have changed.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
mod ids {
    use nix::unistd::{getresgid, getresuid, setresgid, setresuid};

    use super::{CallError, Gid, Uid, incomplete};

    pub fn set_group(gid: Gid) -> Result<(), CallError> {
        setresgid(gid, gid, gid).map_err(|error| CallError::new("setresgid", error))?;
        if has_group(gid)? { Ok(()) } else { Err(incomplete("setresgid")) }
    }

    pub fn has_group(gid: Gid) -> Result<bool, CallError> {
        let now = getresgid().map_err(|error| CallError::new("getresgid", error))?;
        Ok([now.real, now.effective, now.saved] == [gid; 3])
    }

    pub fn set_user(uid: Uid) -> Result<(), CallError> {
        setresuid(uid, uid, uid).map_err(|error| CallError::new("setresuid", error))?;
        if has_user(uid)? { Ok(()) } else { Err(incomplete("setresuid")) }
    }

    pub fn has_user(uid: Uid) -> Result<bool, CallError> {
        let now = getresuid().map_err(|error| CallError::new("getresuid", error))?;
        Ok([now.real, now.effective, now.saved] == [uid; 3])
    }
}

/// Sets the ids with setgid(2) and setuid(2). For root, they set the real, the effective and the saved id. Then checks
/// the real and the effective id.
#[cfg(target_os = "macos")]
mod ids {
    use nix::unistd::{getegid, geteuid, getgid, getuid, setgid, setuid};

    use super::{CallError, Gid, Uid, incomplete};

    pub fn set_group(gid: Gid) -> Result<(), CallError> {
        setgid(gid).map_err(|error| CallError::new("setgid", error))?;
        if [getgid(), getegid()] == [gid; 2] { Ok(()) } else { Err(incomplete("setgid")) }
    }

    /// Returns false, because macOS has no call that returns the saved id.
    pub fn has_group(_: Gid) -> Result<bool, CallError> {
        Ok(false)
    }

    pub fn set_user(uid: Uid) -> Result<(), CallError> {
        setuid(uid).map_err(|error| CallError::new("setuid", error))?;
        if [getuid(), geteuid()] == [uid; 2] { Ok(()) } else { Err(incomplete("setuid")) }
    }

    /// Returns false, because macOS has no call that returns the saved id.
    pub fn has_user(_: Uid) -> Result<bool, CallError> {
        Ok(false)
    }
}

fn incomplete(call: &'static str) -> CallError {
    CallError::new(call, io::Error::other("not all ids were changed"))
}

#[cfg(not(target_os = "macos"))]
fn set_groups(groups: &[u32]) -> Result<(), CallError> {
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    nix::unistd::setgroups(&groups).map_err(|error| CallError::new("setgroups", error))
}

/// Returns the groups that this user belongs to, including `gid`.
#[cfg(not(target_os = "macos"))]
pub(crate) fn groups_of(user: &std::ffi::CStr, gid: u32) -> Result<Vec<u32>, CallError> {
    let groups = nix::unistd::getgrouplist(user, Gid::from_raw(gid));
    let groups = groups.map_err(|error| CallError::new("getgrouplist", error))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

#[cfg(target_os = "macos")]
fn set_groups(groups: &[u32]) -> Result<(), CallError> {
    // SAFETY: setgroups(2) reads as many groups as the slice contains.
    match unsafe { libc::setgroups(groups.len() as libc::c_int, groups.as_ptr()) } {
        0 => Ok(()),
        _ => Err(CallError::last("setgroups")),
    }
}

/// Returns the groups that this user belongs to, including `gid`. Returns only the first 16 groups, because a process
/// on macOS cannot have more.
#[cfg(target_os = "macos")]
pub(crate) fn groups_of(user: &std::ffi::CStr, gid: u32) -> Result<Vec<u32>, CallError> {
    /// `NGROUPS_MAX`.
    const MOST: usize = 16;
    let mut groups = [0; MOST];
    let mut len = MOST as libc::c_int;
    // SAFETY: getgrouplist(3) reads a C string and writes at most `len` groups, and `groups` has room for them. It
    // returns -1 if the user has more groups. That is no error here, because `groups` then contains the first ones.
    unsafe { libc::getgrouplist(user.as_ptr(), gid as libc::c_int, groups.as_mut_ptr(), &raw mut len) };
    let len = usize::try_from(len).unwrap_or(0).min(MOST);
    Ok(groups[..len].iter().map(|&group| group as u32).collect())
}
