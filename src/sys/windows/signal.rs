//! The counterparts of signals for the parent: console events, events that an operator sets, and exits of children.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::STATUS_CONTROL_C_EXIT;

use super::console;
use super::event::EventHandle;
use super::watch::Watch;
use crate::sys::{CallError, Signal, SignalInfo, SupervisorLock, WorkerKind};

/// The events that an operator sets. Each name ends like this.
const NAMED: [(Signal, &str); 5] = [
    (Signal::Terminate, "TERM"),
    (Signal::Quit, "QUIT"),
    (Signal::Hangup, "HUP"),
    (Signal::TerminalInput, "TTIN"),
    (Signal::TerminalOutput, "TTOU"),
];

/// The events of an earlier service in this process, in the order of `NAMED`. A name exists while any process has the
/// event open, and an operator may still have it open. So it could not be created again.
static KEPT: Mutex<Vec<EventHandle>> = Mutex::new(Vec::new());

/// The requests to the parent. While this value exists, console events do not end the process but wait here.
#[derive(Debug)]
pub(crate) struct Signals {
    _watches: Vec<Watch>,
    _events: Named,
    exit_notifier: ExitNotifier,
    _lock: SupervisorLock,
}

/// The named events. They are kept for the next service when this value is dropped.
#[derive(Debug)]
struct Named(Vec<EventHandle>);

/// Receives the exits of children.
#[derive(Clone, Debug)]
pub(crate) struct ExitNotifier(Arc<Post>);

#[derive(Default)]
struct Post {
    state: Mutex<SignalQueue>,
    console_has_asked: Condvar,
}

#[derive(Default)]
struct SignalQueue {
    arrived: VecDeque<SignalInfo>,
    wake: Option<Box<dyn Fn() + Send>>,
    /// When the console first sent an event to this process, and to the children too.
    console_asked_at: Option<Instant>,
}

impl Signals {
    /// Takes over the requests. The kind of the workers makes no difference.
    pub fn take(lock: SupervisorLock, _: WorkerKind) -> Result<Signals, CallError> {
        let post = Arc::new(Post::default());
        let events = Named::take()?;
        let mut watches = Vec::with_capacity(NAMED.len());
        for ((signal, _), event) in NAMED.into_iter().zip(&events.0) {
            let post = Arc::clone(&post);
            watches.push(Watch::each(event.handle(), move || post.push(signal))?);
        }
        let from_console = Arc::clone(&post);
        let signals = Signals { _watches: watches, _events: events, exit_notifier: ExitNotifier(post), _lock: lock };
        console::set_receiver(Some(Arc::new(move |signal| from_console.push_from_console(signal))))?;
        Ok(signals)
    }

    /// Calls `wake` whenever a request arrives, and at once if one has arrived.
    pub fn wake_by(&self, wake: impl Fn() + Send + 'static) {
        let mut state = self.exit_notifier.0.lock();
        if !state.arrived.is_empty() {
            wake();
        }
        state.wake = Some(Box::new(wake));
    }

    pub fn exit_notifier(&self) -> ExitNotifier {
        self.exit_notifier.clone()
    }

    /// Returns false, because no waiting call fails because of a request.
    pub fn interrupts(&self) -> bool {
        false
    }

    /// Returns the next request that has arrived. A request that came several times meanwhile is returned once.
    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        Ok(self.exit_notifier.0.lock().arrived.pop_front())
    }

    /// Ends the takeover, in the parent. A stop request that was not taken ends the program, as it would have without
    /// the takeover, unless it `has_stopped`.
    pub fn end(mut self, has_stopped: bool) -> Result<(), CallError> {
        // Later events belong to the next handler.
        console::set_receiver(None)?;
        while let Some(SignalInfo { signal, .. }) = self.next()? {
            if !has_stopped && matches!(signal, Signal::Terminate | Signal::Interrupt | Signal::Quit) {
                process::exit(STATUS_CONTROL_C_EXIT);
            }
        }
        Ok(())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // This fails only if there is no handler to remove.
        let _ = console::set_receiver(None);
    }
}

impl Named {
    /// Takes the named events. Requests from before are dropped.
    fn take() -> Result<Named, CallError> {
        let kept = mem::take(&mut *kept());
        if kept.is_empty() {
            let made = NAMED.iter().map(|(_, name)| EventHandle::named(&format!("taskfork-{}-{name}", process::id())));
            return Ok(Named(made.collect::<Result<_, _>>()?));
        }
        kept.iter().try_for_each(EventHandle::reset)?;
        Ok(Named(kept))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        *kept() = mem::take(&mut self.0);
    }
}

fn kept() -> MutexGuard<'static, Vec<EventHandle>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ExitNotifier {
    /// Reports the exit of a child. If the console has ended the child, waits for the console's event first: the
    /// console sends it to one process after the other, and this process may be the last.
    pub(super) fn notify(&self, pid: u32, status: u32) {
        if status == STATUS_CONTROL_C_EXIT as u32 {
            let state = self.0.lock();
            let is_silent = |state: &mut SignalQueue| state.console_asked_at.is_none();
            drop(self.0.console_has_asked.wait_timeout_while(state, Duration::from_secs(1), is_silent));
        }
        self.0.lock().push(SignalInfo { signal: Signal::Child, sender: Some(pid) });
    }

    /// Returns whether a child that was started at this time has got the console's event itself. A young process may
    /// have had no console yet.
    pub(super) fn has_console_asked(&self, started: Instant) -> bool {
        /// Longer than a start takes, and shorter than an operator would wait.
        const YOUNG: Duration = Duration::from_secs(1);
        self.0.lock().console_asked_at.is_some_and(|asked_at| asked_at >= started + YOUNG)
    }
}

impl Post {
    fn push(&self, signal: Signal) {
        self.lock().push(SignalInfo { signal, sender: None });
    }

    /// Notes the time together with the event, so that a caller that finds one also finds the other.
    fn push_from_console(&self, signal: Signal) {
        let mut state = self.lock();
        state.console_asked_at.get_or_insert_with(Instant::now);
        state.push(SignalInfo { signal, sender: None });
        self.console_has_asked.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, SignalQueue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SignalQueue {
    fn push(&mut self, arrived: SignalInfo) {
        let is_there = |known: &SignalInfo| known.signal == arrived.signal && known.sender == arrived.sender;
        if !self.arrived.iter().any(is_there) {
            self.arrived.push_back(arrived);
        }
        if let Some(wake) = &self.wake {
            wake();
        }
    }
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").field("arrived", &self.lock().arrived).finish_non_exhaustive()
    }
}
