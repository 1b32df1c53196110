//! The supervised signals, from taking them over to giving them back.
//!
//! # Safety
//! As in the module above.

use std::os::fd::{AsFd, BorrowedFd};

use nix::unistd::Pid;

use super::source::Source;
use super::*;

/// The signals of [`Signal::SUPERVISED`] that the program had not ignored, and SIGCHLD, for as long as this lives. Dropped
/// with the parent or in a child, mask and dispositions are again what they were.
#[derive(Debug)]
pub(crate) struct Signals {
    // In this order: what comes before the dispositions are back still arrives at the source, and what is left there comes to
    // them.
    dispositions: Dispositions,
    source: Source,
    _mask: Mask,
    _lock: SupervisorLock,
}

/// Whom the end of a child is told: SIGCHLD needs nobody's help.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExitNotifier;

/// To be put back.
#[derive(Debug, Default)]
pub(super) struct Dispositions {
    /// Not in memory of its own, which a child would have to free: mostly it is the only one. And not all of them here,
    /// because each is large, and a stack that is deep at a fork has more pages to be copied.
    first: Option<(Signal, libc::sigaction)>,
    others: Vec<(Signal, libc::sigaction)>,
}

/// The same.
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

    /// For the parent, when it is done: what has arrived since and asks to stop is the program's again, as if it came now,
    /// unless it `has_stopped`; the other requests have nobody left to answer them, and would kill or stop the program.
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

    /// Whether they make a call fail that waits, when they arrive. Those that are blocked do not.
    pub fn interrupts(&self) -> bool {
        self.source.interrupts()
    }

    /// The next signal that has arrived, if any; each only once, however often it came meanwhile.
    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        self.source.next()
    }
}

/// Readable when there may be a next one.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

impl Dispositions {
    pub fn set(&mut self, signal: Signal, handler: libc::sighandler_t) -> Result<(), CallError> {
        // SAFETY: sigaction consists of integers, a function pointer that may be null, and a set, for which zeroes are fine.
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

    /// What this thread gets from then on waits for its mask to be what it was.
    #[inline]
    fn put_back(&mut self) {
        if self.first.is_none() {
            return;
        }
        let _ = SigSet::all().thread_block();
        // What was once accepted by this call is accepted again.
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
        // What was once accepted by this call is accepted again.
        let _ = self.0.thread_set_mask();
    }
}

/// To this process, as if it came now: to any thread that does not block it.
pub(super) fn send_on(signal: Signal) -> Result<(), CallError> {
    nix::sys::signal::kill(Pid::this(), native(signal)).map_err(|error| CallError::new("kill", error))
}

/// To the parent, which has to do nothing for it but to answer.
fn is_request(signal: Signal) -> bool {
    !matches!(signal, Signal::Child | Signal::User1)
}

/// Runs this with the requests to the parent blocked; a thread that it starts has them so from the beginning.
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

/// Whether it does what it does by default, also for wait(2).
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(super) fn is_plain(signal: Signal) -> Result<bool, CallError> {
    let action = swap_disposition(signal, None)?;
    Ok(action.sa_sigaction == libc::SIG_DFL && action.sa_flags & libc::SA_NOCLDWAIT == 0)
}

/// Returns the disposition there was, and sets the new one if there is any.
fn swap_disposition(signal: Signal, new: Option<&libc::sigaction>) -> Result<libc::sigaction, CallError> {
    // SAFETY: as above, zeroes are fine, and sigaction(2) overwrites them.
    let mut old: libc::sigaction = unsafe { mem::zeroed() };
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: both pointers are null or valid; for the disposition itself see the module's safety section.
    match unsafe { libc::sigaction(number(signal), new, &raw mut old) } {
        0 => Ok(old),
        _ => Err(CallError::last("sigaction")),
    }
}
