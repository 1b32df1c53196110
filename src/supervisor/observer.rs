//! The observers. Each one receives every event of the service: first the log, then systemd, then the program's
//! `on_event` closure. The observer with the program's `on_interval` closure waits only for its own deadline.

use std::time::{Duration, Instant};
use std::{fmt, mem};

use ::log::Level;

use super::log::{Log, write};
#[cfg(unix)]
use super::systemd::Systemd;
use crate::event::Event;
use crate::failure;
use crate::handle::Handle;
use crate::status::Status;
#[cfg(unix)]
use crate::sys;

/// The closure that the program passes to [`Prefork::on_event`](crate::Prefork::on_event).
pub(crate) type OnEvent = Box<dyn FnMut(&Event, &Handle)>;

/// What the program passes to [`Prefork::on_interval`](crate::Prefork::on_interval).
pub(crate) struct OnInterval {
    pub period: Duration,
    pub call: StatusCallback,
}

type StatusCallback = Box<dyn FnMut(&Status, &Handle)>;

/// The service at the time of an event, as the observers see it.
#[cfg_attr(not(unix), allow(dead_code, reason = "only the notification of systemd needs it"))]
pub(super) trait ServiceView {
    /// Returns the number of workers if all of them are up, and `None` otherwise. Counting takes time, so only the
    /// observers that need the number call this method.
    fn up(&self) -> Option<usize>;

    /// Returns whether a rolling restart of the whole service is in progress, or pools are left in it.
    fn is_rolling(&self) -> bool;

    /// Returns whether the whole service stops.
    fn is_stopping(&self) -> bool;

    /// Returns the status of the service. Creating it takes time, so it is created only for the program.
    fn status(&self) -> Status;
}

/// A receiver of the events of the service.
pub(super) trait Observer {
    fn handle_event(&mut self, event: &Event, service: &dyn ServiceView, output: &mut Output);

    /// Returns the time at which to call [`Observer::flush`] if no event happens earlier.
    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// Returns whether [`Observer::flush`] reads the status of the service.
    fn reads_status(&self) -> bool {
        false
    }

    /// Does the work that is due at `now`.
    fn flush(&mut self, _now: Instant, _service: &dyn ServiceView, _output: &mut Output) {}
}

/// All observers, in the order in which they receive an event.
pub(super) struct Observers {
    list: Vec<Box<dyn Observer>>,
    output: Output,
}

impl Observers {
    pub fn new(
        #[cfg(unix)] systemd: Option<Systemd>,
        callback: Option<Callback>,
        interval: Option<Interval>,
    ) -> Observers {
        let mut list: Vec<Box<dyn Observer>> = vec![Box::new(Log)];
        #[cfg(unix)]
        list.extend(systemd.map(|systemd| Box::new(systemd) as Box<dyn Observer>));
        list.extend(callback.map(|callback| Box::new(callback) as Box<dyn Observer>));
        list.extend(interval.map(|interval| Box::new(interval) as Box<dyn Observer>));
        Observers { list, output: Output { is_unflushed: true } }
    }

    pub fn emit(&mut self, event: &Event, service: &dyn ServiceView) {
        for observer in &mut self.list {
            observer.handle_event(event, service, &mut self.output);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.list.iter().filter_map(|observer| observer.next_deadline()).min()
    }

    /// Returns whether the next call of [`Observers::flush`] reads the status of the service.
    pub fn is_status_due(&self) -> bool {
        let mut readers = self.list.iter().filter(|observer| observer.reads_status());
        readers.any(|observer| observer.next_deadline().is_some_and(|deadline| deadline <= Instant::now()))
    }

    /// Flushes the observers that are due.
    pub fn flush(&mut self, service: &dyn ServiceView) {
        for observer in &mut self.list {
            let Some(deadline) = observer.next_deadline() else { continue };
            let now = Instant::now();
            if deadline <= now {
                observer.flush(now, service, &mut self.output);
            }
        }
    }

    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }
}

