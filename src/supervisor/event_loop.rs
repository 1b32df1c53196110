//! The parent's loop: events go into the policy, and its actions come out.
//!
//! # Order
//!
//! Requests count before exits: all pending signals are collected before an exit is handled. So a ^C, which the
//! terminal sends to the workers as well, is known before their exits, and no worker is restarted because of it.
//!
//! Exits and messages count before timeouts: timeouts run only when all of these are collected and handled. So no
//! worker is found to be late if it has already exited or become ready.

use std::process;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ::log::Level;

use super::children::Children;
use super::descriptors::Descriptors;
use super::observer::Observers;
use super::poller::Waited;
use super::reaper::Reaper;
use crate::backend::{ChildExit, ExitCause, Launcher, StartRequest, Started};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::exit::{Exit, OutOfMemory, Process};
use crate::listener::{Listeners, Sockets};
use crate::policy::{Action, Config, Outcome, Policy, Request, WorkerSignal};
use crate::report::WorkerReport;
use crate::scoreboard::{Scoreboard, WorkerMessage};
use crate::sys::{ChildHandle, Signal, SignalInfo};
use crate::worker::Worker;

/// How the loop ended.
pub(super) enum LoopExit {
    /// This process is a child that the loop has just forked.
    Child(Worker),
    /// This process is the parent, and the service has ended.
    Finished(Outcome),
}

pub(super) struct Supervisor<'a> {
    policy: Policy,
    /// The children are killed and reaped before anything else is dropped.
    children: Children,
    reaper: Reaper,
    launcher: Box<dyn Launcher>,
    scoreboard: Option<Scoreboard>,
    observers: Observers,
    sockets: Sockets,
    descriptors: &'a mut Descriptors,
    /// Threads that count as exited, but still run.
    stale: Vec<Process>,
}

