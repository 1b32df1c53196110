//! Takes over the supervised signals from the program, and gives them back.
//!
//! # Safety
//! See the parent module.

use std::os::fd::{AsFd, BorrowedFd};

use nix::unistd::Pid;

use super::source::Source;
use super::*;

/// The supervised signals, taken over from the program: those of [`Signal::SUPERVISED`] that it had not ignored, and
/// SIGCHLD. Dropping this value, in the parent or in a child, restores the mask and the dispositions.
#[derive(Debug)]
pub(crate) struct Signals {
    // The fields are dropped in this order. A signal that arrives before the dispositions are restored reaches the
    // source. A signal that is left in the source then takes effect by the restored dispositions.
    dispositions: Dispositions,
    source: Source,
    _mask: Mask,
    _lock: SupervisorLock,
}

/// The notifier of exits. It does nothing on Unix, because the kernel sends SIGCHLD.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExitNotifier;

/// The dispositions to restore.
#[derive(Debug, Default)]
pub(super) struct Dispositions {
    /// The first disposition that was replaced, often the only one. It is not in the vector, so that a child usually
    /// has no memory to free. There is no array for all signals either. This value is on the stack during
    /// a fork, and a large array would add pages that are copied for each worker (copy-on-write).
    first: Option<(Signal, libc::sigaction)>,
    others: Vec<(Signal, libc::sigaction)>,
}

/// The signal mask to restore.
#[derive(Debug)]
struct Mask(SigSet);

impl Signals {
    pub fn take(lock: SupervisorLock, workers: WorkerKind) -> Result<Signals, CallError> {
        let mut taken = Vec::with_capacity(Signal::SUPERVISED.len());
        for signal in Signal::SUPERVISED {
            let is_wanted = workers != WorkerKind::Thread || is_request(signal);
            if is_wanted && (signal == Signal::Child || !is_ignored(signal)?) {
                taken.push(signal);
            }
        }
        let mask = Mask(swap_mask(&SigSet::all())?);
        let source = Source::open(workers == WorkerKind::Fork, &taken)?;
        let mut dispositions = Dispositions::default();
        source.set_dispositions(&mut dispositions, &taken)?;
        swap_mask(&source.mask(mask.0, &taken))?;
        Ok(Signals { dispositions, source, _mask: mask, _lock: lock })
    }

    /// Ends the takeover, in the parent. Sends the program the stop requests that were not read, as if they arrived
    /// now, unless the service `has_stopped`. Drops other requests, because they would kill or suspend a program that
    /// no longer supervises.
    pub fn end(mut self, has_stopped: bool) -> Result<(), CallError> {
        self.dispositions.put_back();
        self.source.close();
        let mut stops = Vec::new();
        while let Some(SignalInfo { signal, .. }) = self.next()? {
            if matches!(signal, Signal::Terminate | Signal::Interrupt | Signal::Quit) {
                stops.push(signal);
            }
        }
        stops.into_iter().filter(|_| !has_stopped).try_for_each(send_on)
    }

    pub fn exit_notifier(&self) -> ExitNotifier {
        ExitNotifier
    }

    /// Returns whether a signal that arrives makes a waiting call fail with `EINTR`. Blocked signals do not.
    pub fn interrupts(&self) -> bool {
        self.source.interrupts()
    }

    /// Returns the next signal that has arrived. Returns a signal once if it has arrived several times meanwhile.
    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        self.source.next()
    }
}

/// The descriptor is readable if a signal may have arrived.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

impl Dispositions {
    pub fn set(&mut self, signal: Signal, handler: libc::sighandler_t) -> Result<(), CallError> {
        // SAFETY: sigaction consists of integers, a function pointer that may be null, and a set, for which zeroes are
        // valid.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP | libc::SA_SIGINFO;
        let old = swap_disposition(signal, Some(&action))?;
        match self.first {
            None => self.first = Some((signal, old)),
            Some(_) => self.others.push((signal, old)),
        }
        Ok(())
    }

    /// Restores the dispositions. Blocks all signals in this thread first, so that a signal that arrives meanwhile
    /// stays pending until the mask is restored.
    #[inline]
    fn put_back(&mut self) {
        if self.first.is_none() {
            return;
        }
        let _ = SigSet::all().thread_block();
        // sigaction(2) cannot fail here, because it has returned these dispositions.
        for (signal, action) in self.first.take().iter().chain(&self.others) {
            let _ = swap_disposition(*signal, Some(action));
        }
        self.others.clear();
    }
}

impl Drop for Dispositions {
    #[inline]
    fn drop(&mut self) {
        self.put_back();
    }
}

impl Drop for Mask {
    #[inline]
    fn drop(&mut self) {
        // pthread_sigmask(3) cannot fail here, because it has returned this mask.
        let _ = self.0.thread_set_mask();
    }
}

/// Sends the signal to this process. The kernel delivers it to any thread that does not block it.
pub(super) fn send_on(signal: Signal) -> Result<(), CallError> {
    nix::sys::signal::kill(Pid::this(), native(signal)).map_err(|error| CallError::new("kill", error))
}

/// Returns whether the signal is a request that the parent itself answers.
fn is_request(signal: Signal) -> bool {
    !matches!(signal, Signal::Child | Signal::User1)
}

/// Runs a closure with the requests blocked. A thread that the closure starts inherits the mask, so the kernel delivers
/// the requests to other threads.
pub(crate) fn with_requests_blocked<T>(run: impl FnOnce() -> T) -> Result<T, CallError> {
    let requests = Signal::SUPERVISED.into_iter().filter(|&signal| is_request(signal));
    let before = requests.map(native).collect::<SigSet>().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let before = before.map_err(|error| CallError::new("pthread_sigmask", error))?;
    let result = run();
    swap_mask(&before)?;
    Ok(result)
}

fn swap_mask(mask: &SigSet) -> Result<SigSet, CallError> {
    mask.thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(|error| CallError::new("pthread_sigmask", error))
}

pub(in crate::sys::unix) fn is_ignored(signal: Signal) -> Result<bool, CallError> {
    Ok(swap_disposition(signal, None)?.sa_sigaction == libc::SIG_IGN)
}

/// Returns whether the signal has its default disposition, without the `SA_NOCLDWAIT` that makes wait(2) fail.
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(super) fn is_plain(signal: Signal) -> Result<bool, CallError> {
    let action = swap_disposition(signal, None)?;
    Ok(action.sa_sigaction == libc::SIG_DFL && action.sa_flags & libc::SA_NOCLDWAIT == 0)
}

/// Returns the current disposition, and replaces it if `new` is given.
fn swap_disposition(signal: Signal, new: Option<&libc::sigaction>) -> Result<libc::sigaction, CallError> {
    // SAFETY: zeroes are valid, as in `Dispositions::set`.
    let mut old: libc::sigaction = unsafe { mem::zeroed() };
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: sigaction(2) reads from `new`, which is null or valid, and writes to `old`. The parent module's safety
    // section covers the disposition itself.
    match unsafe { libc::sigaction(number(signal), new, &raw mut old) } {
        0 => Ok(old),
        _ => Err(CallError::last("sigaction")),
    }
}
