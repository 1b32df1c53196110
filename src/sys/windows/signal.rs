//! The counterparts of the parent's signals: console events, named events that an operator sets, and exits of children.

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

/// The requests that an operator makes by setting a named event. The event's name is `taskfork-`, the parent's pid, a
/// hyphen, and this suffix.
const NAMED: [(Signal, &str); 5] = [
    (Signal::Terminate, "TERM"),
    (Signal::Quit, "QUIT"),
    (Signal::Hangup, "HUP"),
    (Signal::TerminalInput, "TTIN"),
    (Signal::TerminalOutput, "TTOU"),
];

/// The named events of an earlier service in this process, in the order of `NAMED`. They are kept, because creating an
/// event fails while its name exists, and the name exists while any process, for example an operator's, has the event
/// open.
static KEPT_EVENTS: Mutex<Vec<EventHandle>> = Mutex::new(Vec::new());

/// The requests to the parent and the exits of its children. While this value exists, a console event does not end the
/// process, but waits here.
#[derive(Debug)]
pub(crate) struct Signals {
    _watches: Vec<Watch>,
    _events: NamedEvents,
    exit_notifier: ExitNotifier,
    _lock: SupervisorLock,
}

/// The named events. Dropping this value keeps them for the next service.
#[derive(Debug)]
struct NamedEvents(Vec<EventHandle>);

/// Reports the exits of children to the [`Signals`].
#[derive(Clone, Debug)]
pub(crate) struct ExitNotifier(Arc<SharedQueue>);

/// The queue, with the lock and the condition through which threads of the system use it.
#[derive(Default)]
struct SharedQueue {
    queue: Mutex<SignalQueue>,
    console_event_arrived: Condvar,
}

#[derive(Default)]
struct SignalQueue {
    arrived: VecDeque<SignalInfo>,
    wake: Option<Box<dyn Fn() + Send>>,
    /// The time of the first console event. The console sends its events to the children too.
    first_console_event: Option<Instant>,
}

impl Signals {
    /// Takes over the requests, in the same way for every kind of worker.
    pub fn take(lock: SupervisorLock, _: WorkerKind) -> Result<Signals, CallError> {
        let queue = Arc::new(SharedQueue::default());
        let events = NamedEvents::take()?;
        let mut watches = Vec::with_capacity(NAMED.len());
        for ((signal, _), event) in NAMED.into_iter().zip(&events.0) {
            let queue = Arc::clone(&queue);
            watches.push(Watch::each(event.handle(), move || queue.push(signal))?);
        }
        let console_queue = Arc::clone(&queue);
        let signals = Signals { _watches: watches, _events: events, exit_notifier: ExitNotifier(queue), _lock: lock };
        console::set_receiver(Some(Arc::new(move |signal| console_queue.push_from_console(signal))))?;
        Ok(signals)
    }

    /// Calls `wake` whenever a request or an exit arrives, and at once if one waits already.
    pub fn wake_by(&self, wake: impl Fn() + Send + 'static) {
        let mut queue = self.exit_notifier.0.lock();
        if !queue.arrived.is_empty() {
            wake();
        }
        queue.wake = Some(Box::new(wake));
    }

    pub fn exit_notifier(&self) -> ExitNotifier {
        self.exit_notifier.clone()
    }

    /// Returns false, because a request makes no waiting call fail.
    pub fn interrupts(&self) -> bool {
        false
    }

    /// Returns the next request or exit that has arrived. Returns a request once if it has arrived several times
    /// meanwhile.
    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        Ok(self.exit_notifier.0.lock().arrived.pop_front())
    }

    /// Ends the takeover, in the parent. A stop request that was not read ends the program, as it would have done
    /// without the takeover, unless the service `has_stopped`. Drops other requests.
    pub fn end(mut self, has_stopped: bool) -> Result<(), CallError> {
        // From here on, the next handler gets the console's events.
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
        // This fails only if the handler could not be installed. Then there is nothing to end.
        let _ = console::set_receiver(None);
    }
}

impl NamedEvents {
    /// Returns the kept events after resetting them, which drops old requests. Creates the events if none are kept.
    fn take() -> Result<NamedEvents, CallError> {
        let kept = mem::take(&mut *kept_events());
        if kept.is_empty() {
            let made = NAMED.iter().map(|(_, name)| EventHandle::named(&format!("taskfork-{}-{name}", process::id())));
            return Ok(NamedEvents(made.collect::<Result<_, _>>()?));
        }
        kept.iter().try_for_each(EventHandle::reset)?;
        Ok(NamedEvents(kept))
    }
}

impl Drop for NamedEvents {
    fn drop(&mut self) {
        *kept_events() = mem::take(&mut self.0);
    }
}

fn kept_events() -> MutexGuard<'static, Vec<EventHandle>> {
    KEPT_EVENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ExitNotifier {
    /// Reports the exit of a child. If a console event has ended the child, waits up to a second until this process
    /// gets the event too, because the console sends it to one process after the other.
    pub(super) fn notify(&self, pid: u32, status: u32) {
        if status == STATUS_CONTROL_C_EXIT as u32 {
            let queue = self.0.lock();
            let is_missing = |queue: &mut SignalQueue| queue.first_console_event.is_none();
            drop(self.0.console_event_arrived.wait_timeout_while(queue, Duration::from_secs(1), is_missing));
        }
        self.0.lock().push(SignalInfo { signal: Signal::Child, sender: Some(pid) });
    }

    /// Returns whether the console has sent an event to a child that was started at this time. Returns false if the
    /// child was younger than one second then, because it may not have been attached to the console yet.
    pub(super) fn has_sent_console_event(&self, started: Instant) -> bool {
        /// Longer than the start of a process takes, and shorter than an operator waits before pressing Ctrl-C.
        const YOUNG: Duration = Duration::from_secs(1);
        self.0.lock().first_console_event.is_some_and(|sent_at| sent_at >= started + YOUNG)
    }
}

impl SharedQueue {
    fn push(&self, signal: Signal) {
        self.lock().push(SignalInfo { signal, sender: None });
    }

    /// Stores the time and the signal under one lock, so that a reader that finds one also finds the other.
    fn push_from_console(&self, signal: Signal) {
        let mut queue = self.lock();
        queue.first_console_event.get_or_insert_with(Instant::now);
        queue.push(SignalInfo { signal, sender: None });
        self.console_event_arrived.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, SignalQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SignalQueue {
    fn push(&mut self, arrived: SignalInfo) {
        let is_same = |known: &SignalInfo| known.signal == arrived.signal && known.sender == arrived.sender;
        if !self.arrived.iter().any(is_same) {
            self.arrived.push_back(arrived);
        }
        if let Some(wake) = &self.wake {
            wake();
        }
    }
}

impl fmt::Debug for SharedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedQueue").field("arrived", &self.lock().arrived).finish_non_exhaustive()
    }
}
