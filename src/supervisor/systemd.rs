//! Notifies systemd, or another service manager with the protocol of sd_notify(3).

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use ::log::Level;
use nix::errno::Errno;
use sd_notify::NotifyState;

use super::observer::{Observer, Output, ServiceView};
use crate::event::Event;
use crate::sys;

/// The shortest period between watchdog notifications, so that the parent does not wake up too often.
const SHORTEST: Duration = Duration::from_millis(1);
/// The pause before the next attempt to send if the service manager's queue is full.
const RETRY: Duration = Duration::from_millis(100);
const FULL: &str = "its queue is full, so it will be told again";

/// The state of the service that was last reported to the service manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    Reloading,
    Stopping,
}

/// The observer that notifies the service manager.
#[derive(Debug)]
pub(crate) struct Systemd {
    /// The address in `NOTIFY_SOCKET`. `None` if the variable does not contain the address of a Unix socket.
    address: Option<SocketAddr>,
    stage: Stage,
    /// The notifications that have not been sent yet, oldest first.
    unsent: VecDeque<Notification>,
    /// The time of the next attempt to send the unsent notifications. A new notification causes an earlier attempt.
    retry_at: Instant,
    watchdog: Option<Watchdog>,
    /// The reason why the service is about to stop, if it has failed. This reason becomes the last status.
    failure: Option<String>,
    /// Whether an upgrade is in progress. The rolling restarts that belong to it do not end the stage `Reloading`.
    is_upgrading: bool,
    /// The first pool that has failed in the current rolling restart of several pools, as a status.
    aborted: Option<String>,
    /// The kinds of errors that have been logged. Each kind is logged only once.
    logged: Vec<ErrorKind>,
}

#[derive(Debug)]
struct Notification {
    states: Vec<NotifyState<'static>>,
    status: Option<String>,
}

#[derive(Debug)]
struct Watchdog {
    period: Duration,
    next: Instant,
}

