//! What systemd is told, or whoever else listens in its place: sd_notify(3).

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use sd_notify::NotifyState;

use crate::event::Event;
use crate::sys;

/// What is asked for more often is not worth a wake-up.
const SHORTEST: Duration = Duration::from_millis(1);
/// After so long it may have read what others have said.
const AGAIN: Duration = Duration::from_millis(100);
const FULL: &str = "its queue is full, so it will be told again";

/// The service, as it is to be told.
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
    /// What has not been said yet, in its order.
    unsent: VecDeque<Notification>,
    /// When it is tried again, if there is any, and nothing else to say before.
    again: Instant,
    watchdog: Option<Watchdog>,
    /// Why it is about to stop, if something has failed: the last status stays.
    failure: Option<String>,
    /// That somebody could not be told is told once for each reason.
    failures: Vec<ErrorKind>,
}

#[derive(Debug)]
struct Notification {
    states: Vec<NotifyState<'static>>,
    status: Option<String>,
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
        let [address, _, _] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"].map(sys::take_env_var);
        let every = interval.map(|interval| (interval / 2).max(SHORTEST));
        Some(Systemd::new(parse(&address?), every, Instant::now()))
    }

    fn new(address: Option<SocketAddr>, every: Option<Duration>, now: Instant) -> Systemd {
        let watchdog = every.map(|every| Watchdog { every, next: now + every });
        let (unsent, failures) = (VecDeque::new(), Vec::new());
        Systemd { address, stage: Stage::Starting, unsent, again: now, watchdog, failure: None, failures }
    }

    /// `up` is how many are wanted, once they all are up.
    #[must_use = "the first failure is to be logged"]
    pub fn handle_event(&mut self, event: &Event, up: impl FnOnce() -> Option<usize>) -> Option<io::Error> {
        match self.answer(event, up) {
            Ok(message) => self.keep(message?),
            Err(error) => return self.fail(error),
        }
        self.send_pending()
    }

    /// When what is unsaid is to be said; a sign of life comes after it. To a service that stops systemd gives another
    /// time.
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.unsent.is_empty() {
            return Some(self.again);
        }
        self.watchdog.as_ref().filter(|_| self.stage != Stage::Stopping).map(|watchdog| watchdog.next)
    }

    /// Says what is due.
    #[must_use = "the first failure is to be logged"]
    pub fn flush(&mut self) -> Option<io::Error> {
        let due = self.next_deadline()?;
        let now = Instant::now();
        if now < due {
            return None;
        }
        if let (true, Some(watchdog)) = (self.unsent.is_empty(), &mut self.watchdog) {
            watchdog.next = now + watchdog.every;
            self.keep(Notification { states: vec![NotifyState::Watchdog], status: None });
        }
        self.send_pending()
    }

    fn answer(&mut self, event: &Event, up: impl FnOnce() -> Option<usize>) -> io::Result<Option<Notification>> {
        let (stage, states, status) = match (self.stage, event) {
            (Stage::Stopping, _) => return Ok(None),
            (_, Event::RestartLimitReached { .. } | Event::StartupFailed { .. }) => {
                self.failure = Some(event.to_string());
                return Ok(None);
            }
            (_, Event::Stopping { .. }) => {
                (Stage::Stopping, vec![NotifyState::Stopping], self.failure.take().unwrap_or_else(|| event.to_string()))
            }
            // A rolling restart of a service that is not up yet is a part of its start.
            (Stage::Starting, _) => match up() {
                Some(workers) => (Stage::Ready, vec![NotifyState::Ready], format!("{workers} workers are up")),
                None => return Ok(None),
            },
            (Stage::Ready, Event::RollingRestartStarted) => {
                // By which it is known that this is the answer to the last SIGHUP.
                let now = NotifyState::monotonic_usec_now()?;
                (Stage::Reloading, vec![NotifyState::Reloading, now], event.to_string())
            }
            (Stage::Reloading, Event::RollingRestartFinished | Event::RollingRestartAborted { .. }) => {
                (Stage::Ready, vec![NotifyState::Ready], event.to_string())
            }
            (stage, Event::Scaled { .. }) => (stage, Vec::new(), event.to_string()),
            _ => return Ok(None),
        };
        self.stage = stage;
        Ok(Some(Notification { states, status: Some(status) }))
    }

    /// The last rolling restart is the answer to all SIGHUPs before, and the last status is the one that counts. Nothing
    /// else can be left out: who was never ready, and stops, has failed.
    fn keep(&mut self, message: Notification) {
        if message.begins_roll() {
            let before = self.unsent.iter().position(Notification::begins_roll).unwrap_or(self.unsent.len());
            self.unsent.truncate(before);
        }
        match self.unsent.back_mut().filter(|_| message.states.is_empty()) {
            Some(last) => last.status = message.status,
            None => self.unsent.push_back(message),
        }
    }

    /// As far as there is room.
    fn send_pending(&mut self) -> Option<io::Error> {
        let mut failed = None;
        while let Some(message) = self.unsent.front() {
            let error = self.send(message).err();
            let is_full = error.as_ref().is_some_and(|error| error.kind() == ErrorKind::WouldBlock);
            failed = failed.or_else(|| error.and_then(|error| self.fail(error)));
            if is_full {
                self.again = Instant::now() + AGAIN;
                break;
            }
            self.unsent.pop_front();
        }
        failed
    }

    fn send(&self, message: &Notification) -> io::Result<()> {
        match &self.address {
            Some(address) => send(&message.lines(), address),
            None => Err(io::Error::other("NOTIFY_SOCKET is not the address of a Unix socket")),
        }
    }

    fn fail(&mut self, error: io::Error) -> Option<io::Error> {
        let is_known = self.failures.contains(&error.kind());
        (!is_known).then(|| {
            self.failures.push(error.kind());
            error
        })
    }
}

