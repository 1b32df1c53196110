//! The Windows counterparts of the signals to the parent: console events, named events that an operator sets, and exits
//! of children.

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

/// The named events. Each event stands for one signal, and an operator sets an event to send that signal to the parent.
/// The name of an event consists of `taskfork-`, the parent's pid, a hyphen, and the suffix in this array.
const NAMED: [(Signal, &str); 5] = [
    (Signal::Terminate, "TERM"),
    (Signal::Quit, "QUIT"),
    (Signal::Hangup, "HUP"),
    (Signal::TerminalInput, "TTIN"),
    (Signal::TerminalOutput, "TTOU"),
];

/// The named events of the previous service in this process, in the order of `NAMED`. The next service uses these
/// events again, because it may be unable to create events with the same names. [`EventHandle::named`] fails while an
/// event with the name exists. An event exists while any process has the event open, for example a tool of the
/// operator.
static KEPT_EVENTS: Mutex<Vec<EventHandle>> = Mutex::new(Vec::new());

/// Receives the requests to the parent and the exits of its children. While this value exists, a console event does not
/// end the process. Instead, the event is queued as a request, which `next` returns.
#[derive(Debug)]
pub(crate) struct Signals {
    _watches: Vec<Watch>,
    _events: NamedEvents,
    exit_notifier: ExitNotifier,
    _lock: SupervisorLock,
}

/// The named events of the running service. Dropping this value keeps the events for the next service.
#[derive(Debug)]
struct NamedEvents(Vec<EventHandle>);

/// Reports the exits of children to the [`Signals`] of the parent.
#[derive(Clone, Debug)]
pub(crate) struct ExitNotifier(Arc<SharedQueue>);

/// The queue of requests and exits, with a lock and a condition variable, because several threads use the queue. The
/// system creates the threads that add to the queue.
#[derive(Default)]
struct SharedQueue {
    queue: Mutex<SignalQueue>,
    console_event_arrived: Condvar,
}

#[derive(Default)]
struct SignalQueue {
    arrived: VecDeque<SignalInfo>,
    wake: Option<Box<dyn Fn() + Send>>,
    /// The time when this process received its first console event. The console sends its events to the children too.
    first_console_event: Option<Instant>,
}

impl ExitNotifier {
    /// Runs a closure that starts a program. Windows has no signal mask that the program could inherit.
    pub fn with_program_mask<T>(&self, start: impl FnOnce() -> T) -> T {
        start()
    }
}

impl Signals {
    /// Takes over the requests from the program. On Windows, the kinds of the workers make no difference.
    pub fn take(lock: SupervisorLock, _: &[WorkerKind]) -> Result<Signals, CallError> {
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

    /// Calls `wake` whenever a request or an exit arrives. Also calls `wake` now if a request or an exit has already
    /// arrived.
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

    /// Returns false, because on Windows a request does not interrupt a blocking system call.
    pub fn interrupts(&self) -> bool {
        false
    }

    /// Runs a closure that waits for requests.
    pub fn while_waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        wait()
    }

    /// Returns the next request or exit that was not read yet, or `None`. If the same request has arrived several times
    /// since it was last read, returns it only once.
    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        Ok(self.exit_notifier.0.lock().arrived.pop_front())
    }

    /// Ends the takeover in the parent. If a stop request is unread, ends the program, as the request would have done
    /// without the takeover. Drops the stop request instead if the service `has_stopped` already. Drops all other
    /// unread requests.
    pub fn end(mut self, has_stopped: bool) -> Result<(), CallError> {
        // From now on, console events go to the next handler, which is usually that of the program.
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
        // This fails only if the console handler could not be installed. In that case, no receiver needs to be removed.
        let _ = console::set_receiver(None);
    }
}

impl NamedEvents {
    /// Returns the events that the previous service has kept. Resets these events first, so that old requests are
    /// dropped. If no events were kept, creates them.
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
    /// Reports the exit of a child. If a console event has ended the child, first waits until this process has received
    /// the event too, but at most one second. The console sends an event to one process after the other, so the child
    /// may get the event before this process.
    pub(super) fn notify(&self, pid: u32, status: u32) {
        if status == STATUS_CONTROL_C_EXIT as u32 {
            let queue = self.0.lock();
            let is_missing = |queue: &mut SignalQueue| queue.first_console_event.is_none();
            drop(self.0.console_event_arrived.wait_timeout_while(queue, Duration::from_secs(1), is_missing));
        }
        self.0.lock().push(SignalInfo { signal: Signal::Child, sender: Some(pid) });
    }

    /// Returns whether the console has sent an event to a child that was started at the time `started`. Returns false
    /// if the child was younger than one second at the time of the event, because the child may not have been attached
    /// to the console yet.
    pub(super) fn has_sent_console_event(&self, started: Instant) -> bool {
        /// Starting a process takes less time than this. An operator waits longer than this after a start before
        /// pressing Ctrl-C.
        const YOUNG: Duration = Duration::from_secs(1);
        self.0.lock().first_console_event.is_some_and(|sent_at| sent_at >= started + YOUNG)
    }
}

impl SharedQueue {
    fn push(&self, signal: Signal) {
        self.lock().push(SignalInfo { signal, sender: None });
    }

    /// Stores the time of the console event and adds the signal to the queue, both under one lock. So a thread that
    /// finds the signal in the queue also finds the time.
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