impl Systemd {
    /// Reads `NOTIFY_SOCKET` and the watchdog's variables, and removes them from the environment. So no child can send
    /// notifications for the service. Returns `None` if `NOTIFY_SOCKET` is not set. `is_adopted` is whether this
    /// program takes over the service from the program before an upgrade.
    pub fn from_environment(is_adopted: bool) -> Option<Systemd> {
        let interval = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero());
        let [address, _, _] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"].map(sys::take_env_var);
        let period = interval.map(|interval| (interval / 2).max(SHORTEST));
        let systemd = Systemd::new(parse(&address?), period, Instant::now());
        Some(if is_adopted { systemd.adopted() } else { systemd })
    }

    fn new(address: Option<SocketAddr>, period: Option<Duration>, now: Instant) -> Systemd {
        Systemd {
            address,
            stage: Stage::Starting,
            unsent: VecDeque::new(),
            retry_at: now,
            watchdog: period.map(|period| Watchdog { period, next: now + period }),
            failure: None,
            is_upgrading: false,
            aborted: None,
            logged: Vec::new(),
        }
    }

    /// Continues the notifications of the old program in the new program of an upgrade: systemd knows the service as
    /// reloading. The next watchdog notification is due at once, because no process has sent any between the two
    /// programs.
    fn adopted(mut self) -> Systemd {
        self.stage = Stage::Reloading;
        self.is_upgrading = true;
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.next = self.retry_at;
        }
        self
    }

    /// Notifies the service manager of an event, if the event needs a notification.
    fn notify(&mut self, event: &Event, service: &dyn ServiceView, output: &mut Output) {
        match self.notification_for(event, service) {
            Ok(None) => {}
            Ok(Some(notification)) => {
                self.enqueue(notification);
                self.send_pending(output);
            }
            Err(error) => self.log_once(&error, output),
        }
    }

    /// Returns the notification for an event, or `None` if the event needs none. Fails if the clock cannot be read.
    fn notification_for(&mut self, event: &Event, service: &dyn ServiceView) -> io::Result<Option<Notification>> {
        let is_stop = matches!(event, Event::Stopping { .. });
        // Only this pool stops, so its failure does not end the service.
        if is_stop && !service.is_stopping() {
            self.failure = None;
        }
        let (stage, states, status) = match (self.stage, event) {
            (Stage::Stopping, _) => return Ok(None),
            (_, Event::RestartLimitReached { .. } | Event::StartupFailed { .. }) => {
                self.failure = Some(event.to_string());
                return Ok(None);
            }
            _ if is_stop && service.is_stopping() => {
                let status = self.failure.take().unwrap_or_else(|| stop_status(event));
                (Stage::Stopping, vec![NotifyState::Stopping], status)
            }
            // A rolling restart that begins before all workers are up counts as a part of the startup.
            (Stage::Starting, _) => match service.up() {
                Some(workers) => (Stage::Ready, vec![NotifyState::Ready], format!("{workers} workers are up")),
                None => return Ok(None),
            },
            (Stage::Ready, Event::RollingRestartStarted { .. }) => {
                // systemd uses this time to recognize the response to its last SIGHUP.
                let now = NotifyState::monotonic_usec_now()?;
                (Stage::Reloading, vec![NotifyState::Reloading, now], event.to_string())
            }
            (
                Stage::Ready | Stage::Reloading,
                Event::UpgradeStarted | Event::UpgradeFinished | Event::UpgradeAborted { .. },
            ) => return self.notification_for_upgrade(event, service),
            (Stage::Reloading, Event::RollingRestartAborted { .. }) if service.is_rolling() => {
                self.aborted.get_or_insert_with(|| event.to_string());
                return Ok(None);
            }
            // The last pool of a rolling restart may also stop or end before its turn.
            (Stage::Reloading, _) if !service.is_rolling() && !self.is_upgrading => {
                let status = self.aborted.take().unwrap_or_else(|| event.to_string());
                (Stage::Ready, vec![NotifyState::Ready], status)
            }
            (stage, Event::Scaled { .. }) => (stage, Vec::new(), event.to_string()),
            _ => return Ok(None),
        };
        self.stage = stage;
        Ok(Some(Notification { states, status: Some(status) }))
    }

    /// Returns the notification for the beginning or the end of an upgrade. It is sent during a rolling restart as well,
    /// because systemd may wait for the response to its SIGUSR2.
    fn notification_for_upgrade(
        &mut self,
        event: &Event,
        service: &dyn ServiceView,
    ) -> io::Result<Option<Notification>> {
        let status = event.to_string();
        if matches!(event, Event::UpgradeStarted) {
            let now = NotifyState::monotonic_usec_now()?;
            self.is_upgrading = true;
            self.stage = Stage::Reloading;
            return Ok(Some(Notification { states: vec![NotifyState::Reloading, now], status: Some(status) }));
        }
        if self.stage != Stage::Reloading {
            return Ok(None);
        }
        self.is_upgrading = false;
        // The rolling restart that the upgrade has interrupted goes on.
        if matches!(event, Event::UpgradeAborted { .. }) && service.is_rolling() {
            self.aborted = Some(status);
            return Ok(None);
        }
        self.aborted = None;
        self.stage = Stage::Ready;
        Ok(Some(Notification { states: vec![NotifyState::Ready], status: Some(status) }))
    }

    /// Queues a notification. A notification that begins a rolling restart first removes the earlier rolling restarts
    /// from the queue, because the last rolling restart responds to all SIGHUPs before it. A notification with only a
    /// status replaces the status of the last notification in the queue. All other notifications stay, because systemd
    /// depends on each of them. For example, systemd considers a service failed if it stops without having been ready.
    fn enqueue(&mut self, notification: Notification) {
        if notification.begins_reload() {
            let before = self.unsent.iter().position(Notification::begins_reload).unwrap_or(self.unsent.len());
            self.unsent.truncate(before);
        }
        match self.unsent.back_mut().filter(|_| notification.states.is_empty()) {
            Some(last) => last.status = notification.status,
            None => self.unsent.push_back(notification),
        }
    }

    /// Sends the queued notifications, until none is left or the service manager's own queue is full.
    fn send_pending(&mut self, output: &mut Output) {
        while let Some(notification) = self.unsent.front() {
            if let Err(error) = self.send(notification) {
                self.log_once(&error, output);
                if error.kind() == ErrorKind::WouldBlock {
                    self.retry_at = Instant::now() + RETRY;
                    break;
                }
            }
            self.unsent.pop_front();
        }
    }

    fn send(&self, notification: &Notification) -> io::Result<()> {
        match &self.address {
            Some(address) => send(&notification.lines(), address),
            None => Err(io::Error::other("NOTIFY_SOCKET is not the address of a Unix socket")),
        }
    }

    /// Logs an error, unless an error of the same kind has already been logged.
    fn log_once(&mut self, error: &io::Error, output: &mut Output) {
        if !self.logged.contains(&error.kind()) {
            self.logged.push(error.kind());
            output.log(Level::Warn, &format_args!("the service manager cannot be notified: {error}"));
        }
    }
}

