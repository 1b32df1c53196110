//! What takes the place of signals for the parent: the console, events that an operator sets, and the ends of children.

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

/// The events that an operator sets, by the last part of their names.
const NAMED: [(Signal, &str); 5] = [
    (Signal::Terminate, "TERM"),
    (Signal::Quit, "QUIT"),
    (Signal::Hangup, "HUP"),
    (Signal::TerminalInput, "TTIN"),
    (Signal::TerminalOutput, "TTOU"),
];

/// Those of an earlier service in this process, in the order of `NAMED`. A name lives as long as anybody has the event open, and
/// an operator may still have it: then it could not be made anew.
static KEPT: Mutex<Vec<EventHandle>> = Mutex::new(Vec::new());

/// For as long as this lives, what is typed at the console does not end this process, but waits here.
#[derive(Debug)]
pub(crate) struct Signals {
    _watches: Vec<Watch>,
    _events: Named,
    exit_notifier: ExitNotifier,
    _lock: SupervisorLock,
}

/// Kept for the next service.
#[derive(Debug)]
struct Named(Vec<EventHandle>);

/// Whom the end of a child is told.
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
    /// When it has first told this process, and the children too.
    console_asked_at: Option<Instant>,
}

impl Signals {
    /// What the workers are makes no difference.
    pub fn take(lock: SupervisorLock, _: WorkerKind) -> Result<Signals, CallError> {
        let post = Arc::new(Post::default());
        let events = Named::take()?;
        let mut watches = Vec::with_capacity(NAMED.len());
        for ((signal, _), event) in NAMED.into_iter().zip(&events.0) {
            let post = Arc::clone(&post);
            watches.push(Watch::each(event.handle(), move || post.tell(signal))?);
        }
        let heard = Arc::clone(&post);
        let signals = Signals { _watches: watches, _events: events, exit_notifier: ExitNotifier(post), _lock: lock };
        console::hear_by(Some(Arc::new(move |signal| heard.tell_from_console(signal))))?;
        Ok(signals)
    }

    /// Whenever there is a next one, this is called.
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

    /// Nothing that waits fails because of them.
    pub fn interrupts(&self) -> bool {
        false
    }

    /// The next one that has arrived, if any; each only once, however often it came meanwhile.
    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        Ok(self.exit_notifier.0.lock().arrived.pop_front())
    }

    /// For the parent, when it is done: a request to stop that nobody took ends the program, as it would have without this,
    /// unless it `has_stopped`.
    pub fn end(mut self, has_stopped: bool) -> Result<(), CallError> {
        // What comes from now on is the next handler's.
        console::hear_by(None)?;
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
        // It fails only where there is no handler to be taken away.
        let _ = console::hear_by(None);
    }
}

impl Named {
    /// What was set before is not for who takes them.
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
    /// A child has ended. If it was the console that has ended it, that is told first: the console tells all processes, one
    /// after the other, and this one may be the last.
    pub(super) fn tell(&self, pid: u32, status: u32) {
        if status == STATUS_CONTROL_C_EXIT as u32 {
            let state = self.0.lock();
            let is_silent = |state: &mut SignalQueue| state.console_asked_at.is_none();
            drop(self.0.console_has_asked.wait_timeout_while(state, Duration::from_secs(1), is_silent));
        }
        self.0.lock().push(SignalInfo { signal: Signal::Child, sender: Some(pid) });
    }

    /// Whether a child that was started then has heard of it from the console by itself. One that is young has perhaps not had
    /// a console yet.
    pub(super) fn has_console_asked(&self, started: Instant) -> bool {
        /// What is longer than to start, and less than anybody would wait for.
        const YOUNG: Duration = Duration::from_secs(1);
        self.0.lock().console_asked_at.is_some_and(|asked_at| asked_at >= started + YOUNG)
    }
}

impl Post {
    fn tell(&self, signal: Signal) {
        self.lock().push(SignalInfo { signal, sender: None });
    }

    /// Whoever finds the one finds the other.
    fn tell_from_console(&self, signal: Signal) {
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
