//! The session keyring of the calling thread (keyrings(7)). Linux only.
//!
//! # Safety
//! The system calls take integers and a null pointer. They concern only the calling thread.

use crate::sys::CallError;

// The numbers of keyctl(2), from `linux/keyctl.h`.
const KEYCTL_GET_KEYRING_ID: libc::c_long = 0;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
const KEY_SPEC_SESSION_KEYRING: libc::c_long = -3;

/// Replaces the session keyring of the calling thread by a new and empty one, because the keys of the old one may be
/// secrets of root. Returns false if this process can use no session keyring, neither the old one nor a new one.
///
/// Call this before the change of the user. The new keyring then counts towards the quota of root, which is a million
/// keys, and not towards the quota of the new user, which is 200 keys for all processes of that user.
pub(super) fn leave_session() -> Result<bool, CallError> {
    let unnamed: libc::c_long = 0;
    // SAFETY: without a name, KEYCTL_JOIN_SESSION_KEYRING creates a keyring (keyctl(2)).
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, unnamed) };
    if joined >= 0 {
        return Ok(true);
    }
    let refused = CallError::last("keyctl");
    if is_reachable() { Err(refused) } else { Ok(false) }
}

/// Returns whether this process can use its session keyring. Each call of keyctl(2) fails if the kernel has no
/// keyrings, and if a seccomp filter forbids the call, as Docker's filter does. The process then cannot read a key
/// either.
fn is_reachable() -> bool {
    let create: libc::c_long = 0;
    // SAFETY: KEYCTL_GET_KEYRING_ID takes integers (keyctl(2)).
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, create) >= 0 }
}
