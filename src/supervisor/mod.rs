//! The parent's loop: wait until the deadline, events in, actions out.

mod descriptors;
mod finish;
mod log;
mod observer;
mod poller;
#[cfg(unix)]
mod systemd;

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::log::Level;

use self::log::write;
#[cfg(unix)]
use crate::backend::Fork;
use crate::backend::{ChildExit, ExitCause, Launcher, Spawn, StartRequest, Started, Thread, Work};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::exit::{Exit, OutOfMemory, Process};
use crate::listener::{Listeners, Sockets};
use crate::policy::{Action, Config, Outcome, Policy, Request, WorkerSignal};
use crate::scoreboard::{Scoreboard, WorkerMessage};
use crate::setup::WorkerSetup;
use crate::sys::{self, Signal, SignalInfo, SupervisorLock, WorkerKind};
use crate::worker::{self, Worker};
use descriptors::Descriptors;
pub(crate) use finish::{Finished, run_and_exit};
use observer::Observers;
pub(crate) use observer::OnEvent;
use poller::Waited;
#[cfg(unix)]
pub(crate) use systemd::Systemd;

/// Less than can be waited for.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// A look that took long because this process was stopped says nothing about the next.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Which of the processes this is, once the call returns.
pub(crate) enum Supervised {
    Worker(Worker),
    Parent(Box<Finished>),
}

/// What not everybody asks for.
pub(crate) struct SupervisorParts {
    /// Workers can tell the parent something.
    pub with_scoreboard: bool,
    pub lock: SupervisorLock,
    pub kind: WorkerKind,
    /// Present for threads only.
    pub work: Option<Work>,
    pub on_event: Option<OnEvent>,
    pub sockets: Sockets,
    pub setup: Option<WorkerSetup>,
    #[cfg(unix)]
    pub systemd: Option<Systemd>,
}

/// Starts the workers and stays with them to the end; in each worker, returns at once, and the last thing before is that
/// mask and dispositions are again what they were.
pub(crate) fn supervise(config: Config, parts: SupervisorParts) -> Result<Supervised> {
    let SupervisorParts { with_scoreboard, lock, kind, work, on_event, sockets, setup, .. } = parts;
    let (launcher, mut descriptors): (Box<dyn Launcher>, _) = match (kind, work) {
        #[cfg(unix)]
        (WorkerKind::Fork, _) => {
            let fork = Fork::new(setup)?;
            worker::prepare()?;
            (Box::new(fork), Descriptors::open(lock, kind)?)
        }
        (WorkerKind::Thread, Some(work)) => (Box::new(Thread::new(work, setup)), Descriptors::open(lock, kind)?),
        (WorkerKind::Spawn | WorkerKind::Thread, _) => {
            let descriptors = Descriptors::open(lock, kind)?;
            match Spawn::new(descriptors.exit_notifier(), setup) {
                Ok(spawn) => (Box::new(spawn), descriptors),
                Err(error) => return Err(descriptors.close_after(error)),
            }
        }
    };
    let scoreboard = with_scoreboard.then(|| descriptors.open_scoreboard(config.workers, kind)).transpose()?;
    let observers = Observers::new(
        #[cfg(unix)]
        parts.systemd,
        on_event,
    );
    let mut supervisor = Supervisor::new(config, launcher, scoreboard, observers, sockets, &mut descriptors);
    match supervisor.run() {
        Err(error) => {
            drop(supervisor);
            Err(descriptors.close_after(error))
        }
        Ok(LoopExit::Finished(end)) => {
            let (workers, stale) = (supervisor.policy.reports(), mem::take(&mut supervisor.stale));
            drop(supervisor);
            Ok(Supervised::Parent(Box::new(Finished { end, workers, stale, descriptors })))
        }
        Ok(LoopExit::Child(worker)) => {
            // In a worker it is the parent's memory. To free it would be to copy it first.
            mem::forget(supervisor);
            let worker = enter_worker(worker);
            descriptors.release_in_child();
            Ok(Supervised::Worker(worker))
        }
    }
}

