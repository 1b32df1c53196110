//! Takes over the signals of [`Signal::SUPERVISED`] from the program, and later restores the program's signal mask and
//! dispositions.
//!
//! # Safety
//! See the safety section of the parent module.

use std::os::fd::{AsFd, BorrowedFd};

use nix::unistd::Pid;

#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use super::handover::HandedOver;
use super::source::Source;
use super::*;

/// The signals that this crate has taken over from the program. These are the signals of [`Signal::SUPERVISED`] that
/// the program does not ignore. SIGCHLD is taken over even if the program ignores it. SIGUSR2 is left to the program if
/// the program handles it. If all workers are threads, SIGCHLD and SIGUSR1 are left to the program.
///
/// Dropping this value, in the parent or in a forked child, restores the program's signal mask and dispositions.
#[derive(Debug)]
pub(crate) struct Signals {
    // Rust drops the fields in this order. Dropping `dispositions` restores the program's dispositions, while `source`
    // still receives signals. Dropping `source` and the mask then delivers the unread signals to the program, which
    // handles them by its restored dispositions.
    dispositions: Dispositions,
    source: Source,
    mask: Mask,
    _lock: SupervisorLock,
}

/// What a launcher of programs needs to know about the parent's signals: the program's signal mask. It notifies the
/// parent of no exits on Unix, because the kernel does so with SIGCHLD.
#[derive(Clone, Debug)]
pub(crate) struct ExitNotifier {
    program_mask: SigSet,
}

impl ExitNotifier {
    /// Runs a closure with the program's signal mask. A program that the closure starts inherits this mask, and not the
    /// one with which the parent receives its signals.
    pub fn with_program_mask<T>(&self, start: impl FnOnce() -> T) -> T {
        // pthread_sigmask(3) cannot fail here, because earlier calls of it have returned both masks.
        let own = swap_mask(&self.program_mask);
        let result = start();
        let _ = own.map(|own| swap_mask(&own));
        result
    }
}

/// The program's signal dispositions that were replaced and must be restored.
#[derive(Debug, Default)]
pub(super) struct Dispositions {
    /// The first disposition that was replaced. Often it is the only one, and then the vector stays empty, so that a
    /// forked child has no heap memory to free. There is no array for all signals, because this value is on the stack
    /// during a fork. A large array would add pages that are copied for each worker (copy-on-write).
    first: Option<(Signal, libc::sigaction)>,
    others: Vec<(Signal, libc::sigaction)>,
}

/// The program's signal mask, which must be restored.
#[derive(Debug)]
struct Mask(SigSet);

/// Only a parent on Linux can be upgraded, so nothing is handed over.
#[cfg(any(not(target_os = "linux"), taskfork_portable))]
#[derive(Clone, Copy)]
pub(super) enum HandedOver {}

#[cfg(any(not(target_os = "linux"), taskfork_portable))]
impl HandedOver {
    fn program_mask(self, _: SigSet) -> SigSet {
        match self {}
    }

    fn send_again(self, _: &[Signal]) -> Result<(), CallError> {
        match self {}
    }

    fn disposition_of_child(self) -> Result<Option<libc::sigaction>, CallError> {
        match self {}
    }
}

impl Signals {
    /// `workers` are the kinds of the workers of all pools.
    pub fn take(lock: SupervisorLock, workers: &[WorkerKind]) -> Result<Signals, CallError> {
        Signals::take_as(lock, workers, None)
    }