/// The parent's log, and a flag: whether this process may have buffered output since the last flush.
#[derive(Debug)]
pub(super) struct Output {
    is_unflushed: bool,
}

impl Output {
    /// Logs a line.
    pub fn log(&mut self, level: Level, line: &dyn fmt::Display) {
        if failure::is_logged(level) {
            write(level, line);
            self.is_unflushed = true;
        }
    }

    /// Records that code of the program has run and may have buffered output.
    pub fn note_write(&mut self) {
        self.is_unflushed = true;
    }

    /// Writes what the logger, std and the C library have buffered, if something may have been buffered since the last
    /// call. The logger comes first, because it may write to the buffers of the others.
    pub fn flush(&mut self) {
        if self.take_unflushed() {
            ::log::logger().flush();
            #[cfg(unix)]
            sys::flush_output();
        }
    }

    /// Returns whether output may have been buffered since the last call.
    fn take_unflushed(&mut self) -> bool {
        mem::take(&mut self.is_unflushed)
    }
}

#[cfg(test)]
impl Output {
    pub fn flushed() -> Output {
        Output { is_unflushed: false }
    }
}

/// The observer that calls the program's `on_event` closure.
pub(super) struct Callback {
    pub on_event: OnEvent,
    pub handle: Handle,
}

impl Observer for Callback {
    fn handle_event(&mut self, event: &Event, service: &dyn ServiceView, output: &mut Output) {
        self.handle.with_status(&|| service.status(), || (self.on_event)(event, &self.handle));
        output.note_write();
    }
}

/// The observer that calls the program's `on_interval` closure.
pub(super) struct Interval {
    period: Duration,
    call: StatusCallback,
    handle: Handle,
    next: Instant,
}

impl Interval {
    /// Creates the observer of a service that starts `now`. The first call of the closure follows one period later.
    pub fn new(on_interval: OnInterval, handle: Handle, now: Instant) -> Interval {
        let OnInterval { period, call } = on_interval;
        Interval { period, call, handle, next: now + period }
    }
}

impl Observer for Interval {
    fn handle_event(&mut self, _: &Event, _: &dyn ServiceView, _: &mut Output) {}

    fn next_deadline(&self) -> Option<Instant> {
        Some(self.next)
    }

    fn reads_status(&self) -> bool {
        true
    }

    fn flush(&mut self, _: Instant, service: &dyn ServiceView, output: &mut Output) {
        let status = service.status();
        self.handle.with_status(&|| service.status(), || (self.call)(&status, &self.handle));
        output.note_write();
        // The calls are a period apart. If the parent or the closure takes longer than a period, the next call follows
        // a whole period later, so that the parent has time for other work.
        let now = Instant::now();
        self.next += self.period;
        if self.next <= now {
            self.next = now + self.period;
        }
    }
}

#[cfg_attr(not(unix), allow(dead_code, reason = "only the notification of systemd needs it"))]
#[cfg(test)]
#[derive(Clone, Copy, Default)]
pub(super) struct State {
    pub up: Option<usize>,
    pub is_rolling: bool,
    pub is_stopping: bool,
}

#[cfg(test)]
impl ServiceView for State {
    fn up(&self) -> Option<usize> {
        self.up
    }

