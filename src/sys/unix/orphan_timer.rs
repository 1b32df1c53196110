//! The timer that kills a worker which does not exit after the death of its parent. While the parent lives, only the
//! parent kills the worker.
//!
//! # Safety
//! timer_create(2) reads one sigevent and writes one timer id. timer_settime(2) reads one itimerspec. Both affect only
//! the calling process. No code dereferences a timer id.

#[cfg(all(any(target_os = "linux", target_os = "freebsd"), not(taskfork_portable)))]
pub(super) use posix::OrphanTimer;

#[cfg(any(target_os = "macos", taskfork_portable))]
pub(super) use thread::OrphanTimer;

/// A POSIX timer that sends SIGKILL to its own process. The handler of SIGTERM starts the timer. A process that the
/// worker forks does not inherit the timer, and execve(2) deletes it.
#[cfg(all(any(target_os = "linux", target_os = "freebsd"), not(taskfork_portable)))]
mod posix {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::{mem, ptr};

    use crate::sys::CallError;
    use crate::sys::unix::lifeline::Held;

    #[derive(Debug)]
    pub(in crate::sys::unix) struct OrphanTimer {
        parent: u32,
        timer: libc::timer_t,
        timeout: libc::itimerspec,
        is_started: AtomicBool,
    }

    // SAFETY: a timer id may be used by every thread of the process (timer_settime(2)).
    unsafe impl Send for OrphanTimer {}
    // SAFETY: as above.
    unsafe impl Sync for OrphanTimer {}

    impl OrphanTimer {
        /// Creates the timer for the lifeline that this process holds. Returns `None` if the process holds no lifeline,
        /// or if the pid of its parent is unknown.
        pub fn new() -> Result<Option<OrphanTimer>, CallError> {
            let Some(Held { parent, graceful_timeout }) = Held::get() else { return Ok(None) };
            let Some(parent) = parent else { return Ok(None) };
            // SAFETY: zero bytes are a valid sigevent and a valid itimerspec, which consist of integers and pointers.
            let (mut event, mut timeout): (libc::sigevent, libc::itimerspec) = unsafe { mem::zeroed() };
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = libc::SIGKILL;
            timeout.it_value.tv_sec = graceful_timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX);
            timeout.it_value.tv_nsec = graceful_timeout.subsec_nanos() as libc::c_long;
            let mut timer = ptr::null_mut();
            // SAFETY: timer_create(2) reads the sigevent and writes the id.
            if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } == -1 {
                return Err(CallError::last("timer_create"));
            }
            Ok(Some(OrphanTimer { parent, timer, timeout, is_started: AtomicBool::new(false) }))
        }

        /// Returns whether the parent has ended. Only makes calls that are async-signal-safe.
        pub fn is_orphaned(&self) -> bool {
            std::os::unix::process::parent_id() != self.parent
        }

        /// Starts the timer at the first call, if the parent has ended. A later stop request does not give the worker
        /// more time. Only makes calls that are async-signal-safe. Changes `errno`.
        pub fn start_if_orphaned(&self) {
            if self.is_orphaned() && !self.is_started.swap(true, Ordering::Relaxed) {
                // SAFETY: timer_settime(2) reads the itimerspec. The timer exists until the process ends.
                unsafe { libc::timer_settime(self.timer, 0, &raw const self.timeout, ptr::null_mut()) };
            }
        }
    }
}

/// The thread of the lifeline is the timer, because macOS has no POSIX timers.
#[cfg(any(target_os = "macos", taskfork_portable))]
mod thread {
    use crate::sys::CallError;
    use crate::sys::unix::lifeline;

    #[derive(Debug)]
    pub(in crate::sys::unix) struct OrphanTimer;

    impl OrphanTimer {
        /// Makes the thread of the lifeline kill this process if it does not exit after the death of its parent.
        pub fn new() -> Result<Option<OrphanTimer>, CallError> {
            lifeline::kill_after_timeout();
            Ok(None)
        }

        /// Returns false, because the thread of the lifeline checks this.
        pub fn is_orphaned(&self) -> bool {
            false
        }

        /// Does nothing, because the thread of the lifeline does not need to be started.
        pub fn start_if_orphaned(&self) {}
    }
}