impl Observer for Systemd {
    fn handle_event(&mut self, event: &Event, service: &dyn ServiceView, output: &mut Output) {
        // systemd waits for both messages after its SIGUSR2, also if the upgrade was refused at once.
        if self.stage == Stage::Ready && matches!(event, Event::UpgradeAborted { .. }) {
            self.notify(&Event::UpgradeStarted, service, output);
        }
        self.notify(event, service, output);
    }

    /// Returns the time of the next attempt to send the unsent notifications. If there are none, returns the time of
    /// the next watchdog notification. A service that stops sends no watchdog notifications, because systemd then
    /// applies another timeout.
    fn next_deadline(&self) -> Option<Instant> {
        if !self.unsent.is_empty() {
            return Some(self.retry_at);
        }
        self.watchdog.as_ref().filter(|_| self.stage != Stage::Stopping).map(|watchdog| watchdog.next)
    }

    fn flush(&mut self, now: Instant, _: &dyn ServiceView, output: &mut Output) {
        if let (true, Some(watchdog)) = (self.unsent.is_empty(), &mut self.watchdog) {
            watchdog.next = now + watchdog.period;
            self.enqueue(Notification { states: vec![NotifyState::Watchdog], status: None });
        }
        self.send_pending(output);
    }
}

impl Notification {
    fn begins_reload(&self) -> bool {
        matches!(self.states[..], [NotifyState::Reloading, ..])
    }

    fn lines(&self) -> String {
        let status = self.status.as_deref().map(NotifyState::Status);
        self.states.iter().chain(&status).map(|state| format!("{state}\n")).collect()
    }
}

/// Sends one message. Opens a new socket for each message, so that no worker inherits a socket. Never blocks, because
/// the supervision must continue even if the service manager reads nothing. If the service manager's queue is full,
/// returns the error `WouldBlock`.
fn send(message: &str, address: &SocketAddr) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match socket.send_to_addr(message.as_bytes(), address) {
        Err(error) if is_queue_full(&error) => Err(io::Error::new(ErrorKind::WouldBlock, FULL)),
        sent => sent.map(drop),
    }
}

fn is_queue_full(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}

/// Parses the address of a Unix socket: an absolute path, or on Linux also `@` followed by an abstract name. Returns
/// `None` for other kinds of addresses, such as `vsock:2:1234`.
fn parse(address: &str) -> Option<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = address.strip_prefix('@') {
        return SocketAddr::from_abstract_name(name).ok();
    }
    address.starts_with('/').then(|| SocketAddr::from_pathname(address).ok()).flatten()
}