    /// `handed_over` is what the program before an upgrade has passed.
    pub(super) fn take_as(
        lock: SupervisorLock,
        workers: &[WorkerKind],
        handed_over: Option<HandedOver>,
    ) -> Result<Signals, CallError> {
        let has_processes = workers.iter().any(|&kind| kind != WorkerKind::Thread);
        let has_only_forks = workers.iter().all(|&kind| kind == WorkerKind::Fork);
        let mut taken = Vec::with_capacity(Signal::SUPERVISED.len());
        for signal in Signal::SUPERVISED {
            let is_wanted = has_processes || is_request(signal);
            if is_wanted && is_available(signal)? {
                taken.push(signal);
            }
        }
        let present = swap_mask(&SigSet::all())?;
        let mask = Mask(handed_over.map_or(present, |handed_over| handed_over.program_mask(present)));
        let source = Source::open(has_only_forks, &taken)?;
        let mut dispositions = Dispositions::default();
        source.set_dispositions(&mut dispositions, &taken)?;
        if let Some(handed_over) = handed_over {
            if let Some(disposition) = handed_over.disposition_of_child()? {
                dispositions.restore_later(Signal::Child, disposition);
            }
            handed_over.send_again(&taken)?;
        }
        swap_mask(&source.mask(mask.0, &taken))?;
        Ok(Signals { dispositions, source, mask, _lock: lock })
    }

    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub(super) fn program_mask(&self) -> SigSet {
        self.mask.0
    }

    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Ends the takeover in the parent, and restores the program's dispositions. Sends unread stop requests (SIGTERM,
    /// SIGINT and SIGQUIT) to this process again, so that the program receives them. Drops them instead if the service
    /// `has_stopped` already. Drops all other unread signals, because most of them would by default kill or suspend the
    /// program, which no longer supervises workers.
    pub fn end(mut self, has_stopped: bool) -> Result<(), CallError> {
        // A SIGTTIN or SIGTTOU that is pending now is dropped, too.
        self.while_waiting(|| ());
        self.dispositions.put_back();
        self.source.close();
        let mut stops = Vec::new();
        // Signals may arrive faster than this loop reads them. Each kind is read at least once, because they take
        // turns.
        for _ in 0..2 * Signal::SUPERVISED.len() {
            let Some(SignalInfo { signal, .. }) = self.next()? else { break };
            if matches!(signal, Signal::Terminate | Signal::Interrupt | Signal::Quit) {
                stops.push(signal);
            }
        }
        stops.into_iter().filter(|_| !has_stopped).try_for_each(send_on)
    }

    pub fn exit_notifier(&self) -> ExitNotifier {
        ExitNotifier { program_mask: self.mask.0 }
    }

    /// Returns whether a signal can interrupt a blocking system call, which then fails with `EINTR`. Blocked signals
    /// cannot interrupt a call.
    pub fn interrupts(&self) -> bool {
        self.source.interrupts()
    }

    /// Runs a closure that waits for the descriptor of the signals. If the signals run a handler, unblocks SIGTTIN and
    /// SIGTTOU meanwhile. At other times the thread blocks them, so that it can write to the terminal of a background
    /// job.
    pub fn while_waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        if !self.source.interrupts() {
            return wait();
        }
        let handled = self.dispositions.replaced().filter(|signal| signal.is_job_control());
        let job_control: SigSet = handled.map(native).collect();
        // pthread_sigmask(3) cannot fail with these arguments.
        let _ = job_control.thread_unblock();
        let result = wait();
        let _ = job_control.thread_block();
        result
    }

    /// Returns the next signal that was not read yet, or `None`. If the same signal has arrived several times since it
    /// was last read, returns it only once.
    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        self.source.next()
    }
}

/// Returns the descriptor to wait for. It becomes readable when a signal arrives. It may also be readable when there is
/// no unread signal.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

impl Dispositions {
    pub fn set(&mut self, signal: Signal, handler: libc::sighandler_t) -> Result<(), CallError> {
        // SAFETY: all-zero bytes are a valid sigaction, because it consists of integers, a signal set, and a function
        // pointer that may be null.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP | libc::SA_SIGINFO;
        let old = swap_disposition(signal, Some(&action))?;
        self.restore_later(signal, old);
        Ok(())
    }

    /// Makes this the disposition that the program gets back.
    fn restore_later(&mut self, signal: Signal, disposition: libc::sigaction) {
        match self.first.iter_mut().chain(&mut self.others).find(|(replaced, _)| *replaced == signal) {
            Some((_, replaced)) => *replaced = disposition,
            None => match self.first {
                None => self.first = Some((signal, disposition)),
                Some(_) => self.others.push((signal, disposition)),
            },
        }
    }

    fn replaced(&self) -> impl Iterator<Item = Signal> {
        self.first.iter().chain(&self.others).map(|&(signal, _)| signal)
    }

