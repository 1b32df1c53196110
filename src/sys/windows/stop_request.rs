//! How a worker hears that it is to stop: an event that is its own, and what is typed at the console.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::console;
use super::event::EventHandle;
use super::watch::Watch;
use crate::sys::Signal;

/// Set in a worker, once.
static ASKED: OnceLock<Asked> = OnceLock::new();

#[derive(Debug)]
struct Asked {
    event: EventHandle,
    /// None: it could not be had. Then the event is looked at each time.
    watch: OnceLock<Option<Watch>>,
    is_requested: Arc<AtomicBool>,
}

/// Listens from when it is made, for the rest of the process.
#[derive(Debug)]
pub(crate) struct StopRequest {
    /// None: not in a worker, which nobody asks.
    asked: Option<&'static Asked>,
}

/// In a worker that was passed this event.
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

    /// For this time at most.
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
            // Without it, what is typed ends this process as it always did.
            let _ = console::hear_by(Some(Arc::new(|signal| self.hear(signal))));
            Watch::once(self.event.handle(), move || is_requested.store(true, Ordering::Relaxed)).ok()
        });
    }

    fn is_made(&self) -> bool {
        let is_unwatched = || self.watch.get().is_some_and(Option::is_none);
        self.is_requested.load(Ordering::Relaxed) || is_unwatched() && self.event.wait(Some(Duration::ZERO))
    }

    /// An interrupt is told to the parent as well, which then asks; who has drained before would have ended by himself.
    fn hear(&self, signal: Signal) {
        if signal == Signal::Interrupt {
            return;
        }
        self.is_requested.store(true, Ordering::Relaxed);
        let _ = self.event.set();
    }
}
