//! The lifeline: sends SIGTERM to a child when its parent ends, for whatever reason the parent ends.
//!
//! # Safety
//! The calls of prctl(2), procctl(2), kill(2) and _exit(2) in this module affect only the calling process.

use crate::sys::CallError;

#[cfg(all(any(target_os = "linux", target_os = "freebsd"), not(taskfork_portable)))]
pub(crate) use kernel::Lifeline;
#[cfg(all(any(target_os = "linux", target_os = "freebsd"), not(taskfork_portable)))]
pub(super) use kernel::{Held, parent};

#[cfg(any(target_os = "macos", taskfork_portable))]
pub(crate) use pipe::Lifeline;
#[cfg(any(target_os = "macos", taskfork_portable))]
pub(super) use pipe::{kill_after_timeout, parent};

/// Ends the child at once. The child calls this if its parent has ended already, or if it could not arm its lifeline.
/// The child has not begun its work yet, and must run no more code of the program.
fn exit_now() -> ! {
    // SAFETY: _exit(2) ends the process at once, without running atexit(3) functions.
    unsafe { libc::_exit(1) }
}

/// The lifeline as a kernel setting of the child: when the parent ends, the kernel sends SIGTERM to the child.
#[cfg(all(any(target_os = "linux", target_os = "freebsd"), not(taskfork_portable)))]
mod kernel {
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::{CallError, exit_now};

    #[derive(Clone, Debug)]
    pub(crate) struct Lifeline {
        parent: u32,
        graceful_timeout: Duration,
    }

    /// The facts about the lifeline that this process holds. The timer that kills an orphaned worker needs them.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::sys::unix) struct Held {
        /// `None` if the pid of the parent is unknown.
        pub parent: Option<u32>,
        pub graceful_timeout: Duration,
    }

    /// The effective user and group of this process when its lifeline was armed before `main`. All bits are set if it
    /// was not armed.
    static ARMED_AS: AtomicU64 = AtomicU64::new(u64::MAX);

    /// Set if the lifeline is a setting of a thread and not of the process.
    const IS_OF_THREAD: bool = cfg!(target_os = "linux");

    static HELD: OnceLock<(u32, Held)> = OnceLock::new();

    impl Held {
        /// Returns `None` in a process that holds no lifeline. A process that a worker has forked holds none.
        pub fn get() -> Option<Held> {
            HELD.get().filter(|(pid, _)| *pid == std::process::id()).map(|(_, held)| *held)
        }
    }

    /// Returns the pid of the parent that has started this process as a worker, even if the parent has ended. Returns
    /// `None` if the parent is outside the pid namespace of this process.
    pub(in crate::sys::unix) fn parent() -> Option<u32> {
        Held::get()?.parent
    }

    impl Lifeline {
        /// Creates the lifeline of all workers, in the parent. A worker that has enabled the graceful stop has this
        /// much time to exit after the death of the parent.
        pub fn new(graceful_timeout: Duration) -> Result<Lifeline, CallError> {
            Ok(Lifeline { parent: std::process::id(), graceful_timeout })
        }

        /// Returns this lifeline with another graceful timeout, for the workers of another pool.
        pub fn with_timeout(self, graceful_timeout: Duration) -> Lifeline {
            Lifeline { graceful_timeout, ..self }
        }

        /// Returns `None`: a spawned worker needs no descriptor for its lifeline, because the lifeline is a kernel
        /// setting.
        pub fn passed(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        /// Creates the lifeline in a spawned worker. `parent` is the pid of the worker's parent.
        pub fn inherited(parent: u32, graceful_timeout: Duration, _: Option<OwnedFd>) -> Lifeline {
            Lifeline { parent, graceful_timeout }
        }

        /// Arms the lifeline of a spawned worker before `main`, in its main thread. On Linux the setting belongs to one
        /// thread. If another thread than the main thread makes the setting, the setting ends with that thread. The
        /// setting of the main thread stays until the process ends. Only makes calls that are async-signal-safe.
        pub fn arm_before_main() {
            if arm() {
                ARMED_AS.store(own_ids(), Ordering::Relaxed);
            }
        }

        /// Returns whether this thread can arm the lifeline for as long as the process runs.
        pub fn can_be_armed() -> bool {
            !IS_OF_THREAD || nix::unistd::getpid() == own_thread()
        }

        /// Returns whether the lifeline that was armed before `main` still exists. Linux clears it if the process
        /// changes its effective user or group (prctl(2)).
        pub fn is_armed() -> bool {
            ARMED_AS.load(Ordering::Relaxed) == own_ids()
        }

        /// Arms the lifeline. The child calls this. If this thread cannot arm it, the lifeline must be armed already.
        /// It is not armed a second time, because the child would get a second SIGTERM. Ends the child if the lifeline
        /// is not armed. Also ends the child if getppid(2) no longer returns the pid of the parent, because then the
        /// parent ended before the lifeline was armed. (getppid(2) returns 0 if the parent is outside the pid namespace
        /// of the child. Then the parent's pid is unknown in the child and cannot be compared.)
        pub fn hold(&mut self) {
            let armed = if Lifeline::can_be_armed() { arm() } else { Lifeline::is_armed() };
            let parent = nix::unistd::getppid().as_raw() as u32;
            if !armed || (parent != self.parent && parent != 0) {
                exit_now();
            }
            let parent = Some(parent).filter(|&parent| parent != 0);
            // This process holds no other lifeline, because it becomes a worker only once.
            let _ = HELD.set((std::process::id(), Held { parent, graceful_timeout: self.graceful_timeout }));
        }
    }

    fn own_ids() -> u64 {
        u64::from(nix::unistd::geteuid().as_raw()) << 32 | u64::from(nix::unistd::getegid().as_raw())
    }

    #[cfg(target_os = "linux")]
    fn own_thread() -> nix::unistd::Pid {
        nix::unistd::gettid()
    }

    #[cfg(target_os = "freebsd")]
    fn own_thread() -> nix::unistd::Pid {
        nix::unistd::getpid()
    }

    #[cfg(target_os = "linux")]
    fn arm() -> bool {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).is_ok()
    }

    #[cfg(target_os = "freebsd")]
    fn arm() -> bool {
        let mut signal = libc::SIGTERM;
        // SAFETY: procctl(2) reads an int for this command. Id 0 means the calling process.
        unsafe { libc::procctl(libc::P_PID, 0, libc::PROC_PDEATHSIG_CTL, (&raw mut signal).cast()) == 0 }
    }
}