    /// Restores the program's dispositions. Blocks all signals in this thread first. A signal that arrives now stays
    /// pending until the program's signal mask is restored.
    #[inline]
    fn put_back(&mut self) {
        if self.first.is_none() {
            return;
        }
        let _ = SigSet::all().thread_block();
        // sigaction(2) cannot fail here, because earlier calls of sigaction(2) have returned these dispositions.
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
        // pthread_sigmask(3) cannot fail here, because an earlier call of pthread_sigmask(3) has returned this mask.
        let _ = self.0.thread_set_mask();
    }
}

/// Sends the signal to this process. The kernel delivers it to a thread that does not block it.
pub(super) fn send_on(signal: Signal) -> Result<(), CallError> {
    nix::sys::signal::kill(Pid::this(), native(signal)).map_err(|error| CallError::new("kill", error))
}

/// Returns whether the signal is a request to the parent. SIGUSR1 is not, because the parent only passes it on to the
/// workers. SIGCHLD is not, because it only announces that a child has exited.
fn is_request(signal: Signal) -> bool {
    !matches!(signal, Signal::Child | Signal::User1)
}

/// Returns whether the signal may be taken over from the program. The program may handle SIGUSR2 for a purpose of its
/// own, because a parent that can be upgraded is the only one that needs this signal.
fn is_available(signal: Signal) -> Result<bool, CallError> {
    let disposition = swap_disposition(signal, None)?.sa_sigaction;
    Ok(match signal {
        Signal::Child => true,
        Signal::User2 => disposition == libc::SIG_DFL,
        _ => disposition != libc::SIG_IGN,
    })
}

/// Runs a closure while the signals that are requests to the parent are blocked in this thread. A thread that the
/// closure starts inherits this signal mask. So the kernel delivers the requests to other threads.
pub(crate) fn with_requests_blocked<T>(run: impl FnOnce() -> T) -> Result<T, CallError> {
    let requests = Signal::SUPERVISED.into_iter().filter(|&signal| is_request(signal));
    let before = requests.map(native).collect::<SigSet>().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let before = before.map_err(|error| CallError::new("pthread_sigmask", error))?;
    let result = run();
    swap_mask(&before)?;
    Ok(result)
}

/// Runs a closure that starts a thread, while all signals are blocked in this thread. So the kernel delivers no signal
/// to the new thread, which inherits this signal mask.
pub(crate) fn with_signals_blocked<T>(run: impl FnOnce() -> T) -> Result<T, CallError> {
    let before = swap_mask(&SigSet::all())?;
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

/// Returns whether the signal has its default disposition without the flag `SA_NOCLDWAIT`. With that flag on SIGCHLD,
/// the kernel discards the status of children that exit, and wait(2) fails.
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(super) fn is_plain(signal: Signal) -> Result<bool, CallError> {
    let action = swap_disposition(signal, None)?;
    Ok(action.sa_sigaction == libc::SIG_DFL && action.sa_flags & libc::SA_NOCLDWAIT == 0)
}

/// Replaces the disposition of the signal if `new` is given. Returns the disposition from before the call.
pub(super) fn swap_disposition(signal: Signal, new: Option<&libc::sigaction>) -> Result<libc::sigaction, CallError> {
    // SAFETY: all-zero bytes are a valid sigaction, as in `Dispositions::set`.
    let mut old: libc::sigaction = unsafe { mem::zeroed() };
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: sigaction(2) reads from `new`, which is null or valid, and writes to `old`. The safety section of the
    // parent module explains why the new disposition is safe.
    match unsafe { libc::sigaction(number(signal), new, &raw mut old) } {
        0 => Ok(old),
        _ => Err(CallError::last("sigaction")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handled_user_signal_2_is_left_to_the_program() {
        extern "C" fn handle(_: libc::c_int) {}
        assert!(is_available(Signal::User2).expect("a disposition"));
        let before = swap_disposition(Signal::User2, None).expect("a disposition");
        for handler in [libc::SIG_IGN, handle as *const () as libc::sighandler_t] {
            let action = libc::sigaction { sa_sigaction: handler, ..before };
            swap_disposition(Signal::User2, Some(&action)).expect("a disposition");
            assert!(!is_available(Signal::User2).expect("a disposition"));
        }
        swap_disposition(Signal::User2, Some(&before)).expect("a disposition");
    }
}
