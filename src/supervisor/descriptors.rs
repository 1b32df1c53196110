//! The descriptors that the parent has open: the poller, the sources that it waits for, and the counter of
//! out-of-memory kills.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

#[cfg(unix)]
use ::log::Level;

use super::handover::HandedOverSignals;
#[cfg(unix)]
use super::log;
use super::poller::{PollSource, Poller, Waited};
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use crate::backend::candidate::Candidate;
use crate::error::{Error, Result};
#[cfg(unix)]
use crate::failure;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use crate::pid_file::PassedPidFile;
use crate::pid_file::PidFile;
#[cfg(unix)]
use crate::sys::OpenEpoll;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use crate::sys::SignalHandover;
use crate::sys::{
    self, Drained, ExitNotifier, OomCounter, SignalInfo, Signals, StandardFds, SupervisorLock, WakeReceiver, Waker,
    WorkerKind,
};

/// The parent's open descriptors. A forked worker only closes them.
///
/// `signals` is the last field so that it is dropped last, because dropping it restores the signal mask.
pub(super) struct Descriptors {
    pid_file: Option<PidFile>,
    poller: Poller,
    wake_receiver: Option<WakeReceiver>,
    /// The result of the last drain of the doorbell. Workers wake the parent through the doorbell.
    drained: Drained,
    /// The counter of out-of-memory kills. The counter is opened only after the first workers have been started,
    /// because opening it takes longer than starting some of them.
    out_of_memory: Option<OomCounter>,
    signals: Signals,
    _standard_fds: StandardFds,
}

/// How often the parent reads the messages of the workers if the doorbell is broken.
const BROKEN_DOORBELL: Duration = Duration::from_millis(100);

impl Descriptors {
    pub fn open(
        lock: SupervisorLock,
        workers: &[WorkerKind],
        standard_fds: StandardFds,
        pid_file: Option<PidFile>,
        handed_over: Option<HandedOverSignals>,
    ) -> Result<Descriptors> {
        let signals = take_signals(lock, workers, handed_over)?;
        let poller = Poller::open()?;
        poller.register(PollSource::Signals, &signals)?;
        Ok(Descriptors {
            pid_file,
            poller,
            wake_receiver: None,
            drained: Drained::Empty,
            out_of_memory: None,
            signals,
            _standard_fds: standard_fds,
        })
    }

    /// Logs a warning if the program has opened an epoll instance, because forked workers share it. For example, an
    /// async runtime with a single thread contains one. Does not search if warnings are not logged.
    #[cfg(unix)]
    pub fn warn_of_epolls(&self) {
        if !failure::is_logged(Level::Warn) {
            return;
        }
        for OpenEpoll { fd, may_be_inherited } in self.poller.epolls_of_program() {
            let origin = if may_be_inherited { " (or this program has inherited it)" } else { "" };
            log::write(
                Level::Warn,
                &format_args!(
                    "descriptor {fd} is an epoll instance that was made before the call{origin}, and all workers share \
                     it; a worker that uses it fails at random, so create an async runtime in the worker"
                ),
            );
        }
    }

    /// Opens the doorbell, unless the program before an upgrade has `handed_over` the one that the workers use. Returns
    /// the waker, through which the workers of all pools wake the parent.
    pub fn open_doorbell(&mut self, handed_over: Option<(WakeReceiver, Waker)>) -> Result<Arc<Waker>> {
        let (wake_receiver, waker) = match handed_over {
            Some(doorbell) => doorbell,
            None => sys::doorbell()?,
        };
        self.poller.register(PollSource::Doorbell, &wake_receiver)?;
        self.wake_receiver = Some(wake_receiver);
        Ok(Arc::new(waker))
    }

    /// Returns the notifier that reports exits on Windows. The notifier does nothing on Unix, where SIGCHLD announces
    /// an exit.
    pub fn exit_notifier(&self) -> ExitNotifier {
        self.signals.exit_notifier()
    }