impl Notification {
    fn begins_roll(&self) -> bool {
        matches!(self.states[..], [NotifyState::Reloading, ..])
    }

    fn lines(&self) -> String {
        let status = self.status.as_deref().map(NotifyState::Status);
        self.states.iter().chain(&status).map(|state| format!("{state}\n")).collect()
    }
}

/// A socket for each message, so that no worker inherits one. It never waits: one that nobody reads is not to stop the
/// supervision. Where there is no room, that it would have to wait is the error.
fn send(message: &str, address: &SocketAddr) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match socket.send_to_addr(message.as_bytes(), address) {
        Err(error) if is_want_of_room(&error) => Err(io::Error::new(ErrorKind::WouldBlock, FULL)),
        sent => sent.map(drop),
    }
}

fn is_want_of_room(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}

/// A path, or what is no file, after an `@`. Others, such as `vsock:2:1234`, are none of Unix.
fn parse(address: &str) -> Option<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = address.strip_prefix('@') {
        return SocketAddr::from_abstract_name(name).ok();
    }
    address.starts_with('/').then(|| SocketAddr::from_pathname(address).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Process;

    const STOPPING: Event = Event::Stopping { workers: 2, quick: false, by: None };
    const READY: Event = Event::Ready { process: Process { id: 0, generation: 0, pid: Some(71) } };

    fn silent() -> Systemd {
        Systemd::new(None, None, Instant::now())
    }

    /// With everybody up or not.
    fn answers(systemd: &mut Systemd, events: &[(Event, bool)]) -> Vec<Notification> {
        let answer = |(event, is_up): &(Event, bool)| systemd.answer(event, || is_up.then_some(2)).expect("the time");
        events.iter().filter_map(answer).collect()
    }

    /// The first lines of what is said.
    fn said(systemd: &mut Systemd, events: &[(Event, bool)]) -> Vec<String> {
        answers(systemd, events).iter().map(first_line).collect()
    }

    fn first_line(message: &Notification) -> String {
        message.lines().lines().next().expect("a line").to_owned()
    }

    #[test]
    fn a_service_is_ready_once_and_again_after_each_roll_that_was_told() {
        let mut systemd = silent();
        let starting = [
            (READY, false),
            (Event::RollingRestartStarted, false),
            (READY, true),
            (READY, true),
            (Event::RollingRestartFinished, true),
        ];
        assert_eq!(said(&mut systemd, &starting), ["READY=1"]);
        let aborted = Event::RollingRestartAborted { id: 1 };
        let rolls = [
            (Event::RollingRestartStarted, true),
            (Event::RollingRestartFinished, false),
            (Event::RollingRestartStarted, true),
            (aborted, true),
        ];
        assert_eq!(said(&mut systemd, &rolls), ["RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]);
    }

    #[test]
    fn nothing_follows_the_stop() {
        let mut systemd = silent();
        let events = [
            (READY, true),
            (Event::RollingRestartStarted, true),
            (STOPPING, true),
            (Event::RollingRestartFinished, true),
            (STOPPING, true),
        ];
        assert_eq!(said(&mut systemd, &events), ["READY=1", "RELOADING=1", "STOPPING=1"]);
        assert_eq!(said(&mut silent(), &[(STOPPING, true), (READY, true)]), ["STOPPING=1"]);
    }

    #[test]
    fn the_last_status_says_what_has_failed() {
        let mut systemd = silent();
        assert_eq!(
            said(&mut systemd, &[(READY, true), (Event::RestartLimitReached { restarts: 3 }, true)]),
            ["READY=1"]
        );
        let message = systemd.answer(&STOPPING, || None).expect("the time").expect("a message");
        assert_eq!(message.lines(), "STOPPING=1\nSTATUS=Too many child restarts (3), giving up\n");
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
    fn of_what_is_unsaid_the_last_roll_and_the_last_status_count() {
        let mut systemd = silent();
        let scaled = |workers| (Event::Scaled { workers }, true);
        let roll = [(Event::RollingRestartStarted, true), (Event::RollingRestartFinished, true)];
        let aborted = [(Event::RollingRestartStarted, true), (Event::RollingRestartAborted { id: 1 }, true)];
        let mut events = vec![(READY, true), scaled(3), scaled(4)];
        events.extend(roll.into_iter().chain([scaled(5)]).chain(aborted).chain([(STOPPING, true)]));
        for message in answers(&mut systemd, &events) {
            systemd.keep(message);
        }
        let unsent: Vec<_> = systemd.unsent.iter().map(first_line).collect();
        assert_eq!(unsent, ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]);
        assert_eq!(systemd.unsent[0].status.as_deref(), Some("Scaled to 4 processes"));
        assert_eq!(systemd.unsent[2].status, Some(Event::RollingRestartAborted { id: 1 }.to_string()));
        assert!(systemd.next_deadline().is_some(), "also of a service that stops");
    }

    #[test]
    fn what_fails_is_told_once() {
        let mut systemd = silent();
        assert!(systemd.handle_event(&READY, || Some(2)).is_some());
        assert!(systemd.handle_event(&STOPPING, || None).is_none());
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
