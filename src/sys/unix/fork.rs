//! A safe function for fork(2).
//!
//! # Safety
//! The child of fork(2) has a copy of the parent's memory, but only one thread: a copy of the thread that called
//! fork(2). If another thread held a lock during the fork, for example the lock of the allocator, that lock is never
//! released in the child. If another thread was changing a data structure, the change stays half finished in the child.
//! Arbitrary Rust code in the child is therefore sound only if the parent had one thread. [`fork`] checks this before
//! each fork.

use std::io::{self, Write};
use std::{process, thread};

use nix::sys::signal::{SigSet, SigmaskHow};

use super::threads::{Threads, thread_count};
use super::wait::ChildHandle;
use crate::sys::{CallError, ForkError};

/// The process in which [`fork`] has returned: the parent or the child.
#[derive(Debug)]
pub(crate) enum Forked {
    Parent(ChildHandle),
    /// The child. Every signal is still blocked in it.
    Child,
}

/// Forks this process. Every signal is blocked during the fork, and stays blocked in the child until the child restores
/// its signal mask. A signal that the child receives before that stays pending, so it is not lost.
#[inline]
pub(crate) fn fork() -> Result<Forked, ForkError> {
    if let Threads::Several(count) = thread_count()? {
        return Err(ForkError::Threads(count));
    }
    let before = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_SETMASK)
        .map_err(|error| CallError::new("pthread_sigmask", error))?;
    // SAFETY: the process has one thread, so the child may run any code; see the module's safety section.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        return Ok(Forked::Child);
    }
    let refused = CallError::last("fork");
    // This restores the mask that pthread_sigmask(3) has returned above, so it cannot fail.
    let _ = before.thread_set_mask();
    match u32::try_from(pid) {
        Ok(pid) => Ok(Forked::Parent(ChildHandle::new(pid))),
        Err(_) => Err(refused.into()),
    }
}

/// Writes the output that std and the C library have buffered. Call this before a fork. Otherwise the child would get a
/// copy of the buffers, and both parent and child would write the same output. Ignores errors, because the program's
/// next write returns them.
pub(crate) fn flush_output() {
    let _ = io::stdout().flush();
    // SAFETY: fflush(3) with a null pointer flushes every output stream of the C library.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// Ends a forked child that panics, so that the panic does not unwind through the child's copies of the parent's stack
/// frames. Their destructors would act for the parent, and the destructors and handlers of `main` would run in the
/// child. The status is 101, as after any panic.
///
/// The guard is a local variable of a frame that is left on both sides of the fork. Declare it after the values that it
/// protects, because Rust drops local variables in reverse order. It does nothing in the process that has made it.
#[derive(Debug)]
pub(crate) struct ChildPanicGuard {
    pid: u32,
}

impl ChildPanicGuard {
    pub fn new() -> ChildPanicGuard {
        ChildPanicGuard { pid: process::id() }
    }
}

impl Drop for ChildPanicGuard {
    #[inline]
    fn drop(&mut self) {
        if thread::panicking() && process::id() != self.pid {
            exit_now(101);
        }
    }
}

/// Ends this process at once. Runs no more code of the program, such as atexit(3) functions.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes an integer, runs no other code, and does not return.
    unsafe { libc::_exit(status) }
}
