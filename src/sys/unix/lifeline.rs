//! The lifeline: sends SIGTERM to a child when its parent ends, whatever the cause.
//!
//! # Safety
//! prctl(2), procctl(2), kill(2) and _exit(2) affect only the calling process here.

use crate::sys::CallError;

#[cfg(all(any(target_os = "linux", target_os = "freebsd"), not(taskfork_portable)))]
pub(crate) use kernel::Lifeline;

#[cfg(any(target_os = "macos", taskfork_portable))]
pub(crate) use pipe::Lifeline;

/// Ends a child whose parent has ended already, or that could not arm its lifeline. The child has not begun to work,
/// and must run no more code of the program.
fn exit_now() -> ! {
    // SAFETY: _exit(2) ends the process at once, without running atexit(3) functions.
    unsafe { libc::_exit(1) }
}

/// The lifeline as a setting of the child: the kernel sends it SIGTERM when its parent ends.
#[cfg(all(any(target_os = "linux", target_os = "freebsd"), not(taskfork_portable)))]
mod kernel {
    use std::os::fd::{BorrowedFd, OwnedFd};

    use super::{CallError, exit_now};

    #[derive(Debug)]
    pub(crate) struct Lifeline {
        parent: u32,
    }

    impl Lifeline {
        pub fn new() -> Result<Lifeline, CallError> {
            Ok(Lifeline { parent: std::process::id() })
        }

        /// Returns `None`, because a spawned worker needs no descriptor for its lifeline.
        pub fn passed(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        /// Returns the lifeline of a spawned worker.
        pub fn inherited(parent: u32, _: Option<OwnedFd>) -> Lifeline {
            Lifeline { parent }
        }

        /// Arms the lifeline, in the child. Ends the child if that fails, or if the parent's pid has changed, because
        /// then the parent has ended before. (Pid 0 means a parent outside this pid namespace. Its pid here is unknown,
        /// so there is nothing to compare.)
        pub fn hold(&mut self) {
            let armed = arm();
            let parent = nix::unistd::getppid().as_raw() as u32;
            if !armed || (parent != self.parent && parent != 0) {
                exit_now();
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn arm() -> bool {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).is_ok()
    }

    #[cfg(target_os = "freebsd")]
    fn arm() -> bool {
        let mut signal = libc::SIGTERM;
        // SAFETY: procctl(2) reads an int here; id 0 is the calling process.
        unsafe { libc::procctl(libc::P_PID, 0, libc::PROC_PDEATHSIG_CTL, (&raw mut signal).cast()) == 0 }
    }
}

/// The lifeline as a socket pair that carries no data. Only the parent holds the writing end, so a read in the child
/// returns the end of the file as soon as the parent has ended. A thread in the child waits for that and sends SIGTERM
/// to its own process. std makes a socket pair close-on-exec on every system.
#[cfg(any(target_os = "macos", taskfork_portable))]
mod pipe {
    use std::io::{self, Read};
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use nix::sys::signal::{SigSet, SigmaskHow};

    use super::{CallError, exit_now};

    #[derive(Debug)]
    pub(crate) struct Lifeline {
        reader: Option<UnixStream>,
        /// `None` in a spawned worker, because only the parent holds the writing end.
        writer: Option<UnixStream>,
    }

    impl Lifeline {
        pub fn new() -> Result<Lifeline, CallError> {
            let (reader, writer) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
            Ok(Lifeline { reader: Some(reader), writer: Some(writer) })
        }

        /// Returns the descriptor that a spawned worker must inherit.
        pub fn passed(&self) -> Option<BorrowedFd<'_>> {
            self.reader.as_ref().map(AsFd::as_fd)
        }

        /// Returns the lifeline of a spawned worker that has inherited this descriptor.
        pub fn inherited(_: u32, passed: Option<OwnedFd>) -> Lifeline {
            Lifeline { reader: passed.map(UnixStream::from), writer: None }
        }

        /// Starts the waiting thread, in the child. All signals are blocked in that thread, so that the program's own
        /// threads receive them.
        pub fn hold(&mut self) {
            let Some(reader) = self.reader.take() else { exit_now() };
            self.writer = None;
            let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
            let watch = thread::Builder::new().name("taskfork-lifeline".into()).stack_size(64 * 1024);
            if watch.spawn(move || watch_parent(reader)).is_err() {
                exit_now();
            }
            // This restores the mask from above, which cannot fail.
            let _ = before.map(|before| before.thread_set_mask());
        }
    }

    fn watch_parent(mut reader: UnixStream) {
        while reader.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGTERM);
    }
}
