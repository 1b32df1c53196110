//! Stop requests to a worker: an event of its own, and console events.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::console;
use super::event::EventHandle;
use super::watch::Watch;
use crate::sys::Signal;

/// Set once, in a worker.
static ASKED: OnceLock<Asked> = OnceLock::new();

#[derive(Debug)]
struct Asked {
    event: EventHandle,
    /// `None` if the event could not be watched. Then it is checked at each call.
    watch: OnceLock<Option<Watch>>,
    is_requested: Arc<AtomicBool>,
}

/// A listener for stop requests, for the rest of the process.
#[derive(Debug)]
pub(crate) struct StopRequest {
    /// `None` if this process is not a worker. Then no request can come.
    asked: Option<&'static Asked>,
}

/// Stores the inherited event by which the parent requests a stop, in a worker.
pub(super) fn may_come_by(event: EventHandle) {
    ASKED.get_or_init(|| Asked { event, watch: OnceLock::new(), is_requested: Arc::new(AtomicBool::new(false)) });
}

impl StopRequest {
    pub fn listen() -> StopRequest {
        let asked = ASKED.get();
        if let Some(asked) = asked {
            asked.listen();
        }
        StopRequest { asked }
    }

    pub fn is_made(&self) -> bool {
        self.asked.is_some_and(Asked::is_made)
    }

    /// Waits for a request, for `timeout` at most. Returns whether there is one.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let Some(asked) = self.asked else {
            thread::sleep(timeout.unwrap_or(Duration::MAX));
            return false;
        };
        let is_made = asked.event.wait(timeout);
        asked.is_requested.fetch_or(is_made, Ordering::Relaxed) || is_made
    }
}

impl Asked {
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

    /// Handles a console event. Ctrl-C is left to the parent, which gets it too and then requests the stop. A worker
    /// that stopped before would seem to have exited by itself.
    fn handle_console(&self, signal: Signal) {
        if signal == Signal::Interrupt {
            return;
        }
        self.is_requested.store(true, Ordering::Relaxed);
        let _ = self.event.set();
    }
}
