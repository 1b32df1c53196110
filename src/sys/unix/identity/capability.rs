//! The capabilities of the calling thread (capabilities(7)). Linux only.
//!
//! # Safety
//! The system calls read and write integers and arrays of the right size. They concern only the calling thread.

use std::io;

use nix::unistd::geteuid;

use crate::sys::{CallError, WorkerKind};

/// A capability that a parent or its workers require if the workers run as another user.
#[derive(Clone, Copy)]
pub(super) struct Capability {
    number: u32,
    pub name: &'static str,
}

impl Capability {
    pub const KILL: Capability = Capability { number: 5, name: "CAP_KILL" };
    pub const SETGID: Capability = Capability { number: 6, name: "CAP_SETGID" };
    pub const SETUID: Capability = Capability { number: 7, name: "CAP_SETUID" };

    /// Returns whether a worker of this kind has this capability when it changes its user.
    ///
    /// A forked worker has the capabilities of the thread that forks it. A spawned worker has the capabilities that
    /// execve(2) gives to it.
    pub fn is_available(self, kind: WorkerKind) -> Result<bool, CallError> {
        let sets = Sets::of_this_thread()?;
        if kind != WorkerKind::Spawn {
            return Ok(self.is_in(sets.effective));
        }
        if !geteuid().is_root() || prctl(libc::PR_GET_SECUREBITS, 0, 0) & libc::SECBIT_NOROOT != 0 {
            return Ok(prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_IS_SET, self.number) == 1);
        }
        let is_gained =
            prctl(libc::PR_CAPBSET_READ, self.number as libc::c_int, 0) == 1 || self.is_in(sets.inheritable);
        let is_limited = prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0) == 1;
        Ok(is_gained && (!is_limited || self.is_in(sets.permitted)))
    }

    fn is_in(self, set: u64) -> bool {
        set & (1 << self.number) != 0
    }
}

/// Empties the effective, the permitted and the inheritable set of the calling thread. The kernel then empties the
/// ambient set too, because it is a part of the permitted and the inheritable set.
///
/// A change of the user does not do this for a thread that has set `PR_SET_KEEPCAPS` or `SECBIT_NO_SETUID_FIXUP`, or
/// that did not run as root. No change of the user empties the inheritable set.
pub(super) fn drop_all() -> Result<(), CallError> {
    const NONE: Sets = Sets { effective: 0, permitted: 0, inheritable: 0 };
    if Sets::of_this_thread()? == NONE {
        return Ok(());
    }
    let header = [VERSION, 0];
    let halves = [[0_u32; 3]; 2];
    // SAFETY: capset(2) reads two structs of three 32-bit values for this version. Pid 0 means the calling thread.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), halves.as_ptr()) } != 0 {
        return Err(CallError::last("capset"));
    }
    if Sets::of_this_thread()? == NONE {
        return Ok(());
    }
    Err(CallError::new("capset", io::Error::other("it has kept capabilities")))
}

/// The capability sets of a thread, one bit for each capability.
#[derive(PartialEq, Eq)]
struct Sets {
    effective: u64,
    permitted: u64,
    inheritable: u64,
}

/// `_LINUX_CAPABILITY_VERSION_3`, capget(2).
const VERSION: u32 = 0x2008_0522;

impl Sets {
    fn of_this_thread() -> Result<Sets, CallError> {
        let mut header = [VERSION, 0];
        // Each inner array holds the effective, the permitted and the inheritable set. The first inner array is for the
        // capabilities 0 to 31, the second for the capabilities 32 to 63.
        let mut halves = [[0_u32; 3]; 2];
        // SAFETY: capget(2) writes two structs of three 32-bit values for this version, and `halves` has room for both.
        // Pid 0 means the calling thread.
        if unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), halves.as_mut_ptr()) } != 0 {
            return Err(CallError::last("capget"));
        }
        let [low, high] = halves;
        let set = |at: usize| u64::from(low[at]) | u64::from(high[at]) << 32;
        Ok(Sets { effective: set(0), permitted: set(1), inheritable: set(2) })
    }
}

/// Reads an attribute of the calling thread with prctl(2).
fn prctl(attribute: libc::c_int, argument: libc::c_int, capability: u32) -> libc::c_int {
    let argument = argument as libc::c_ulong;
    let capability = libc::c_ulong::from(capability);
    let unused: libc::c_ulong = 0;
    // SAFETY: the attributes that this file reads take integers, and reading them changes nothing (prctl(2)).
    unsafe { libc::prctl(attribute, argument, capability, unused, unused) }
}
