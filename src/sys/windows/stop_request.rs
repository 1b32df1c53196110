//! Stop requests to a worker: an event that the parent sets, and console events.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::console;
use super::event::EventHandle;
use super::watch::Watch;
use crate::sys::Signal;

/// The event through which the parent requests a stop. Set once, and only in a worker.
static STOP_EVENT: OnceLock<StopEvent> = OnceLock::new();

#[derive(Debug)]
struct StopEvent {
    event: EventHandle,
    /// The watch that sets `is_requested`. Empty before `listen` was called. `None` if the event could not be watched;
    /// then each call checks the event itself.
    watch: OnceLock<Option<Watch>>,
    is_requested: Arc<AtomicBool>,
}

/// The listener for stop requests. It stays registered until the process ends.
#[derive(Debug)]
pub(crate) struct StopRequest {
    /// `None` if this process is not a worker. Then no request can arrive.
    stop_event: Option<&'static StopEvent>,
}

/// Stores, in a worker, the inherited event through which the parent requests a stop.
pub(super) fn set_stop_event(event: EventHandle) {
    let is_requested = Arc::new(AtomicBool::new(false));
    STOP_EVENT.get_or_init(|| StopEvent { event, watch: OnceLock::new(), is_requested });
}

impl StopRequest {
    pub fn listen() -> StopRequest {
        let stop_event = STOP_EVENT.get();
        if let Some(stop_event) = stop_event {
            stop_event.listen();
        }
        StopRequest { stop_event }
    }

    pub fn is_made(&self) -> bool {
        self.stop_event.is_some_and(StopEvent::is_made)
    }

    /// Waits for a request, for `timeout` at most. Returns whether there is one. Outside a worker, sleeps for the whole
    /// time and returns false.
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
            // If this fails, console events end the process, as they would without this crate.
            let _ = console::set_receiver(Some(Arc::new(|signal| self.handle_console(signal))));
            Watch::once(self.event.handle(), move || is_requested.store(true, Ordering::Relaxed)).ok()
        });
    }

    fn is_made(&self) -> bool {
        let is_unwatched = || self.watch.get().is_some_and(Option::is_none);
        self.is_requested.load(Ordering::Relaxed) || is_unwatched() && self.event.wait(Some(Duration::ZERO))
    }

    /// Handles a console event. Ignores Ctrl-C and Ctrl-Break, because the parent gets them too and then requests the
    /// stop. A worker that stopped before that request would seem to have exited on its own.
    fn handle_console(&self, signal: Signal) {
        if signal == Signal::Interrupt {
            return;
        }
        self.is_requested.store(true, Ordering::Relaxed);
        let _ = self.event.set();
    }
}
