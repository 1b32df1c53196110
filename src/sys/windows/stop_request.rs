//! Receives stop requests in a worker. The parent requests a stop by setting an event object. The system requests a
//! stop with a console event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::console;
use super::event::EventHandle;
use super::watch::Watch;
use crate::sys::{CallError, Gate, Signal};

/// The event through which the parent requests a stop. This variable is initialized only once, and only in a worker.
static STOP_EVENT: OnceLock<StopEvent> = OnceLock::new();

#[derive(Debug)]
struct StopEvent {
    event: EventHandle,
    /// Sets `is_requested` when the parent sets the event. Empty until `listen` is called. Contains `None` if the event
    /// could not be watched. In that case, each call of `is_made` checks the event itself.
    watch: OnceLock<Option<Watch>>,
    is_requested: Arc<AtomicBool>,
}

/// The listener for stop requests in a worker. The process listens until it ends, even if this value is dropped.
#[derive(Debug)]
pub(crate) struct StopRequest {
    /// `None` if this process is not a worker. In that case, no stop request can arrive.
    stop_event: Option<&'static StopEvent>,
}

/// Stores the event through which the parent requests a stop. A spawned worker calls this with the event that it has
/// inherited.
pub(super) fn set_stop_event(event: EventHandle) {
    let is_requested = Arc::new(AtomicBool::new(false));
    STOP_EVENT.get_or_init(|| StopEvent { event, watch: OnceLock::new(), is_requested });
}

impl StopRequest {
    /// Enables the graceful stop. Never calls the functions, which are for Unix.
    pub fn listen(_on_error: impl FnOnce(CallError), _note: impl Fn() + Send + Sync + 'static) -> StopRequest {
        let stop_event = STOP_EVENT.get();
        if let Some(stop_event) = stop_event {
            stop_event.listen();
        }
        StopRequest { stop_event }
    }

    pub fn is_made(&self) -> bool {
        self.stop_event.is_some_and(StopEvent::is_made)
    }

    /// Waits until a stop is requested or `timeout` has passed. Returns whether a stop is requested. In a process that
    /// is not a worker, sleeps for the whole `timeout` and returns false.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let Some(stop_event) = self.stop_event else {
            thread::sleep(timeout.unwrap_or(Duration::MAX));
            return false;
        };
        let is_made = stop_event.event.wait(timeout);
        stop_event.is_requested.fetch_or(is_made, Ordering::Relaxed) || is_made
    }
}

impl StopEvent {
    fn listen(&'static self) {
        self.watch.get_or_init(|| {
            let is_requested = Arc::clone(&self.is_requested);
            // If no receiver can be set, a console event ends the process, as it would without this crate.
            let _ = console::set_receiver(Some(Arc::new(|signal| self.handle_console(signal))));
            let request_stop = move || {
                is_requested.store(true, Ordering::Relaxed);
                Gate::of_process().request_stop();
            };
            Watch::once(self.event.handle(), request_stop).ok()
        });
    }

    fn is_made(&self) -> bool {
        let is_unwatched = || self.watch.get().is_some_and(Option::is_none);
        self.is_requested.load(Ordering::Relaxed) || is_unwatched() && self.event.wait(Some(Duration::ZERO))
    }

    /// Handles a console event. Ignores Ctrl-C and Ctrl-Break, because the console sends them to the parent too, and
    /// the parent then requests the stop. If the worker stopped before the parent's request, the parent would treat the
    /// exit as unexpected.
    fn handle_console(&self, signal: Signal) {
        if signal == Signal::Interrupt {
            return;
        }
        self.is_requested.store(true, Ordering::Relaxed);
        let _ = self.event.set();
    }
}
