//! The parent's loop: wait until the deadline, events in, actions out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use std::{fmt, io, mem};

use log::{Level, log};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::backend::{Backend, Fork, Started};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::exit::{Exit, OutOfMemory, Process};
use crate::policy::{Action, Config, End, Message, Policy, Request};
use crate::sys::{self, Arrived, CallError, OomCounter, POLLER, Signal, Signals};
use crate::worker;

/// Which of the processes this is, once the call returns.
pub(crate) enum Role {
    Worker(usize),
    Parent(Box<Ended>),
}

/// In the parent, when all is over: the signals are still held.
pub(crate) struct Ended {
    end: End,
    descriptors: Descriptors,
}

/// Starts the workers and stays with them to the end; in each worker, returns at once, and the last thing before is that
/// mask and dispositions are again what they were.
pub(crate) fn supervise(config: Config) -> Result<Role> {
    let backend = Fork::new()?;
    worker::prepare()?;
    let mut descriptors = Descriptors::open()?;
    let mut supervisor = Supervisor::new(config, backend, &mut descriptors);
    match supervisor.run() {
        Err(error) => {
            drop(supervisor);
            Err(descriptors.close(error))
        }
        Ok(Turn::End(end)) => {
            drop(supervisor);
            Ok(Role::Parent(Box::new(Ended { end, descriptors })))
        }
        Ok(Turn::Worker(id)) => {
            // In a worker it is the parent's memory. To free it would be to copy it first.
            mem::forget(supervisor);
            worker::become_worker(id)?;
            if !POLLER.is_inherited {
                mem::forget(descriptors.poll);
            }
            Ok(Role::Worker(id))
        }
    }
}

impl Ended {
    /// Exits if it ended as it should, and returns if it did not. The exit is with the signals still held: one more request
    /// to stop, or any other, is not to take the place of this status.
    pub fn exit(self) -> Result<Infallible> {
        let error = match self.end {
            End::Finished { .. } | End::Stopped => std::process::exit(0),
            End::GaveUp { process, exit, restarts } => Error::gave_up(process, exit, restarts),
            End::StartupFailed { process, exit } => Error::startup_failed(process, exit),
            End::Refused(error) => error,
        };
        Err(self.descriptors.close(error))
    }
}

/// All that the parent has open, and a worker closes and does nothing else to: to take the signals out of the epoll would be
/// to take them out of the parent's. The signals are last, so that the mask is put back when all is done.
struct Descriptors {
    poll: Poll,
    /// Opened once the first workers are on their way, which takes longer than to start some of them.
    out_of_memory: Option<OomCounter>,
    signals: Signals,
}

impl Descriptors {
    fn open() -> Result<Descriptors> {
        let signals = Signals::take()?;
        let poll = Poll::new().map_err(|error| CallError::new(POLLER.create, error))?;
        poll.registry()
            .register(&mut SourceFd(&signals.as_fd().as_raw_fd()), Token(0), Interest::READABLE)
            .map_err(|error| CallError::new(POLLER.add, error))?;
        Ok(Descriptors { poll, out_of_memory: None, signals })
    }

    /// In the parent. What went wrong before counts, not what goes wrong here.
    fn close(self, error: Error) -> Error {
        let _ = self.signals.end();
        error
    }
}

/// Why the loop was left.
enum Turn {
    /// Only in the process that has just been started.
    Worker(usize),
    End(End),
}

struct Supervisor<'a> {
    policy: Policy,
    backend: Fork,
    descriptors: &'a mut Descriptors,
    events: Events,
    /// Reaped, and not yet answered.
    ended: VecDeque<(Process, Exit)>,
    /// A child has ended, so that others may have with it.
    child_ended: bool,
    /// Something was logged, so that something may be buffered.
    unflushed: bool,
}

impl<'a> Supervisor<'a> {
    /// In a box, and made in a frame that is gone at the first fork: each page of the stack that is in use between two forks
    /// is copied for every worker.
    #[inline(never)]
    fn new(config: Config, backend: Fork, descriptors: &'a mut Descriptors) -> Box<Supervisor<'a>> {
        Box::new(Supervisor {
            policy: Policy::new(config, seed(), Instant::now()),
            backend,
            descriptors,
            events: Events::with_capacity(1),
            ended: VecDeque::new(),
            child_ended: false,
            unflushed: true,
        })
    }

    /// Every request counts before any end, and each end is answered before the next one is looked at. A ^C, which the
    /// terminal sends to the workers as well, is then taken before they are missed, and nobody is restarted because of it.
    fn run(&mut self) -> Result<Turn> {
        loop {
            while let Some(action) = self.policy.poll_action() {
                if let Some(id) = self.carry_out(action) {
                    return Ok(Turn::Worker(id));
                }
                self.take_signals()?;
            }
            if let Some((process, exit)) = self.ended.pop_front() {
                self.lose(process, exit);
            } else if mem::take(&mut self.child_ended) {
                self.ended.extend(self.backend.reap_all()?);
                self.take_signals()?;
            } else if let Some(end) = self.policy.poll_end() {
                return Ok(Turn::End(end));
            } else {
                self.sleep()?;
            }
        }
    }

    /// Until the deadline, if there is one, or a signal.
    fn sleep(&mut self) -> Result<()> {
        let deadline = self.policy.next_deadline();
        self.wait(deadline)?;
        self.take_signals()?;
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.policy.handle_timeout(now);
        }
        Ok(())
    }

