//! What systemd is told, or whoever else listens in its place: sd_notify(3).

#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};
use std::{fmt, io};

use sd_notify::NotifyState;

use crate::event::Event;
use crate::sys;

/// What is asked for more often is not worth a wake-up.
const SHORTEST: Duration = Duration::from_millis(1);

/// The service, as it was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    Reloading,
    Stopping,
}

#[derive(Debug)]
pub(crate) struct Systemd {
    /// None: it is not of a kind that can be told anything.
    address: Option<SocketAddr>,
    stage: Stage,
    watchdog: Option<Watchdog>,
    /// Why it is about to stop, if something has failed: the last status stays.
    failure: Option<String>,
    /// That somebody could not be told is told once.
    has_failed: bool,
}

#[derive(Debug)]
struct Watchdog {
    every: Duration,
    next: Instant,
}

impl Systemd {
    /// None where nobody listens. What says so is removed from the environment, so that nobody else speaks for the service.
    pub fn from_environment() -> Option<Systemd> {
        let interval = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero());
        let [address, _, _] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"].map(sys::take_variable);
        let every = interval.map(|interval| (interval / 2).max(SHORTEST));
        Some(Systemd::new(parse(&address?), every, Instant::now()))
    }

    fn new(address: Option<SocketAddr>, every: Option<Duration>, now: Instant) -> Systemd {
        let watchdog = every.map(|every| Watchdog { every, next: now + every });
        Systemd { address, stage: Stage::Starting, watchdog, failure: None, has_failed: false }
    }

    /// `up` is how many are wanted, once they all are up.
    #[must_use = "the first failure is to be logged"]
    pub fn hear(&mut self, event: &Event, up: impl FnOnce() -> Option<usize>) -> Option<io::Error> {
        match self.answer(event, up) {
            Ok(message) => self.send(&message?),
            Err(error) => self.fail(error),
        }
    }

    /// When a sign of life is due, if any is asked for. To a service that stops systemd gives another time.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.watchdog.as_ref().filter(|_| self.stage != Stage::Stopping).map(|watchdog| watchdog.next)
    }

    /// Gives it, if it is due.
    #[must_use = "the first failure is to be logged"]
    pub fn beat(&mut self) -> Option<io::Error> {
        let due = self.next_deadline()?;
        let now = Instant::now();
        let watchdog = self.watchdog.as_mut().filter(|_| due <= now)?;
        watchdog.next = now + watchdog.every;
        self.send(&lines(&[NotifyState::Watchdog]))
    }

    fn answer(&mut self, event: &Event, up: impl FnOnce() -> Option<usize>) -> io::Result<Option<String>> {
        let text = |event: &dyn fmt::Display| event.to_string();
        let (stage, message) = match (self.stage, event) {
            (Stage::Stopping, _) => return Ok(None),
            (_, Event::GaveUp { .. } | Event::StartupFailed { .. }) => {
                self.failure = Some(text(event));
                return Ok(None);
            }
            (_, Event::Stopping { .. }) => {
                let status = self.failure.take().unwrap_or_else(|| text(event));
                (Stage::Stopping, lines(&[NotifyState::Stopping, NotifyState::Status(&status)]))
            }
            // A rolling restart of a service that is not up yet is a part of its start.
            (Stage::Starting, _) => match up() {
                Some(workers) => {
                    let status = text(&format_args!("{workers} workers are up"));
                    (Stage::Ready, lines(&[NotifyState::Ready, NotifyState::Status(&status)]))
                }
                None => return Ok(None),
            },
            (Stage::Ready, Event::Reloading) => {
                // By which it is known that this is the answer to the last SIGHUP.
                let now = NotifyState::monotonic_usec_now()?;
                (Stage::Reloading, lines(&[NotifyState::Reloading, now, NotifyState::Status(&text(event))]))
            }
            (Stage::Reloading, Event::Reloaded | Event::ReloadAborted { .. }) => {
                (Stage::Ready, lines(&[NotifyState::Ready, NotifyState::Status(&text(event))]))
            }
            (stage, Event::Scaled { .. }) => (stage, lines(&[NotifyState::Status(&text(event))])),
            _ => return Ok(None),
        };
        self.stage = stage;
        Ok(Some(message))
    }

    fn send(&mut self, message: &str) -> Option<io::Error> {
        let Some(address) = &self.address else {
            return self.fail(io::Error::other("NOTIFY_SOCKET is not the address of a Unix socket"));
        };
        match send(message, address) {
            Ok(()) => None,
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: io::Error) -> Option<io::Error> {
        (!std::mem::replace(&mut self.has_failed, true)).then_some(error)
    }
}

