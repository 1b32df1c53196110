//! The parent's loop: wait until the deadline, events in, actions out.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use log::{Level, log};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::backend::{Backend, Fork, Started};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::exit::{Exit, OutOfMemory, Process};
use crate::policy::{Action, Config, End, Message, Policy, Request};
use crate::sys::{CallError, OomCounter, POLLER, Signal, Signals};
use crate::worker;

/// Which of the processes this is, once the call returns.
#[derive(Debug)]
pub(crate) enum Role {
    Worker(usize),
    Parent(End),
}

/// Starts the workers and stays with them to the end; in each worker, returns at once. Whichever process it is, the last
/// thing before the return is that mask and dispositions are again what they were.
pub(crate) fn supervise(config: Config) -> Result<Role> {
    let backend = Fork::new()?;
    let mut signals = Signals::take()?;
    let role = Supervisor::new(config, backend, &mut signals)?.run()?;
    match role {
        Role::Worker(id) => worker::become_worker(id)?,
        // Asked again for what is done now: not the program's to answer, it would die of it.
        Role::Parent(End::Stopped) => while signals.next()?.is_some() {},
        Role::Parent(_) => {}
    }
    Ok(role)
}

struct Supervisor<'a> {
    policy: Policy,
    poll: Poll,
    events: Events,
    signals: &'a mut Signals,
    out_of_memory: OomCounter,
    backend: Fork,
}

impl<'a> Supervisor<'a> {
    fn new(config: Config, backend: Fork, signals: &'a mut Signals) -> Result<Supervisor<'a>> {
        let poll = Poll::new().map_err(|error| CallError::new(POLLER.create, error))?;
        poll.registry()
            .register(&mut SourceFd(&signals.as_fd().as_raw_fd()), Token(0), Interest::READABLE)
            .map_err(|error| CallError::new(POLLER.add, error))?;
        Ok(Supervisor {
            policy: Policy::new(config, seed(), Instant::now()),
            poll,
            events: Events::with_capacity(1),
            signals,
            out_of_memory: OomCounter::open(),
            backend,
        })
    }

    fn run(mut self) -> Result<Role> {
        loop {
            while let Some(action) = self.policy.poll_action() {
                if let Some(id) = self.carry_out(action) {
                    self.leave();
                    return Ok(Role::Worker(id));
                }
                self.take_events()?;
            }
            if let Some(end) = self.policy.poll_end() {
                return Ok(Role::Parent(end));
            }
            self.wait()?;
            self.take_events()?;
            self.meet_deadline();
        }
    }

    /// In the process that was started, and only there, returns its id.
    fn carry_out(&mut self, action: Action) -> Option<usize> {
        match action {
            Action::Tell(event) => tell(&event),
            Action::Send { process, message } => {
                if let Err(error) = self.backend.send(process, signal_for(message)) {
                    log!(Level::Warn, "{process}: {error}");
                }
            }
            Action::Start { id, generation } => match self.backend.start(id, generation) {
                Ok(Started::Here) => return Some(id),
                Ok(Started::Pid(pid)) => self.policy.handle_started(Instant::now(), Process { id, generation, pid }),
                Err(error) => self.policy.handle_start_failed(Instant::now(), id, generation, error),
            },
        }
        None
    }

    /// Signals before ends, and the signals once more after the last end was found: a ^C, which the terminal sends to the
    /// workers as well, is then among them, and nobody is restarted because of it.
    fn take_events(&mut self) -> Result<()> {
        let (mut requests, mut ended) = (Vec::new(), Vec::new());
        while self.take_signals(&mut requests)? {
            ended.append(&mut self.backend.reap()?);
        }
        let now = Instant::now();
        for request in requests {
            self.policy.handle_request(now, request);
        }
        for (process, exit) in ended {
            let out_of_memory = self.was_out_of_memory(exit);
            self.policy.handle_exited(now, process, exit, out_of_memory);
        }
        Ok(())
    }

    /// Whether a child has ended.
    fn take_signals(&mut self, requests: &mut Vec<Request>) -> Result<bool> {
        let mut child_ended = false;
        while let Some(signal) = self.signals.next()? {
            child_ended |= signal == Signal::Child;
            requests.extend(request_of(signal));
        }
        Ok(child_ended)
    }

    fn was_out_of_memory(&mut self, exit: Exit) -> OutOfMemory {
        if exit != Exit::Signal(9) {
            return OutOfMemory::No;
        }
        match self.out_of_memory.take() {
            Some(true) => OutOfMemory::Yes,
            Some(false) => OutOfMemory::No,
            None => OutOfMemory::Perhaps,
        }
    }

    fn wait(&mut self) -> Result<()> {
        let timeout = self.policy.next_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(CallError::new(POLLER.wait, error).into()),
            _ => Ok(()),
        }
    }

    fn meet_deadline(&mut self) {
        let now = Instant::now();
        if self.policy.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.policy.handle_timeout(now);
        }
    }

    /// In a worker: nothing of the supervisor stays open. No deregistering, that would be done to the parent's epoll.
    fn leave(self) {
        if !POLLER.is_inherited {
            std::mem::forget(self.poll);
        }
    }
}

/// For the jitter of delays, so that services which were started together do not stay in step. Not from the thread's
/// generator: that one is the program's, and untouched until a worker reseeds it.
fn seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(std::process::id()) << 32 | u64::from(since.subsec_nanos())
}

fn request_of(signal: Signal) -> Option<Request> {
    match signal {
        Signal::Terminate | Signal::Interrupt => Some(Request::Stop),
        Signal::Quit => Some(Request::QuickStop),
        Signal::Hangup => Some(Request::Roll),
        Signal::TerminalInput => Some(Request::More),
        Signal::TerminalOutput => Some(Request::Fewer),
        Signal::User1 => Some(Request::Reopen),
        Signal::Child | Signal::Abort | Signal::Kill => None,
    }
}

fn signal_for(message: Message) -> Signal {
    match message {
        Message::Stop => Signal::Terminate,
        Message::QuickStop => Signal::Quit,
        Message::Abort => Signal::Abort,
        Message::Kill => Signal::Kill,
        Message::Reopen => Signal::User1,
    }
}

/// All the log lines.
fn tell(event: &Event) {
    let level = match event {
        Event::Exited { restarting: true, .. } => return,
        Event::Started { .. } | Event::Ready { .. } => Level::Debug,
        Event::Exited { exit, asked, .. } if *asked || exit.is_success() => Level::Info,
        Event::Starting { .. } | Event::Scaled { .. } | Event::Reloading | Event::Reloaded | Event::Stopping { .. } => {
            Level::Info
        }
        Event::Exited { .. }
        | Event::Restarting { .. }
        | Event::StartFailed { .. }
        | Event::Hung { .. }
        | Event::Late { .. }
        | Event::Killing { .. } => Level::Warn,
        Event::ReloadAborted { .. } | Event::GaveUp { .. } => Level::Error,
    };
    log!(target: "taskfork", level, "{event}");
}

impl End {
    /// Whether it ended as it should.
    pub fn into_result(self) -> Result<()> {
        match self {
            End::Finished { .. } | End::Stopped => Ok(()),
            End::GaveUp { process, exit, restarts } => Err(Error::gave_up(process, exit, restarts)),
            End::StartupFailed { process, exit } => Err(Error::startup_failed(process, exit)),
            End::Refused(error) => Err(error),
        }
    }
}