    fn is_rolling(&self) -> bool {
        self.is_rolling
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    fn status(&self) -> Status {
        Status {
            name: None,
            pid: 71,
            started_at: std::time::UNIX_EPOCH,
            age: Duration::ZERO,
            state: crate::status::ServiceState::Running,
            last_upgrade: None,
            pools: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;

    use super::*;
    use crate::handle::HandleReceiver;

    const EVENT: Event = Event::RollingRestartStarted { pool: "" };

    fn observers(list: Vec<Box<dyn Observer>>) -> Observers {
        Observers { list, output: Output::flushed() }
    }

    struct Alarm {
        at: Option<Instant>,
        flushed: Rc<RefCell<Vec<Instant>>>,
    }

    impl Observer for Alarm {
        fn handle_event(&mut self, _: &Event, _: &dyn ServiceView, _: &mut Output) {}

        fn next_deadline(&self) -> Option<Instant> {
            self.at
        }

        fn flush(&mut self, _: Instant, _: &dyn ServiceView, _: &mut Output) {
            self.flushed.borrow_mut().extend(self.at.take());
        }
    }

    #[test]
    fn output_needs_a_flush_after_on_event_only() {
        let mut output = Observers::new(
            #[cfg(unix)]
            None,
            None,
            None,
        )
        .output;
        assert!(output.take_unflushed(), "the program may have buffered output before the call");
        assert!(!output.take_unflushed());
        let mut without = observers(vec![Box::new(Log)]);
        without.emit(
            &Event::Started { process: crate::exit::Process { pool: "", id: 0, generation: 0, pid: None } },
            &State::default(),
        );
        assert!(!without.output().take_unflushed());
        let (_receiver, waker) = crate::sys::doorbell().expect("a doorbell");
        let handle = HandleReceiver::new(Arc::new(waker), vec![""]).handle();
        let mut with = observers(vec![Box::new(Callback { on_event: Box::new(|_, _| {}), handle })]);
        with.emit(&EVENT, &State::default());
        assert!(with.output().take_unflushed());
    }

    fn handle() -> Handle {
        let (_receiver, waker) = crate::sys::doorbell().expect("a doorbell");
        HandleReceiver::new(Arc::new(waker), vec![""]).handle()
    }

    fn interval(period: Duration, now: Instant, call: impl FnMut(&Status, &Handle) + 'static) -> Interval {
        Interval::new(OnInterval { period, call: Box::new(call) }, handle(), now)
    }

    #[test]
    fn on_interval_is_called_one_period_after_the_start() {
        let calls = Rc::new(RefCell::new(0));
        let counter = Rc::clone(&calls);
        let period = Duration::from_secs(1000);
        let start = Instant::now();
        let count = move |status: &Status, handle: &Handle| {
            assert_eq!(status.pid(), 71);
            assert_eq!(handle.status().map(|status| status.pid()), Some(71));
            *counter.borrow_mut() += 1;
        };
        let mut later = observers(vec![Box::new(interval(period, start, count.clone()))]);
        later.emit(&EVENT, &State::default());
        later.flush(&State::default());
        assert_eq!((later.next_deadline(), later.is_status_due()), (Some(start + period), false));
        assert_eq!(*calls.borrow(), 0, "events and other deadlines do not count");
        let mut due = observers(vec![Box::new(interval(Duration::ZERO, start, count))]);
        assert!(due.is_status_due());
        due.flush(&State::default());
        assert_eq!(*calls.borrow(), 1);
        assert!(due.output().take_unflushed(), "the program may have buffered output");
    }

    #[test]
    fn missed_calls_of_on_interval_are_left_out() {
        let period = Duration::from_secs(1000);
        let start = Instant::now();
        let mut output = Output::flushed();
        let mut in_time = interval(period, start, |_, _| {});
        in_time.flush(start, &State::default(), &mut output);
        assert_eq!(in_time.next_deadline(), Some(start + 2 * period), "a late call does not shift the next one");
        let mut late = interval(period, start, |_, _| {});
        let begun = start.checked_sub(3 * period);
        // The clock may have started less than 3,000 s ago.
        late.next = begun.unwrap_or(start);
        late.flush(start, &State::default(), &mut output);
        let next = late.next_deadline().expect("a deadline");
        assert!(next >= start + period && next <= Instant::now() + period, "{next:?}");
    }

    #[test]
    fn observers_are_flushed_at_their_deadlines() {
        let flushed = Rc::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(1000);
        let alarm = |at| Box::new(Alarm { at, flushed: Rc::clone(&flushed) }) as Box<dyn Observer>;
        let mut observers = observers(vec![alarm(None), alarm(Some(later)), alarm(Some(now))]);
        assert_eq!(observers.next_deadline(), Some(now));
        observers.flush(&State::default());
        assert_eq!(*flushed.borrow(), [now]);
        assert_eq!(observers.next_deadline(), Some(later));
    }
}