/// The lifeline as a socket pair that carries no data. Only the parent keeps the writing end open. When the parent
/// ends, the kernel closes that end, and a read in the child returns end-of-file. A thread in the child waits for the
/// end-of-file, and then sends SIGTERM to its own process. If the process has enabled the graceful stop and still runs
/// after the graceful timeout, the thread sends SIGKILL. The lifeline is a socket pair and not a pipe, because std
/// makes a socket pair close-on-exec on every system.
#[cfg(any(target_os = "macos", taskfork_portable))]
mod pipe {
    use std::io::Read;
    use std::mem::ManuallyDrop;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
    use nix::unistd::{getpid, getppid};

    use super::super::descriptor::{FdIdentity, close_inherited};
    use super::{CallError, exit_now};

    /// The lifeline of a pool. The lifelines of all pools share one socket pair.
    #[derive(Clone, Debug)]
    pub(crate) struct Lifeline {
        /// `None` in a spawned worker to which the parent has passed no descriptor.
        sockets: Option<Arc<Sockets>>,
        /// The pid of the parent, or 0 for a parent outside this pid namespace.
        parent: u32,
        graceful_timeout: Duration,
    }

    #[derive(Debug)]
    struct Sockets {
        reader: UnixStream,
        /// The writing end, which only the parent keeps open. `None` in a spawned worker.
        writer: Option<UnixStream>,
    }

    /// How often a worker looks at its parent's pid if the socket cannot show the death of the parent any more.
    const LOOK: Duration = Duration::from_secs(1);

    /// Set if this process is killed when it does not exit after the death of its parent.
    static IS_KILLED: AtomicBool = AtomicBool::new(false);

    /// The pid of the parent that has started this process as a worker, or 0 if it is unknown.
    static PARENT: AtomicU32 = AtomicU32::new(0);

    /// Returns the pid of the parent that has started this process as a worker, even if the parent has ended. Returns
    /// `None` if the parent is outside the pid namespace of this process.
    pub(in crate::sys::unix) fn parent() -> Option<u32> {
        Some(PARENT.load(Ordering::Relaxed)).filter(|&parent| parent != 0)
    }

    /// Makes the thread of the lifeline kill this process if it still runs when the graceful timeout has passed after
    /// the death of its parent.
    pub(in crate::sys::unix) fn kill_after_timeout() {
        IS_KILLED.store(true, Ordering::Relaxed);
    }