/// Returns the status of a service that stops.
fn stop_status(event: &Event) -> String {
    if event.pool().is_empty() { event.to_string() } else { "Stopping all pools".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::observer::State;
    use super::*;
    use crate::exit::Process;

    const ROLLING: Event = Event::RollingRestartStarted { pool: "" };
    const ROLLED: Event = Event::RollingRestartFinished { pool: "" };
    const STOPPING: Event = Event::Stopping { pool: "", workers: 2, quick: false, by: None };
    const READY: Event = Event::Ready { process: Process { pool: "", id: 0, generation: 0, pid: Some(71) } };

    /// Returns the state of a service that stops as soon as its pool does.
    fn state(is_up: bool) -> State {
        State { up: is_up.then_some(2), is_rolling: false, is_stopping: true }
    }

    fn without_address() -> Systemd {
        Systemd::new(None, None, Instant::now())
    }

    /// Returns the notifications for these events. The flag of each event is whether all workers are up at that time.
    fn notifications(systemd: &mut Systemd, events: &[(Event, bool)]) -> Vec<Notification> {
        let notification =
            |(event, is_up): &(Event, bool)| systemd.notification_for(event, &state(*is_up)).expect("the time");
        events.iter().filter_map(notification).collect()
    }

    /// Returns the first line of each notification.
    fn states(systemd: &mut Systemd, events: &[(Event, bool)]) -> Vec<String> {
        notifications(systemd, events).iter().map(first_line).collect()
    }

    fn first_line(message: &Notification) -> String {
        message.lines().lines().next().expect("a line").to_owned()
    }

    #[test]
    fn ready_is_sent_once_and_after_each_reload() {
        let mut systemd = without_address();
        let starting = [(READY, false), (ROLLING, false), (READY, true), (READY, true), (ROLLED, true)];
        assert_eq!(states(&mut systemd, &starting), ["READY=1"]);
        let aborted = Event::RollingRestartAborted { pool: "", id: 1 };
        let rolls = [(ROLLING, true), (ROLLED, false), (ROLLING, true), (aborted, true)];
        assert_eq!(states(&mut systemd, &rolls), ["RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]);
    }

    #[test]
    fn nothing_is_sent_after_stopping() {
        let mut systemd = without_address();
        let events = [(READY, true), (ROLLING, true), (STOPPING, true), (ROLLED, true), (STOPPING, true)];
        assert_eq!(states(&mut systemd, &events), ["READY=1", "RELOADING=1", "STOPPING=1"]);
        assert_eq!(states(&mut without_address(), &[(STOPPING, true), (READY, true)]), ["STOPPING=1"]);
    }

    #[test]
    fn the_last_status_is_the_failure() {
        let mut systemd = without_address();
        assert_eq!(
            states(&mut systemd, &[(READY, true), (Event::RestartLimitReached { pool: "", restarts: 3 }, true)]),
            ["READY=1"]
        );
        let message = systemd.notification_for(&STOPPING, &state(false)).expect("the time").expect("a message");
        assert_eq!(message.lines(), "STOPPING=1\nSTATUS=Too many child restarts (3), giving up\n");
    }

    #[test]
    fn a_rolling_restart_of_several_pools_is_one_reload() {
        let mut systemd = without_address();
        let mut notify = |event: Event, is_rolling| {
            let state = State { up: Some(4), is_rolling, is_stopping: false };
            systemd.notification_for(&event, &state).expect("the time").as_ref().map(Notification::lines)
        };
        assert_eq!(notify(READY, false).as_deref(), Some("READY=1\nSTATUS=4 workers are up\n"));
        assert!(notify(ROLLING, true).is_some_and(|lines| lines.starts_with("RELOADING=1\n")));
        assert_eq!(notify(Event::RollingRestartAborted { pool: "web", id: 1 }, true), None);
        assert_eq!(notify(Event::RollingRestartStarted { pool: "jobs" }, true), None);
        assert_eq!(notify(Event::RollingRestartFinished { pool: "jobs" }, true), None);
        let last = notify(Event::RollingRestartFinished { pool: "mail" }, false);
        let status = "web: Rolling restart aborted: the replacement of worker 1 failed";
        assert_eq!(last, Some(format!("READY=1\nSTATUS={status}\n")));
        assert!(notify(ROLLING, true).is_some_and(|lines| lines.starts_with("RELOADING=1\n")));
        let last = notify(Event::RollingRestartFinished { pool: "mail" }, false);
        assert_eq!(last.as_deref(), Some("READY=1\nSTATUS=mail: Rolling restart done\n"));
    }

    fn aborted() -> Event {
        Event::UpgradeAborted { reason: "no program".into() }
    }

    #[test]
    fn an_upgrade_with_its_rolling_restarts_is_one_reload() {
        let mut systemd = without_address();
        let failed = Event::RollingRestartAborted { pool: "", id: 1 };
        let trial = [(READY, true), (Event::UpgradeStarted, true), (READY, true), (aborted(), true)];
        assert_eq!(states(&mut systemd, &trial), ["READY=1", "RELOADING=1", "READY=1"]);
        assert_eq!(
            states(&mut systemd, &[(Event::UpgradeStarted, true), (aborted(), true)]),
            ["RELOADING=1", "READY=1"]
        );
        let adopting = || vec![(Event::Adopted { pool: "", processes: 2 }, false), (READY, true), (ROLLING, true)];
        let mut adopted = without_address().adopted();
        let events = adopting().into_iter().chain([(ROLLED, true), (READY, true), (Event::UpgradeFinished, true)]);
        let messages = notifications(&mut adopted, &events.collect::<Vec<_>>());
        let lines: Vec<_> = messages.iter().map(Notification::lines).collect();
        assert_eq!(lines, ["READY=1\nSTATUS=Upgrade done\n"]);
        let mut adopted = without_address().adopted();
        let events = adopting().into_iter().chain([(failed, true), (READY, true), (aborted(), true)]);
        let messages = notifications(&mut adopted, &events.collect::<Vec<_>>());
        let lines: Vec<_> = messages.iter().map(Notification::lines).collect();
        assert_eq!(lines, ["READY=1\nSTATUS=Upgrade aborted: no program\n"]);
        assert_eq!(states(&mut adopted, &[(ROLLING, true), (ROLLED, true)]), ["RELOADING=1", "READY=1"]);
        assert_eq!(states(&mut without_address().adopted(), &[(STOPPING, true)]), ["STOPPING=1"]);
    }

    #[test]
    fn a_rolling_restart_goes_on_after_an_aborted_upgrade() {
        let mut systemd = without_address();
        let mut notify = |event: Event, is_rolling| {
            let state = State { up: Some(4), is_rolling, is_stopping: false };
            systemd.notification_for(&event, &state).expect("the time").as_ref().map(Notification::lines)
        };
        assert!(notify(READY, false).is_some());
        assert!(notify(ROLLING, true).is_some_and(|lines| lines.starts_with("RELOADING=1\n")));
        let upgrading = notify(Event::UpgradeStarted, true).expect("a response to the second signal");
        assert!(upgrading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{upgrading}");
        assert_eq!(notify(READY, true), None);
        assert_eq!(notify(aborted(), true), None);
        let last = notify(ROLLED, false);
        assert_eq!(last.as_deref(), Some("READY=1\nSTATUS=Upgrade aborted: no program\n"));
    }

    #[test]
    fn the_watchdog_of_a_new_program_is_due_at_once() {
        let now = Instant::now();
        let systemd = Systemd::new(None, Some(Duration::from_secs(5)), now).adopted();
        assert_eq!(systemd.next_deadline(), Some(now));
    }

    #[test]
    fn the_stop_of_one_pool_is_no_stop_of_the_service() {
        let mut systemd = without_address();
        let mut notify = |event: Event, up, is_stopping| {
            let state = State { up, is_rolling: false, is_stopping };
            systemd.notification_for(&event, &state).expect("the time").as_ref().map(Notification::lines)
        };
        let stopping = |pool| Event::Stopping { pool, workers: 2, quick: false, by: None };
        assert_eq!(notify(Event::RestartLimitReached { pool: "jobs", restarts: 3 }, None, false), None);
        assert_eq!(notify(stopping("jobs"), Some(2), false).as_deref(), Some("READY=1\nSTATUS=2 workers are up\n"));
        assert!(notify(Event::RollingRestartStarted { pool: "web" }, None, false).is_some());
        assert!(notify(stopping("web"), None, false).is_some_and(|lines| lines.starts_with("READY=1\n")));
        assert_eq!(notify(stopping("mail"), None, true).as_deref(), Some("STOPPING=1\nSTATUS=Stopping all pools\n"));
    }

    #[test]
    fn watchdog_notifications_are_due_until_the_stop() {
        assert_eq!(without_address().next_deadline(), None);
        let now = Instant::now();
        let mut systemd = Systemd::new(None, Some(Duration::from_secs(5)), now);
        assert_eq!(systemd.next_deadline(), Some(now + Duration::from_secs(5)));
        assert_eq!(states(&mut systemd, &[(STOPPING, true)]), ["STOPPING=1"]);
        assert_eq!(systemd.next_deadline(), None);
    }

    #[test]
    fn in_the_queue_reloads_and_statuses_coalesce() {
        let mut systemd = without_address();
        let scaled = |workers| (Event::Scaled { pool: "", workers }, true);
        let roll = [(ROLLING, true), (ROLLED, true)];
        let aborted = [(ROLLING, true), (Event::RollingRestartAborted { pool: "", id: 1 }, true)];
        let mut events = vec![(READY, true), scaled(3), scaled(4)];
        events.extend(roll.into_iter().chain([scaled(5)]).chain(aborted).chain([(STOPPING, true)]));
        for message in notifications(&mut systemd, &events) {
            systemd.enqueue(message);
        }
        let unsent: Vec<_> = systemd.unsent.iter().map(first_line).collect();
        assert_eq!(unsent, ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]);
        assert_eq!(systemd.unsent[0].status.as_deref(), Some("Scaled to 4 workers"));
        assert_eq!(systemd.unsent[2].status, Some(Event::RollingRestartAborted { pool: "", id: 1 }.to_string()));
        assert!(systemd.next_deadline().is_some(), "unsent notifications are due during a stop as well");
    }

    #[test]
    fn each_kind_of_error_is_logged_once() {
        let mut systemd = without_address();
        let mut output = Output::flushed();
        systemd.handle_event(&READY, &state(true), &mut output);
        systemd.handle_event(&STOPPING, &state(false), &mut output);
        assert_eq!(systemd.logged, [ErrorKind::Other]);
        assert!(systemd.unsent.is_empty(), "without an address, a later attempt would fail as well");
        let full = io::Error::from(ErrorKind::WouldBlock);
        systemd.log_once(&full, &mut output);
        systemd.log_once(&full, &mut output);
        assert_eq!(systemd.logged, [ErrorKind::Other, ErrorKind::WouldBlock]);
    }

    #[test]
    fn a_full_queue_is_tried_again_and_loses_nothing() {
        let path = std::env::temp_dir().join(format!("taskfork-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let manager = UnixDatagram::bind(&path).expect("a socket");
        let period = Duration::from_secs(1000);
        let now = Instant::now();
        let mut systemd = Systemd::new(SocketAddr::from_pathname(&path).ok(), Some(period), now);
        let mut output = Output::flushed();
        let mut scales = 0;
        systemd.handle_event(&READY, &state(true), &mut output);
        while systemd.unsent.is_empty() {
            scales += 1;
            systemd.handle_event(&Event::Scaled { pool: "", workers: scales }, &state(false), &mut output);
        }
        let retry_at = systemd.next_deadline().expect("a retry");
        assert!(retry_at > Instant::now() && retry_at <= Instant::now() + RETRY);
        systemd.flush(retry_at, &State::default(), &mut output);
        assert_eq!(systemd.unsent.len(), 1, "no watchdog notification is queued while others are unsent");
        manager.set_nonblocking(true).expect("a socket");
        let mut lines = Vec::new();
        let mut receive = || {
            let mut message = [0; 256];
            while let Ok(len) = manager.recv(&mut message) {
                lines.push(String::from_utf8_lossy(&message[..len]).into_owned());
            }
            lines.len()
        };
        assert_eq!(receive(), scales);
        systemd.flush(retry_at, &State::default(), &mut output);
        assert_eq!(systemd.next_deadline(), Some(now + period));
        assert_eq!(receive(), scales + 1);
        assert_eq!(lines.last().map(String::as_str), Some(&*format!("STATUS=Scaled to {scales} workers\n")));
        std::fs::remove_file(&path).expect("the socket's file");
    }

    #[test]
    fn a_refused_upgrade_ends_the_reload_of_systemd() {
        let path = std::env::temp_dir().join(format!("taskfork-refused-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let manager = UnixDatagram::bind(&path).expect("a socket");
        manager.set_nonblocking(true).expect("a socket");
        let mut systemd = Systemd::new(SocketAddr::from_pathname(&path).ok(), None, Instant::now());
        let mut output = Output::flushed();
        for event in [READY, aborted()] {
            systemd.handle_event(&event, &State { up: Some(2), ..State::default() }, &mut output);
        }
        let mut message = [0; 256];
        let mut next = || manager.recv(&mut message).map(|len| String::from_utf8_lossy(&message[..len]).into_owned());
        assert!(next().expect("a message").starts_with("READY=1\n"));
        assert!(next().expect("a message").starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(next().expect("a message"), "READY=1\nSTATUS=Upgrade aborted: no program\n");
        next().expect_err("no more messages");
        std::fs::remove_file(&path).expect("the socket's file");
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
