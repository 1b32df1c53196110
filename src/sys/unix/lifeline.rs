//! The end of the parent, whatever its cause, is a SIGTERM to the child.
//!
//! # Safety
//! prctl(2), procctl(2) and kill(2) here concern the calling process alone.

use crate::sys::CallError;

#[cfg(all(any(target_os = "linux", target_os = "freebsd"), not(taskfork_portable)))]
pub(crate) use kernel::Lifeline;

#[cfg(any(target_os = "macos", taskfork_portable))]
pub(crate) use pipe::Lifeline;

/// A child whose parent is gone already, or whose parent's end could not be told to it, must not live. It has run none of
/// the program's code, so it leaves without running any.
fn exit_now() -> ! {
    // SAFETY: _exit(2) ends the process at once, and runs nothing of it.
    unsafe { libc::_exit(1) }
}

/// The kernel sends it.
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

        /// Nothing has to be passed on to a program.
        pub fn passed(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        /// In a program that this parent has started.
        pub fn inherited(parent: u32, _: Option<OwnedFd>) -> Lifeline {
            Lifeline { parent }
        }

        /// In the child. A parent that ended before this took effect is noticed by the change of the parent's pid. (Pid 0:
        /// a parent outside this pid namespace; it cannot be told from another one.)
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

/// A pipe (a socket pair, which std makes close-on-exec everywhere) that nobody writes to. The parent holds the one other
/// end, so that the end of the parent is the end of the file; a thread of the child waits for that.
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
        /// None in a program, which has never had it.
        writer: Option<UnixStream>,
    }

    impl Lifeline {
        pub fn new() -> Result<Lifeline, CallError> {
            let (reader, writer) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
            Ok(Lifeline { reader: Some(reader), writer: Some(writer) })
        }

        /// What has to be passed on to a program.
        pub fn passed(&self) -> Option<BorrowedFd<'_>> {
            self.reader.as_ref().map(AsFd::as_fd)
        }

        /// In a program that was passed this.
        pub fn inherited(_: u32, passed: Option<OwnedFd>) -> Lifeline {
            Lifeline { reader: passed.map(UnixStream::from), writer: None }
        }

        /// In the child. All signals are blocked in the thread.
        pub fn hold(&mut self) {
            let Some(reader) = self.reader.take() else { exit_now() };
            self.writer = None;
            let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
            let watch = thread::Builder::new().name("taskfork-lifeline".into()).stack_size(64 * 1024);
            if watch.spawn(move || watch_parent(reader)).is_err() {
                exit_now();
            }
            // It was the mask a moment ago, so it is accepted.
            let _ = before.map(|before| before.thread_set_mask());
        }
    }

    fn watch_parent(mut reader: UnixStream) {
        while reader.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGTERM);
    }
}
