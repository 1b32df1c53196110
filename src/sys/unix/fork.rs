//! fork(2), made safe to call.
//!
//! # Safety
//! The child of a fork has the calling thread only. Whatever another thread held at that moment, a lock of the allocator
//! or half of a change, is held in the child for ever. So a fork is sound for arbitrary Rust code in the child exactly when
//! there is no other thread, and that is checked here, before every single fork.

use std::io::{self, Write};

use nix::sys::signal::{SigSet, SigmaskHow};

use super::threads::{Threads, thread_count};
use super::wait::ChildHandle;
use crate::sys::{CallError, ForkError};

/// Which of the two one is.
#[derive(Debug)]
pub(crate) enum Forked {
    Parent(ChildHandle),
    /// Every signal is blocked.
    Child,
}

/// Forks. A signal for the child that comes before its mask is put back is not lost: it is pending then.
#[inline]
pub(crate) fn fork() -> Result<Forked, ForkError> {
    if let Threads::Several(count) = thread_count()? {
        return Err(ForkError::Threads(count));
    }
    let before = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_SETMASK)
        .map_err(|error| CallError::new("pthread_sigmask", error))?;
    // SAFETY: there is no other thread, see above.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        return Ok(Forked::Child);
    }
    let refused = CallError::last("fork");
    // It was the mask a moment ago, so it is accepted.
    let _ = before.thread_set_mask();
    match u32::try_from(pid) {
        Ok(pid) => Ok(Forked::Parent(ChildHandle::new(pid))),
        Err(_) => Err(refused.into()),
    }
}

/// What is buffered at a fork is written by the parent and by the child, so it has to go out before. If it cannot, that is
/// for the next one who writes to find out.
pub(crate) fn flush_output() {
    let _ = io::stdout().flush();
    // SAFETY: fflush(3) with a null pointer flushes every output stream of the C library.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// Ends this process, and nothing of the program's runs at it: what is registered with atexit(3), say.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) does not return.
    unsafe { libc::_exit(status) }
}