    /// Waits until a poll source is ready, but at most for `timeout`. Without a timeout, waits without a limit.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Waited> {
        self.out_of_memory.get_or_insert_with(|| {
            // Lets the worker that was started last run first, because it may be waiting for this CPU.
            thread::yield_now();
            OomCounter::open()
        });
        let timeout = match self.drained {
            Drained::Empty => timeout,
            Drained::Partly => Some(Duration::ZERO),
            Drained::Broken => Some(timeout.map_or(BROKEN_DOORBELL, |timeout| timeout.min(BROKEN_DOORBELL))),
        };
        self.signals.while_waiting(|| self.poller.wait(timeout))
    }

    /// Returns whether an arriving signal makes the wait fail with `EINTR`. If so, a pending signal explains an
    /// interrupted wait, and the parent need not assume that it was stopped (SIGSTOP). If the parent was also stopped
    /// for a long time, the policy notices the late wake-up.
    pub fn signals_interrupt(&self) -> bool {
        self.signals.interrupts()
    }

    /// Returns the next pending signal.
    pub fn next_signal(&mut self) -> Result<Option<SignalInfo>> {
        Ok(self.signals.next()?)
    }

    /// Returns whether workers may have sent messages since the last wait, and drains the doorbell. If bytes may be
    /// left in the doorbell, the next wait returns at once. If the doorbell is broken, the next wait returns after 100
    /// ms.
    pub fn drain_doorbell(&mut self) -> Result<bool> {
        let Some(wake_receiver) = &self.wake_receiver else { return Ok(false) };
        let rings = self.poller.is_ready(PollSource::Doorbell) || self.drained != Drained::Empty;
        if rings && !self.is_doorbell_broken() {
            self.drained = wake_receiver.drain()?;
        }
        Ok(rings)
    }

    /// Returns whether a worker has shut down the doorbell. It stays so, because the workers cannot get another one.
    pub fn is_doorbell_broken(&self) -> bool {
        self.drained == Drained::Broken
    }

    /// Returns whether the kernel's out-of-memory killer has killed a process that no earlier call has counted. Returns
    /// `None` if the number of kills is unknown.
    pub fn take_out_of_memory(&mut self) -> Option<bool> {
        match &mut self.out_of_memory {
            Some(counter) => counter.take(),
            // The counter is opened only now, so its value may include old kills. Only a value of zero shows for
            // certain that no process was killed.
            None => self.out_of_memory.insert(OomCounter::open()).is_zero().then_some(false),
        }
    }

    /// Closes everything in a forked worker. Inlined, because every further page of code that the worker runs costs a
    /// page fault.
    #[inline]
    pub fn release_in_child(self) {
        if let Some(pid_file) = self.pid_file {
            pid_file.release_in_child();
        }
        self.poller.release_in_child();
    }

    /// Closes everything in the parent, removes the pid file, and restores the program's signal handling. If
    /// `has_stopped` is true, drops the stop requests that the parent has not read, because the service has already
    /// stopped.
    pub fn close(self, has_stopped: bool) -> Result<()> {
        drop(self.pid_file);
        Ok(self.signals.end(has_stopped)?)
    }

    /// Closes everything in the parent after an error. Returns that error, even if closing fails as well.
    pub fn close_after(self, error: Error) -> Error {
        let _ = self.close(false);
        error
    }
}

/// Takes over the signals from the program, or from the program before an upgrade.
fn take_signals(
    lock: SupervisorLock,
    workers: &[WorkerKind],
    handed_over: Option<HandedOverSignals>,
) -> Result<Signals> {
    match handed_over {
        None => Ok(Signals::take(lock, workers)?),
        #[cfg(all(target_os = "linux", not(taskfork_portable)))]
        Some(HandedOverSignals { text, fds }) => Ok(Signals::take_handed_over(lock, workers, &text, fds)?),
        #[cfg(not(all(target_os = "linux", not(taskfork_portable))))]
        Some(handed_over) => match handed_over {},
    }
}

/// What an upgrade passes to the new program.
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
impl Descriptors {
    /// Makes a message of a candidate end the wait.
    pub fn register_candidate(&self, candidate: &Candidate) -> Result<()> {
        self.poller.register(PollSource::Candidate, candidate)
    }

    pub fn signal_handover(&self) -> SignalHandover<'_> {
        self.signals.handover()
    }

    /// Returns the parent's end of the doorbell.
    pub fn wake_receiver(&self) -> Option<&WakeReceiver> {
        self.wake_receiver.as_ref()
    }

    pub fn passed_pid_file(&self) -> Option<PassedPidFile<'_>> {
        self.pid_file.as_ref().map(PidFile::passed)
    }
}
