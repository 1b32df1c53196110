//! fork(2), made safe to call.
//!
//! # Safety
//! The child of fork(2) has a copy of the memory, but only the calling thread. A lock that another thread held at that
//! moment, for example the allocator's, is never released in the child, and a change that it had half finished stays
//! so. Arbitrary Rust code in the child is therefore sound only if the process had no other thread. [`fork`] checks
//! that each time.

use std::io::{self, Write};

use nix::sys::signal::{SigSet, SigmaskHow};

use super::threads::{Threads, thread_count};
use super::wait::ChildHandle;
use crate::sys::{CallError, ForkError};

/// The two sides of a fork.
#[derive(Debug)]
pub(crate) enum Forked {
    Parent(ChildHandle),
    /// The child, with every signal blocked.
    Child,
}

/// Forks, with every signal blocked. A signal that reaches the child before it restores its mask stays pending, and is
/// not lost.
#[inline]
pub(crate) fn fork() -> Result<Forked, ForkError> {
    if let Threads::Several(count) = thread_count()? {
        return Err(ForkError::Threads(count));
    }
    let before = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_SETMASK)
        .map_err(|error| CallError::new("pthread_sigmask", error))?;
    // SAFETY: the process has one thread, so the child of fork(2) may run any code; see the module's safety section.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        return Ok(Forked::Child);
    }
    let refused = CallError::last("fork");
    // This restores the mask from above, which cannot fail.
    let _ = before.thread_set_mask();
    match u32::try_from(pid) {
        Ok(pid) => Ok(Forked::Parent(ChildHandle::new(pid))),
        Err(_) => Err(refused.into()),
    }
}

/// Writes the output that std and the C library have buffered. Otherwise parent and child would both write it after a
/// fork. Ignores errors, because the program's next write returns them.
pub(crate) fn flush_output() {
    let _ = io::stdout().flush();
    // SAFETY: fflush(3) with a null pointer flushes every output stream of the C library.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// Ends this process without running any more code of the program, such as its atexit(3) functions.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes an integer, runs no other code, and does not return.
    unsafe { libc::_exit(status) }
}