/// What a process does first when it is a worker. An error is no business of the program's: it belongs to the parent's side.
#[inline]
pub(crate) fn enter_worker(worker: Worker) -> Worker {
    if let Err(error) = worker::become_worker(worker.id()) {
        write(Level::Error, &format_args!("{error:?}"));
        ::log::logger().flush();
        sys::exit_now(1);
    }
    worker
}

/// Why the loop was left.
enum LoopExit {
    /// Only in the process that has just been started.
    Child(Worker),
    Finished(Outcome),
}

struct Supervisor<'a> {
    policy: Policy,
    backend: Box<dyn Launcher>,
    scoreboard: Option<Scoreboard>,
    observers: Observers,
    sockets: Sockets,
    descriptors: &'a mut Descriptors,
    /// Reaped, and not yet answered.
    ended: VecDeque<ChildExit>,
    /// Who counts as ended, and has not.
    stale: Vec<Process>,
    /// A child has ended, so that others may have with it.
    child_ended: bool,
    /// Not before then are all children looked at.
    look_at_all: Instant,
}

impl<'a> Supervisor<'a> {
    /// In a box, and made in a frame that is gone at the first fork: each page of the stack that is in use between two forks
    /// is copied for every worker.
    #[inline(never)]
    fn new(
        config: Config,
        backend: Box<dyn Launcher>,
        scoreboard: Option<Scoreboard>,
        observers: Observers,
        sockets: Sockets,
        descriptors: &'a mut Descriptors,
    ) -> Box<Supervisor<'a>> {
        Box::new(Supervisor {
            policy: Policy::new(config, seed(), Instant::now()),
            backend,
            scoreboard,
            observers,
            sockets,
            descriptors,
            ended: VecDeque::new(),
            stale: Vec::new(),
            child_ended: false,
            look_at_all: Instant::now(),
        })
    }

    /// Every request counts before any end, and each end is answered before the next one is looked at. A ^C, which the
    /// terminal sends to the workers as well, is then taken before they are missed, and nobody is restarted because of it.
    fn run(&mut self) -> Result<LoopExit> {
        self.emit_listening();
        loop {
            self.observers.flush();
            while let Some(action) = self.policy.poll_action() {
                if let Some(worker) = self.execute(action) {
                    return Ok(LoopExit::Child(worker));
                }
                self.take_signals()?;
                self.observers.flush();
            }
            self.update_steering();
            if let Some(exit) = self.ended.pop_front() {
                self.handle_exit(exit);
            } else if self.child_ended && self.look_at_all <= Instant::now() {
                self.reap_all()?;
                self.take_signals()?;
            } else if let Some(end) = self.policy.poll_end() {
                return Ok(LoopExit::Finished(end));
            } else {
                self.wait_for_events()?;
            }
        }
    }

    /// Until the deadline, if there is one, a signal, the doorbell, or when something is to be said to the service manager.
    /// What has happened counts before what was not done in time: nobody is late who has ended, or has said that he is ready.
    fn wait_for_events(&mut self) -> Result<()> {
        let deadline = self.policy.next_deadline();
        let others =
            [self.observers.next_deadline(), self.child_ended.then_some(self.look_at_all), self.backend.next_look()];
        let wake_at = deadline.into_iter().chain(others.into_iter().flatten()).min();
        let left = wake_at.map(|wake_at| wake_at.saturating_duration_since(Instant::now()));
        let waited = self.descriptors.wait(left)?;
        let is_explained = self.take_signals()? && self.descriptors.signals_interrupt();
        let now = Instant::now();
        if waited == Waited::Interrupted && !is_explained {
            self.policy.handle_interruption(now);
        }
        let is_due = deadline.is_some_and(|deadline| deadline <= now);
        self.read_messages(is_due)?;
        if is_due {
            self.look_at_all = now;
        }
        if is_due || self.backend.next_look().is_some_and(|at| at <= now) {
            self.ended.extend(self.backend.reap_missed()?);
        }
        if !is_due || self.child_ended || !self.ended.is_empty() {
            return Ok(());
        }
        for id in self.policy.draining(now) {
            if !self.sockets.is_left_out(id) {
                self.sockets.retry();
            } else if !self.sockets.has_waiting(id) {
                continue;
            }
            self.policy.handle_work_left(now, id);
        }
        for Process { id, generation, .. } in self.scoreboard.iter().flat_map(Scoreboard::beats) {
            self.policy.handle_beat(now, id, generation);
        }
        self.policy.handle_timeout(now);
        Ok(())
    }

    /// The system goes through all children until it finds one that has ended. Where that takes long, because they are
    /// thousands, it is not done again for each that ends, but for a tenth of the time. (Who ends alone is reaped at once.)
    fn reap_all(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.child_ended = false;
        let before = self.ended.len();
        self.ended.extend(self.backend.reap_all()?);
        let now = Instant::now();
        let looks = (self.ended.len() - before + 1) as u32;
        let pause = ((now - begun) / looks * 10).min(LONGEST_PAUSE);
        let is_short = pause < SHORTEST_PAUSE || self.backend.ends_ring();
        self.look_at_all = if is_short { now } else { now + pause };
        Ok(())
    }

    /// In the process that was started, and only there, returns it as a worker.
    fn execute(&mut self, action: Action) -> Option<Worker> {
        match action {
            Action::Emit(event) => self.emit(&event),
            Action::Send { process, message } => {
                if let Err(error) = self.backend.send(process, signal_for(message)) {
                    self.observers.output().log(Level::Warn, &format_args!("{process}: {error:?}"));
                }
            }
            Action::Start { id, generation } => return self.start(id, generation),
        }
        None
    }

    fn start(&mut self, id: usize, generation: u32) -> Option<Worker> {
        if self.observers.output().take_unflushed() {
            self.backend.flush();
        }
        // Once, and before: what the worker would read of the parent's memory, it would have to find first.
        let count = self.policy.wanted();
        match self.try_start(id, generation, count) {
            Ok((slot, listeners, Started::Child)) => {
                self.sockets.release_in_child();
                let status = self.scoreboard.as_ref().zip(slot).map(|(scoreboard, slot)| scoreboard.writer(slot));
                return Some(Worker::new(id, generation, count, status, listeners));
            }
            Ok((slot, _, Started::Parent(pid))) => {
                let process = Process { id, generation, pid };
                if let Some((scoreboard, slot)) = self.scoreboard.as_mut().zip(slot) {
                    scoreboard.assign(slot, process);
                }
                self.policy.handle_started(Instant::now(), process);
                self.emit(&Event::Started { process });
            }
            Err(error) => self.policy.handle_start_failed(Instant::now(), id, error),
        }
        None
    }

    /// In place: each frame that is in use at a fork is copied.
    #[inline]
    fn try_start(&mut self, id: usize, generation: u32, count: usize) -> Result<(Option<usize>, Listeners, Started)> {
        let refused = |error| Error::from(error).starting(id);
        let slot = self.scoreboard.as_mut().map(Scoreboard::allocate).transpose().map_err(refused)?;
        let listeners = self.sockets.of(id)?;
        let slot_handle = self.scoreboard.as_ref().zip(slot).map(|(scoreboard, slot)| scoreboard.slot_handle(slot));
        let started = self.backend.start(StartRequest { id, generation, count, slot_handle, listeners: &listeners })?;
        Ok((slot, listeners, started))
    }

    /// Before anybody who gets nothing any more is asked to go.
    fn update_steering(&mut self) {
        if let Err(error) = self.sockets.serve(self.policy.serving()) {
            self.observers.output().log(Level::Warn, &format_args!("{error:?}"));
        }
    }

    /// With each SIGCHLD, the child that it names is reaped. Others may have ended with it, but to look for them takes time,
    /// and the first one may be replaced before. Whether there were any.
    fn take_signals(&mut self) -> Result<bool> {
        let mut any = false;
        while let Some(SignalInfo { signal, sender }) = self.descriptors.next_signal()? {
            any = true;
            if let Some(request) = request_of(signal) {
                self.policy.handle_request(Instant::now(), request);
            }
            if signal == Signal::Child {
                self.child_ended = true;
                self.ended.extend(sender.map(|pid| self.backend.reap_one(pid)).transpose()?.flatten());
            }
        }
        Ok(any)
    }

    /// What the workers have to say that cannot wait: when they ring, and before anybody is found to be late.
    fn read_messages(&mut self, is_due: bool) -> Result<()> {
        let rings = self.descriptors.drain_doorbell()?;
        self.child_ended |= rings && self.backend.ends_ring();
        if let (true, Some(scoreboard)) = (rings || is_due, &mut self.scoreboard) {
            for message in scoreboard.read_messages() {
                self.handle_message(message);
            }
        }
        Ok(())
    }

    fn handle_message(&mut self, message: WorkerMessage) {
        let now = Instant::now();
        match message {
            WorkerMessage::Ready(Process { id, generation, .. }) => self.policy.handle_ready(now, id, generation),
            WorkerMessage::StopAll(process) => self.policy.handle_stop_all(now, process),
        }
    }

    /// Its last words come before its end.
    fn handle_exit(&mut self, ChildExit { process, exit, cause, lease }: ChildExit) {
        if cause == ExitCause::ReturnedLate {
            self.handle_late_return(process);
            return;
        }
        let last_messages = self.scoreboard.as_mut().map(|scoreboard| scoreboard.release(process, lease));
        for message in last_messages.into_iter().flatten().flatten() {
            self.handle_message(message);
        }
        match cause {
            ExitCause::Failed(message) => self.emit(&Event::Failed { process, message }),
            ExitCause::Stale => {
                self.stale.push(process);
                self.emit(&Event::Stale { process });
            }
            ExitCause::Exited | ExitCause::ReturnedLate => {}
        }
        let out_of_memory = match self.policy.has_killed(process) || process.is_thread() {
            true => OutOfMemory::No,
            false => self.was_out_of_memory(exit),
        };
        self.policy.handle_exited(Instant::now(), process, exit, out_of_memory);
    }

    /// It counts as ended since long.
    fn handle_late_return(&mut self, process: Process) {
        self.stale.retain(|stale| *stale != process);
        self.emit(&Event::Returned { process });
    }

    fn was_out_of_memory(&mut self, exit: Exit) -> OutOfMemory {
        if exit != Exit::Signal(9) {
            return OutOfMemory::No;
        }
        match self.descriptors.take_out_of_memory() {
            Some(true) => OutOfMemory::Yes,
            Some(false) => OutOfMemory::No,
            None => OutOfMemory::Perhaps,
        }
    }

    fn emit_listening(&mut self) {
        for (listener, address) in self.sockets.addresses().into_iter().enumerate() {
            self.emit(&Event::Listening { listener, address });
        }
    }

    fn emit(&mut self, event: &Event) {
        let policy = &self.policy;
        self.observers.emit(event, &|| policy.up());
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
        Signal::TerminalInput => Some(Request::ScaleUp),
        Signal::TerminalOutput => Some(Request::ScaleDown),
        Signal::User1 => Some(Request::Reopen),
        Signal::Child | Signal::Abort | Signal::Kill => None,
    }
}

fn signal_for(message: WorkerSignal) -> Signal {
    match message {
        WorkerSignal::Stop => Signal::Terminate,
        WorkerSignal::QuickStop => Signal::Quit,
        WorkerSignal::Abort => Signal::Abort,
        WorkerSignal::Kill => Signal::Kill,
        WorkerSignal::Reopen => Signal::User1,
    }
}