/// A socket for each message, so that no worker inherits one. It never waits: one that nobody reads is not to stop the
/// supervision.
fn send(message: &str, address: &SocketAddr) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), address)?;
    Ok(())
}

/// A path, or what is no file, after an `@`. Others, such as `vsock:2:1234`, are none of Unix.
fn parse(address: &str) -> Option<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = address.strip_prefix('@') {
        return SocketAddr::from_abstract_name(name).ok();
    }
    address.starts_with('/').then(|| SocketAddr::from_pathname(address).ok()).flatten()
}

fn lines(states: &[NotifyState<'_>]) -> String {
    states.iter().map(|state| format!("{state}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Process;

    const STOPPING: Event = Event::Stopping { workers: 2, quick: false, by: None };
    const READY: Event = Event::Ready { process: Process { id: 0, generation: 0, pid: 71 } };

    fn silent() -> Systemd {
        Systemd::new(None, None, Instant::now())
    }

    /// The first lines of what is said, with everybody up or not.
    fn said(systemd: &mut Systemd, events: &[(Event, bool)]) -> Vec<String> {
        let answers = events.iter().filter_map(|(event, is_up)| {
            systemd
                .answer(event, || is_up.then_some(2))
                .expect("the time")
                .map(|text| text.lines().next().unwrap().into())
        });
        answers.collect()
    }

    #[test]
    fn a_service_is_ready_once_and_again_after_each_roll_that_was_told() {
        let mut systemd = silent();
        let starting =
            [(READY, false), (Event::Reloading, false), (READY, true), (READY, true), (Event::Reloaded, true)];
        assert_eq!(said(&mut systemd, &starting), ["READY=1"]);
        let aborted = Event::ReloadAborted { id: 1 };
        let rolls = [(Event::Reloading, true), (Event::Reloaded, false), (Event::Reloading, true), (aborted, true)];
        assert_eq!(said(&mut systemd, &rolls), ["RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]);
    }

    #[test]
    fn nothing_follows_the_stop() {
        let mut systemd = silent();
        let events =
            [(READY, true), (Event::Reloading, true), (STOPPING, true), (Event::Reloaded, true), (STOPPING, true)];
        assert_eq!(said(&mut systemd, &events), ["READY=1", "RELOADING=1", "STOPPING=1"]);
        assert_eq!(said(&mut silent(), &[(STOPPING, true), (READY, true)]), ["STOPPING=1"]);
    }

    #[test]
    fn the_last_status_says_what_has_failed() {
        let mut systemd = silent();
        assert_eq!(said(&mut systemd, &[(READY, true), (Event::GaveUp { restarts: 3 }, true)]), ["READY=1"]);
        let message = systemd.answer(&STOPPING, || None).expect("the time").expect("a message");
        assert_eq!(message, "STOPPING=1\nSTATUS=Too many child restarts (3), giving up\n");
    }

    #[test]
    fn signs_of_life_are_due_where_they_are_asked_for_and_until_the_stop() {
        assert_eq!(silent().next_deadline(), None);
        let now = Instant::now();
        let mut systemd = Systemd::new(None, Some(Duration::from_secs(5)), now);
        assert_eq!(systemd.next_deadline(), Some(now + Duration::from_secs(5)));
        assert_eq!(said(&mut systemd, &[(STOPPING, true)]), ["STOPPING=1"]);
        assert_eq!(systemd.next_deadline(), None);
    }

    #[test]
    fn what_fails_is_told_once() {
        let mut systemd = silent();
        assert!(systemd.hear(&READY, || Some(2)).is_some());
        assert!(systemd.hear(&STOPPING, || None).is_none());
    }

    #[test]
    fn only_unix_sockets_are_addresses() {
        assert!(parse("/run/systemd/notify").is_some());
        assert_eq!(parse("@name").is_some(), cfg!(target_os = "linux"));
        for wrong in ["", "vsock:2:1234", "notify", &format!("/{}", "x".repeat(200))] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
