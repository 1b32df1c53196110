//! Detects whether a worker has forked this process, without a system call.
//!
//! # Safety
//! The handler runs in the child of fork(2), where only async-signal-safe functions may be called (pthread_atfork(3)).
//! It stores one value.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set in each process that a watched process has forked.
static IS_FORK: AtomicBool = AtomicBool::new(false);

extern "C" fn note_fork() {
    IS_FORK.store(true, Ordering::Relaxed);
}

/// Watches the forks of this process, which must be a worker that never becomes a parent. If the system has no memory
/// for this, a fork is not recognized.
pub(crate) fn watch_forks() {
    static WATCH: Once = Once::new();
    // SAFETY: pthread_atfork(3) takes functions, which exist until the process ends, because a program does not unload
    // its own code.
    WATCH.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(note_fork));
    });
}

/// Returns whether this process was forked by a process that had called [`watch_forks`]. A process that was made by
/// another function than fork(3), for example by the system call, is not recognized.
#[inline]
pub(crate) fn is_fork() -> bool {
    IS_FORK.load(Ordering::Relaxed)
}