    impl Lifeline {
        /// Creates the lifeline of all workers, in the parent. A worker that has enabled the graceful stop has this
        /// much time to exit after the death of the parent.
        pub fn new(graceful_timeout: Duration) -> Result<Lifeline, CallError> {
            let (reader, writer) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
            let sockets = Some(Arc::new(Sockets { reader, writer: Some(writer) }));
            Ok(Lifeline { sockets, parent: std::process::id(), graceful_timeout })
        }

        /// Returns this lifeline with another graceful timeout, for the workers of another pool.
        pub fn with_timeout(self, graceful_timeout: Duration) -> Lifeline {
            Lifeline { graceful_timeout, ..self }
        }

        /// Returns the descriptor that a spawned worker must inherit for its lifeline.
        pub fn passed(&self) -> Option<BorrowedFd<'_>> {
            self.sockets.as_ref().map(|sockets| sockets.reader.as_fd())
        }

        /// Creates the lifeline in a spawned worker, from the descriptor that the worker has inherited.
        pub fn inherited(parent: u32, graceful_timeout: Duration, passed: Option<OwnedFd>) -> Lifeline {
            let sockets = passed.map(|reader| Arc::new(Sockets { reader: reader.into(), writer: None }));
            Lifeline { sockets, parent, graceful_timeout }
        }

        /// Does nothing, because a thread can only be started after `main` has begun.
        pub fn arm_before_main() {}

        /// Returns true: the lifeline has a thread of its own.
        pub fn can_be_armed() -> bool {
            true
        }

        /// Returns true: a change of the user does not affect the lifeline.
        pub fn is_armed() -> bool {
            true
        }

        /// Starts the thread that waits until the parent ends. The child calls this. The thread blocks all signals, so
        /// that the kernel delivers them to the program's own threads.
        pub fn hold(&mut self) {
            // This clone is never dropped. So the sockets have an owner as long as this process runs, and it never
            // closes their numbers, which may be those of files of the program by then.
            let Some(sockets) = self.sockets.clone().map(ManuallyDrop::new) else { exit_now() };
            if let Some(writer) = &sockets.writer {
                close_inherited(writer.as_fd());
            }
            let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
            let watch = thread::Builder::new().name("taskfork-lifeline".into()).stack_size(64 * 1024);
            let &mut Lifeline { parent, graceful_timeout, .. } = self;
            // getppid(2) returns 0 if the parent is outside the pid namespace of the child.
            PARENT.store(if getppid().as_raw() == 0 { 0 } else { parent }, Ordering::Relaxed);
            let identity = FdIdentity::of(sockets.reader.as_fd());
            let body = move || {
                wait_for_death(&sockets.reader, identity, parent);
                end_worker(graceful_timeout);
            };
            if watch.spawn(body).is_err() {
                exit_now();
            }
            // This restores the mask that pthread_sigmask(3) has returned above, so it cannot fail.
            let _ = before.map(|before| before.thread_set_mask());
        }
    }

    /// Waits until the parent has ended. Looks at the parent's pid as well, because a worker can shut down the socket,
    /// which all workers share. If the program has closed the descriptor, or if the socket was shut down, only the pid
    /// remains.
    fn wait_for_death(mut reader: &UnixStream, identity: Option<FdIdentity>, parent: u32) {
        loop {
            let is_open = identity.is_some_and(|identity| identity.is_behind(reader.as_raw_fd()));
            let is_at_end = is_open && matches!(reader.read(&mut [0]), Ok(0));
            match getppid().as_raw() as u32 {
                // The pid of a parent outside this namespace does not change.
                0 if is_at_end => return,
                0 => {}
                now if now != parent => return,
                _ => {}
            }
            thread::sleep(LOOK);
        }
    }

    fn end_worker(graceful_timeout: Duration) {
        let _ = kill(getpid(), Signal::SIGTERM);
        thread::sleep(graceful_timeout);
        if IS_KILLED.load(Ordering::Relaxed) {
            let _ = kill(getpid(), Signal::SIGKILL);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn lifelines_of_several_pools_share_one_descriptor() {
            let web = Lifeline::new(Duration::from_secs(1)).expect("a lifeline");
            let jobs = web.clone().with_timeout(Duration::from_secs(2));
            let number = |lifeline: &Lifeline| lifeline.passed().expect("a descriptor").as_raw_fd();
            assert_eq!(number(&web), number(&jobs));
            assert_eq!([web.graceful_timeout, jobs.graceful_timeout].map(|timeout| timeout.as_secs()), [1, 2]);
        }
    }
}