impl<'a> Supervisor<'a> {
    /// Makes the supervisor in a box, and in a frame that is gone at the first fork: every page of the stack that is in
    /// use between two forks is copied for each worker (copy-on-write).
    #[inline(never)]
    pub fn new(
        config: Config,
        launcher: Box<dyn Launcher>,
        scoreboard: Option<Scoreboard>,
        observers: Observers,
        sockets: Sockets,
        descriptors: &'a mut Descriptors,
    ) -> Box<Supervisor<'a>> {
        Box::new(Supervisor {
            policy: Policy::new(config, seed(), Instant::now()),
            children: Children::default(),
            reaper: Reaper::new(),
            launcher,
            scoreboard,
            observers,
            sockets,
            descriptors,
            stale: Vec::new(),
        })
    }

    /// Runs until the service ends, or until this process is a forked child.
    pub fn run(&mut self) -> Result<LoopExit> {
        self.emit_listening();
        loop {
            self.observers.flush();
            while let Some(action) = self.policy.poll_action() {
                if let Some(worker) = self.execute(action) {
                    return Ok(LoopExit::Child(worker));
                }
                self.collect_signals()?;
                self.observers.flush();
            }
            self.update_steering();
            if let Some(exit) = self.reaper.next_exit() {
                self.handle_exit(exit);
            } else if self.reaper.is_scan_due(Instant::now()) {
                self.reaper.scan(&mut self.children)?;
                self.collect_signals()?;
            } else if let Some(end) = self.policy.poll_end() {
                return Ok(LoopExit::Finished(end));
            } else {
                self.wait_for_events()?;
            }
        }
    }

    /// Returns what the parent reports, and drops the rest.
    pub fn into_reports(self: Box<Self>) -> (Vec<WorkerReport>, Vec<Process>) {
        let supervisor = *self;
        (supervisor.policy.reports(), supervisor.stale)
    }

    fn wait_for_events(&mut self) -> Result<()> {
        let deadline = self.policy.next_deadline();
        let waited = self.wait(deadline)?;
        let any_signals = self.collect_signals()?;
        let now = Instant::now();
        if waited == Waited::Interrupted && !(any_signals && self.descriptors.signals_interrupt()) {
            self.policy.handle_interruption(now);
        }
        let is_due = deadline.is_some_and(|deadline| deadline <= now);
        self.collect_messages(is_due)?;
        self.collect_missed_exits(is_due, now)?;
        if is_due && !self.reaper.is_busy() {
            self.run_timers(now);
        }
        Ok(())
    }

    /// Waits for a poll source, for the policy's deadline, or for that of an observer or the reaper.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Waited> {
        let now = Instant::now();
        let deadlines = [deadline, self.observers.next_deadline(), self.reaper.next_deadline(now)];
        let next = deadlines.into_iter().flatten().min();
        self.descriptors.wait(next.map(|next| next.saturating_duration_since(now)))
    }

    /// Passes all pending requests to the policy. Each SIGCHLD reaps the child that it names. Returns whether there
    /// were any signals.
    fn collect_signals(&mut self) -> Result<bool> {
        let mut any = false;
        while let Some(SignalInfo { signal, sender }) = self.descriptors.next_signal()? {
            any = true;
            if let Some(request) = request_of(signal) {
                self.policy.handle_request(Instant::now(), request);
            }
            if signal == Signal::Child {
                self.reaper.handle_child_signal(sender, &mut self.children)?;
            }
        }
        Ok(any)
    }

    /// Reads what workers have reported: when the doorbell rang, and before timeouts.
    fn collect_messages(&mut self, before_timeouts: bool) -> Result<()> {
        let has_rung = self.descriptors.drain_doorbell()?;
        if !has_rung && !before_timeouts {
            return Ok(());
        }
        let messages = self.scoreboard.as_mut().map(Scoreboard::read_messages);
        for message in messages.into_iter().flatten() {
            self.handle_message(message);
        }
        self.reaper.add(self.launcher.take_thread_exits());
        Ok(())
    }

    /// Finds the exits that no signal has announced. If there are any, also collects the pending signals, so that a
    /// stop request that came before an exit is handled before it.
    fn collect_missed_exits(&mut self, before_timeouts: bool, now: Instant) -> Result<()> {
        self.reaper.collect_missed(before_timeouts, now, &mut self.children)?;
        if self.reaper.has_exits() {
            self.collect_signals()?;
        }
        Ok(())
    }

    /// Passes the heartbeats to the policy, and then runs its timeouts, so that a heartbeat counts before the timeout.
    fn run_timers(&mut self, now: Instant) {
        self.extend_drains(now);
        for Process { id, generation, .. } in self.scoreboard.iter().flat_map(Scoreboard::beats) {
            self.policy.handle_beat(now, id, generation);
        }
        self.policy.handle_timeout(now);
    }

    /// Extends the drain of a worker if connections still wait at its own sockets. Also extends it if new connections
    /// still arrive there, because steering has failed; steering is then tried again.
    fn extend_drains(&mut self, now: Instant) {
        for id in self.policy.draining(now) {
            let still_serves = !self.sockets.is_left_out(id);
            if still_serves {
                self.sockets.retry();
            }
            if still_serves || self.sockets.has_waiting(id) {
                self.policy.handle_work_left(now, id);
            }
        }
    }

    /// Executes an action. Returns a worker if this process is one now, because the action has forked it.
    fn execute(&mut self, action: Action) -> Option<Worker> {
        match action {
            Action::Emit(event) => self.emit(&event),
            Action::Send { process, message } => self.send(process, signal_for(message)),
            Action::Start { id, generation } => return self.start(id, generation),
        }
        None
    }

    fn send(&mut self, process: Process, signal: Signal) {
        if process.is_thread() {
            self.launcher.signal_thread(process, signal);
        } else if let Err(error) = self.children.send(process, signal) {
            self.observers.output().log(Level::Warn, &format_args!("{process}: {error:?}"));
        }
    }

    /// Starts a process or thread. Returns a worker if this process is one now.
    fn start(&mut self, id: usize, generation: u32) -> Option<Worker> {
        if self.observers.output().take_unflushed() {
            self.launcher.flush();
        }
        // The parent counts, once. A worker would first have to read the parent's memory, at the cost of page faults.
        let count = self.policy.wanted();
        match self.try_start(id, generation, count) {
            Ok((slot, listeners, Started::Child)) => {
                self.sockets.release_in_child();
                let status = self.scoreboard.as_ref().zip(slot).map(|(scoreboard, slot)| scoreboard.writer(slot));
                return Some(Worker::new(id, generation, count, status, listeners));
            }
            Ok((slot, _, Started::Parent(child))) => self.handle_started(id, generation, slot, child),
            Err(error) => self.policy.handle_start_failed(Instant::now(), id, error),
        }
        None
    }

    /// Inlined, because each frame that is in use at a fork is copied.
    #[inline]
    fn try_start(&mut self, id: usize, generation: u32, count: usize) -> Result<(Option<usize>, Listeners, Started)> {
        let refused = |error| Error::from(error).starting(id);
        let slot = self.scoreboard.as_mut().map(Scoreboard::allocate).transpose().map_err(refused)?;
        let listeners = self.sockets.of(id)?;
        let slot_handle = self.scoreboard.as_ref().zip(slot).map(|(scoreboard, slot)| scoreboard.slot_handle(slot));
        let started =
            self.launcher.start(StartRequest { id, generation, count, slot_handle, listeners: &listeners })?;
        Ok((slot, listeners, started))
    }

    fn handle_started(&mut self, id: usize, generation: u32, slot: Option<usize>, child: Option<ChildHandle>) {
        let process = Process { id, generation, pid: child.as_ref().map(ChildHandle::pid) };
        if let Some(child) = child {
            self.children.add(process, child);
        }
        if let Some((scoreboard, slot)) = self.scoreboard.as_mut().zip(slot) {
            scoreboard.assign(slot, process);
        }
        self.policy.handle_started(Instant::now(), process);
        self.emit(&Event::Started { process });
    }

    /// Steers new connections to the workers that serve. Must come before the others are asked to stop.
    fn update_steering(&mut self) {
        if let Err(error) = self.sockets.serve(self.policy.serving()) {
            self.observers.output().log(Level::Warn, &format_args!("{error:?}"));
        }
    }

    fn handle_message(&mut self, message: WorkerMessage) {
        let now = Instant::now();
        match message {
            WorkerMessage::Ready(Process { id, generation, .. }) => self.policy.handle_ready(now, id, generation),
            WorkerMessage::StopAll(process) => self.policy.handle_stop_all(now, process),
        }
    }

    /// Handles an exit, and before it the last messages of the worker.
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
        let out_of_memory = self.was_out_of_memory(process, exit);
        self.policy.handle_exited(Instant::now(), process, exit, out_of_memory);
    }

    /// Handles the return of a stale thread, which the policy counts as exited already.
    fn handle_late_return(&mut self, process: Process) {
        self.stale.retain(|stale| *stale != process);
        self.emit(&Event::Returned { process });
    }

    /// Returns whether the kernel has killed this process because memory ran out.
    fn was_out_of_memory(&mut self, process: Process, exit: Exit) -> OutOfMemory {
        if exit != Exit::Signal(9) || process.is_thread() || self.policy.has_killed(process) {
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

/// Returns a seed for the jitter of delays, so that services that are started at the same time do not restart in step.
fn seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(process::id()) << 32 | u64::from(since.subsec_nanos())
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