    /// In the process that was started, and only there, returns its id.
    fn carry_out(&mut self, action: Action) -> Option<usize> {
        match action {
            Action::Tell(event) => self.tell(&event),
            Action::Send { process, message } => {
                if let Err(error) = self.backend.send(process, signal_for(message)) {
                    self.log(Level::Warn, &format_args!("{process}: {error}"));
                }
            }
            Action::Start { id, generation } => return self.start(id, generation),
        }
        None
    }

    fn start(&mut self, id: usize, generation: u32) -> Option<usize> {
        if mem::take(&mut self.unflushed) {
            sys::flush_output();
        }
        match self.backend.start(id, generation) {
            Ok(Started::Here) => return Some(id),
            Ok(Started::Pid(pid)) => {
                let process = Process { id, generation, pid };
                self.policy.handle_started(Instant::now(), process);
                self.tell(&Event::Started { process });
            }
            Err(error) => self.policy.handle_start_failed(Instant::now(), id, error),
        }
        None
    }

    /// With each SIGCHLD, the child that it names is reaped. Others may have ended with it, but to look for them takes time,
    /// and the first one may be replaced before.
    fn take_signals(&mut self) -> Result<()> {
        while let Some(Arrived { signal, sender }) = self.descriptors.signals.next()? {
            if let Some(request) = request_of(signal) {
                self.policy.handle_request(Instant::now(), request);
            }
            if signal == Signal::Child {
                self.child_ended = true;
                self.ended.extend(sender.map(|pid| self.backend.reap_one(pid)).transpose()?.flatten());
            }
        }
        Ok(())
    }

    fn lose(&mut self, process: Process, exit: Exit) {
        let out_of_memory = match self.policy.has_killed(process) {
            true => OutOfMemory::No,
            false => self.was_out_of_memory(exit),
        };
        self.policy.handle_exited(Instant::now(), process, exit, out_of_memory);
    }

    fn was_out_of_memory(&mut self, exit: Exit) -> OutOfMemory {
        if exit != Exit::Signal(9) {
            return OutOfMemory::No;
        }
        let told = match &mut self.descriptors.out_of_memory {
            Some(counter) => counter.take(),
            // Its value from before the start is not known; but if there never was such a kill, this was none.
            None => self.descriptors.out_of_memory.insert(OomCounter::open()).is_zero().then_some(false),
        };
        match told {
            Some(true) => OutOfMemory::Yes,
            Some(false) => OutOfMemory::No,
            None => OutOfMemory::Perhaps,
        }
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Result<()> {
        self.descriptors.out_of_memory.get_or_insert_with(OomCounter::open);
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match self.descriptors.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(CallError::new(POLLER.wait, error).into()),
            _ => Ok(()),
        }
    }

    fn tell(&mut self, event: &Event) {
        if let Some(level) = level_of(event) {
            self.log(level, event);
        }
    }

    fn log(&mut self, level: Level, line: &dyn fmt::Display) {
        if level <= log::max_level() {
            log!(target: "taskfork", level, "{line}");
            self.unflushed = true;
        }
    }
}

/// For the jitter of delays, so that services which were started together do not stay in step.
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

/// Where a line stands in the log, if it has one.
fn level_of(event: &Event) -> Option<Level> {
    match event {
        Event::Exited { restarting: true, .. } => None,
        Event::Exited { exit, asked, .. } if *asked || exit.is_success() => Some(Level::Info),
        Event::Started { .. } | Event::Ready { .. } => Some(Level::Debug),
        Event::Starting { .. } | Event::Scaled { .. } | Event::Reloading | Event::Reloaded | Event::Stopping { .. } => {
            Some(Level::Info)
        }
        Event::Exited { .. }
        | Event::Restarting { .. }
        | Event::StartFailed { .. }
        | Event::Hung { .. }
        | Event::Late { .. }
        | Event::Killing { .. } => Some(Level::Warn),
        Event::ReloadAborted { .. } | Event::GaveUp { .. } => Some(Level::Error),
    }
}
