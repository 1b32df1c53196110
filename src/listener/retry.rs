//! The pauses between two attempts to bind an address that is in use.

use std::fmt;
use std::thread;
use std::time::Duration;

use super::bind::bound_addresses;

/// The total length of all pauses for one listener. nginx waits for 2.5 s in total, and gunicorn for 5 s.
const LONGEST: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Waits between the attempts to bind the address of a listener.
///
/// An address stays in use after the parent of the previous service was killed, for as long as its workers drain.
pub(crate) struct Retry<'a> {
    longest: Duration,
    left: Duration,
    pause: Duration,
    /// The addresses of the listeners that are open already.
    opened: Vec<String>,
    on_wait: &'a mut dyn FnMut(&str, Duration),
}

/// An attempt to open the socket of a listener, and what the attempts before it have found.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    /// No other attempt follows.
    pub is_last: bool,
    /// A connection to the socket that is at the listener's path.
    #[cfg(unix)]
    pub probe: Option<super::path::Probe>,
}

impl<'a> Retry<'a> {
    /// Before the first pause for an address, `on_wait` gets the address and the longest time of all pauses.
    pub fn new(on_wait: &'a mut dyn FnMut(&str, Duration)) -> Retry<'a> {
        Retry { longest: LONGEST, left: LONGEST, pause: FIRST_PAUSE, opened: bound_addresses(), on_wait }
    }

    /// Begins the attempts for the next listener.
    pub fn begin(&mut self) {
        self.left = self.longest;
        self.pause = FIRST_PAUSE;
    }

    /// Records that the service has opened a listener with this address.
    pub fn note_opened(&mut self, address: String) {
        self.opened.push(address);
    }

    /// Returns whether the service itself has opened a listener with this address. Then another attempt would fail too.
    pub fn has_opened(&self, address: &str) -> bool {
        self.opened.iter().any(|opened| opened == address)
    }

    /// Returns whether the next attempt is the last one.
    pub fn has_ended(&self) -> bool {
        self.left.is_zero()
    }

    /// Waits before the next attempt to bind this address. Returns `false` at once if no time is left.
    ///
    /// Signals have the effect that the program has chosen. By default SIGTERM ends the process during the pause.
    pub fn wait(&mut self, address: &str) -> bool {
        if self.has_ended() {
            return false;
        }
        if self.left == self.longest {
            (self.on_wait)(address, self.longest);
        }
        let pause = self.pause.min(self.left);
        thread::sleep(pause);
        self.left -= pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        true
    }
}

#[cfg(test)]
impl<'a> Retry<'a> {
    /// Allows one attempt for each listener.
    pub fn never(on_wait: &'a mut dyn FnMut(&str, Duration)) -> Retry<'a> {
        Retry { longest: Duration::ZERO, left: Duration::ZERO, ..Retry::new(on_wait) }
    }
}

impl fmt::Debug for Retry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry").field("left", &self.left).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wait_for_each_listener_is_reported() {
        let longest = Duration::from_millis(25);
        let mut reported = Vec::new();
        let mut on_wait = |address: &str, left: Duration| reported.push((address.to_owned(), left));
        let mut retry = Retry { longest, ..Retry::new(&mut on_wait) };
        for address in ["first", "second"] {
            retry.begin();
            assert!(retry.wait(address));
            assert!(!retry.has_ended());
            assert!(retry.wait(address));
            assert!(retry.has_ended());
            assert!(!retry.wait(address), "no time is left");
        }
        assert_eq!(reported, ["first", "second"].map(|address| (address.to_owned(), longest)));
    }
}
