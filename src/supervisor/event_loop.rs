//! The parent's loop. It passes events to the policy, and executes the actions that the policy returns.
//!
//! # Order
//!
//! Requests come before exits: the loop reads all pending signals before it handles an exit. For example, on ^C the
//! terminal sends SIGINT to the parent and to the workers. The parent then knows about the stop request before it
//! handles the exits of the workers, so the parent does not restart the workers.
//!
//! Exits and messages come before timeouts: the loop runs timeouts only after it has handled all exits and messages. So
//! a worker that has already exited or become ready does not count as late.

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
use crate::failure;
use crate::handle::HandleReceiver;
use crate::listener::{Listeners, ShutDown, Sockets};
use crate::policy::{Action, Config, ExitedProcess, Outcome, Policy, Request, WorkerSignal};
use crate::report::WorkerReport;
use crate::scoreboard::{Scoreboard, WorkerMessage};
use crate::sys::{self, ChildHandle, FEW_PROCESSES, Signal, SignalInfo};
use crate::worker::Worker;

/// The way in which the loop ended.
pub(super) enum LoopExit {
    /// This process is a child that the loop has just forked.
    Child(Worker),
    /// This process is the parent, and the service has ended.
    Finished(Outcome),
}

/// The largest number of signals that the parent reads at once. The limit keeps a process that sends signals in a loop
/// from keeping the parent busy. The kinds of signals take turns, so the parent still reads each signal that is
/// pending.
const MAX_SIGNALS: usize = 64;

pub(super) struct Supervisor<'a> {
    /// The number of workers that the service starts with.
    initial_workers: usize,
    policy: Policy,
    /// This field is declared before the launcher and the sockets. So dropping the supervisor kills and reaps the
    /// children before it drops those fields.
    children: Children,
    reaper: Reaper,
    launcher: Box<dyn Launcher>,
    scoreboard: Option<Scoreboard>,
    observers: Observers,
    /// The requests of the program. `None` if the program has no callback, and so no handle.
    program_requests: Option<HandleReceiver>,
    sockets: Sockets,
    descriptors: &'a mut Descriptors,
    /// Whether the last call of `collect_signals` may have left signals.
    has_unread_signals: bool,
    /// The worker threads that the policy counts as exited, although they still run.
    stale: Vec<Process>,
}

impl<'a> Supervisor<'a> {
    /// Creates the supervisor in a box. Not inlined, so that the stack frame of this function is gone before the first
    /// fork: every page of the stack that the parent writes to between two forks is copied for each worker
    /// (copy-on-write).
    #[inline(never)]
    pub fn new(
        config: Config,
        launcher: Box<dyn Launcher>,
        scoreboard: Option<Scoreboard>,
        observers: Observers,
        program_requests: Option<HandleReceiver>,
        sockets: Sockets,
        descriptors: &'a mut Descriptors,
    ) -> Box<Supervisor<'a>> {
        let initial_workers = config.workers;
        Box::new(Supervisor {
            initial_workers,
            policy: Policy::new(config, seed(), Instant::now()),
            children: Children::default(),
            reaper: Reaper::new(),
            launcher,
            scoreboard,
            observers,
            program_requests,
            sockets,
            descriptors,
            has_unread_signals: false,
            stale: Vec::new(),
        })
    }

    /// Runs the loop until the service ends. In a forked child, returns right after the fork.
    pub fn run(&mut self) -> Result<LoopExit> {
        self.emit_listening();
        loop {
            self.observers.flush();
            self.take_program_requests();
            if self.policy.has_requests() {
                self.policy.execute_requests(Instant::now());
            }
            while let Some(action) = self.policy.poll_action() {
                if let Some(worker) = self.execute(action) {
                    return Ok(LoopExit::Child(worker));
                }
                self.collect_signals()?;
                self.observers.flush();
            }
            self.update_listeners();
            if let Some(exit) = self.reaper.next_exit() {
                self.handle_exit(exit);
            } else if self.reaper.is_scan_due(Instant::now()) {
                self.reaper.scan(&mut self.children)?;
                self.collect_signals()?;
                // A worker that has lost the doorbell sends SIGCHLD instead, and each SIGCHLD requests a scan.
                self.read_messages();
            } else if let Some(end) = self.policy.poll_end() {
                return Ok(LoopExit::Finished(end));
            } else {
                self.wait_for_events()?;
            }
        }
    }

    /// Returns the reports of all workers and the list of stale threads, and drops everything else.
    pub fn into_reports(self: Box<Self>) -> (Vec<WorkerReport>, Vec<Process>) {
        let supervisor = *self;
        (supervisor.policy.reports(), supervisor.stale)
    }

    fn wait_for_events(&mut self) -> Result<()> {
        let deadline = self.policy.next_deadline();
        let waited = self.wait(deadline)?;
        // Read before the signals, so that a stop request that ends the pause begins after the pause.
        let resumed_at = Instant::now();
        let any_signals = self.collect_signals()?;
        if waited == Waited::Interrupted && !(any_signals && self.descriptors.signals_interrupt()) {
            self.policy.handle_interruption(resumed_at);
        }
        let now = Instant::now();
        let is_due = deadline.is_some_and(|deadline| deadline <= now);
        self.collect_messages(is_due)?;
        self.collect_missed_exits(is_due, now)?;
        if is_due && !self.reaper.is_busy() {
            self.run_timers(now);
        }
        Ok(())
    }

    /// Waits until a poll source is ready, or until the earliest deadline of the policy, the observers and the reaper.
    /// Does not wait if signals or requests are left.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Waited> {
        let now = Instant::now();
        let has_work = self.has_unread_signals || self.policy.has_requests() || self.has_program_requests();
        let work = has_work.then_some(now);
        let deadlines = [work, deadline, self.observers.next_deadline(), self.reaper.next_deadline(now)];
        let next = deadlines.into_iter().flatten().min();
        self.descriptors.wait(next.map(|next| next.saturating_duration_since(now)))
    }

    /// Passes all pending requests to the policy, those of the program as well. For each SIGCHLD, reaps the child that
    /// the signal names. Returns whether any signal was pending. If signals arrive faster than this method reads them,
    /// it leaves some of them to the next call.
    fn collect_signals(&mut self) -> Result<bool> {
        self.take_program_requests();
        let mut any = false;
        for _ in 0..MAX_SIGNALS {
            let Some(SignalInfo { signal, sender }) = self.descriptors.next_signal()? else {
                self.has_unread_signals = false;
                return Ok(any);
            };
            any = true;
            if let Some(request) = request_of(signal) {
                self.policy.handle_request(Instant::now(), request);
            }
            if signal == Signal::Child {
                self.reaper.handle_child_signal(sender, &mut self.children)?;
            }
        }
        self.has_unread_signals = true;
        Ok(any)
    }

    fn has_program_requests(&self) -> bool {
        self.program_requests.as_ref().is_some_and(HandleReceiver::has_requests)
    }

    /// Passes the requests to the policy that the program has made through its handles.
    fn take_program_requests(&mut self) {
        if !self.has_program_requests() {
            return;
        }
        let now = Instant::now();
        for (_, request) in self.program_requests.iter().flat_map(HandleReceiver::take) {
            match request {
                Request::Stop => self.policy.handle_program_stop(now),
                Request::Scale(workers) if workers > FEW_PROCESSES => {
                    self.policy.limit_workers(sys::process_limit());
                    self.policy.handle_request(now, request);
                }
                request => self.policy.handle_request(now, request),
            }
        }
    }

    /// Reads the messages of the workers if a worker has woken the parent through the doorbell. If timeouts are about
    /// to run, always reads the messages, because a worker that has closed its descriptors cannot wake the parent. Also
    /// collects the exits of worker threads.
    fn collect_messages(&mut self, before_timeouts: bool) -> Result<()> {
        let was_broken = self.descriptors.is_doorbell_broken();
        let has_rung = self.descriptors.drain_doorbell()?;
        if !was_broken && self.descriptors.is_doorbell_broken() {
            let line = "a worker has shut down the descriptor that wakes the parent; the parent looks for messages \
                        every 100 ms from now on";
            self.observers.output().log(Level::Warn, &line);
        }
        if has_rung || before_timeouts {
            self.read_messages();
            self.reaper.add(self.launcher.take_thread_exits());
        }
        Ok(())
    }

    fn read_messages(&mut self) {
        let messages = self.scoreboard.as_mut().map(Scoreboard::read_messages);
        for message in messages.into_iter().flatten() {
            self.handle_message(message);
        }
    }

    /// Finds the exits that no signal has announced. If there are any such exits, also reads the pending signals, so
    /// that the policy handles a stop request before the exits.
    fn collect_missed_exits(&mut self, before_timeouts: bool, now: Instant) -> Result<()> {
        self.reaper.collect_missed(before_timeouts, now, &mut self.children)?;
        if self.reaper.has_exits() {
            self.collect_signals()?;
        }
        Ok(())
    }

    /// Passes the heartbeats to the policy, and then runs the policy's timeouts. In this order, a heartbeat that has
    /// just arrived prevents a timeout.
    fn run_timers(&mut self, now: Instant) {
        self.policy.extend_deadlines(now);
        self.extend_drains(now);
        self.wait_for_core_dumps(now);
        for Process { id, generation, .. } in self.scoreboard.iter().flat_map(Scoreboard::beats) {
            self.policy.handle_beat(now, id, generation);
        }
        self.policy.handle_timeout(now);
    }

    /// Extends the drain of a removed worker if connections still wait at its own sockets. Also extends the drain if
    /// the worker still gets new connections, because the parent could not steer them to the other workers. In this
    /// case the parent tries the steering again.
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

    /// Delays the SIGKILL of a process while the kernel is writing a core dump of it.
    fn wait_for_core_dumps(&mut self, now: Instant) {
        for process in self.policy.kills_due(now) {
            if self.children.is_dumping_core(process) {
                self.policy.handle_core_dump(now, process);
            }
        }
    }

    /// Executes an action. Returns the worker if this process is a child that the action has forked. Returns `None` in
    /// the parent.
    fn execute(&mut self, action: Action) -> Option<Worker> {
        match action {
            Action::Emit(event) => self.emit(&event),
            Action::Abandon { process } => self.abandon(process),
            Action::Send { process, message } => self.send(process, signal_for(message)),
            Action::Start { id, generation } => return self.start(id, generation),
        }
        None
    }

    /// Counts a process as exited although SIGKILL has not ended it. Does nothing if it has been reaped meanwhile.
    fn abandon(&mut self, process: Process) {
        if self.children.abandon(process) {
            self.reaper.add([ChildExit { process, exit: Exit::Stale, cause: ExitCause::Stale, lease: None }]);
        }
    }

    fn send(&mut self, process: Process, signal: Signal) {
        if process.is_thread() {
            self.launcher.signal_thread(process, signal);
        } else if let Err(error) = self.children.send(process, signal) {
            self.observers.output().log(Level::Warn, &format_args!("{process}: {error:?}"));
        }
    }

    /// Starts a worker process or thread. Returns the worker if this process is a forked child, and `None` in the
    /// parent.
    fn start(&mut self, id: usize, generation: u32) -> Option<Worker> {
        if generation > 0 || id >= self.initial_workers {
            self.restore_listeners(id);
        }
        if self.launcher.copies_buffers() {
            self.observers.output().flush();
        }
        // The parent counts the workers before it forks. If each worker counted instead, it would read more of the
        // memory inherited from the parent, at the cost of page faults.
        let count = self.policy.wanted();
        match self.try_start(id, generation, count) {
            Ok((slot, listeners, Started::Child)) => {
                self.sockets.release_in_child();
                let status = self.scoreboard.as_ref().zip(slot).map(|(scoreboard, slot)| scoreboard.writer(slot));
                return Some(Worker::new("", id, generation, count, status, listeners));
            }
            Ok((slot, _, Started::Parent(child))) => self.handle_started(id, generation, slot, child),
            Err(error) => self.policy.handle_start_failed(Instant::now(), id, error),
        }
        None
    }

    /// Inlined, so that fewer stack frames are in use at a fork. The kernel copies the pages of these frames
    /// (copy-on-write).
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
        let process = Process { pool: "", id, generation, pid: child.as_ref().map(ChildHandle::pid) };
        if let Some(child) = child {
            self.children.add(process, child);
        }
        if let Some((scoreboard, slot)) = self.scoreboard.as_mut().zip(slot) {
            scoreboard.assign(slot, process);
        }
        self.policy.handle_started(Instant::now(), process);
        self.emit(&Event::Started { process });
    }

    /// Makes the kernel send new connections only to the workers that serve. Must be called before the parent asks a
    /// draining worker to stop.
    ///
    /// Closes the listeners when every worker has been asked to stop: no process is started from then on, and each
    /// worker has its own copies. So the system refuses new clients as soon as the workers have closed their copies.
    fn update_listeners(&mut self) {
        if self.policy.is_stopping() {
            return self.sockets.close();
        }
        if let Err(error) = self.sockets.serve(self.policy.serving()) {
            self.observers.output().log(Level::Warn, &format_args!("{error:?}"));
        }
    }

    fn handle_message(&mut self, message: WorkerMessage) {
        let now = Instant::now();
        match message {
            WorkerMessage::Ready(Process { id, generation, .. }) => self.policy.handle_ready(now, id, generation),
            WorkerMessage::StopAll(process) => self.policy.handle_stop_all(now, process),
            WorkerMessage::StopPool(process) => self.policy.handle_stop_all(now, process),
            WorkerMessage::Retire(process) => self.policy.handle_retire(now, process),
        }
    }

    /// Handles an exit. First handles the last messages that the exited process has written.
    fn handle_exit(&mut self, ChildExit { process, exit, cause, lease }: ChildExit) {
        let was_abandoned = cause == ExitCause::Exited && self.stale.contains(&process);
        if cause == ExitCause::ReturnedLate || was_abandoned {
            self.handle_late_return(process);
            return;
        }
        let reached_call = self.note_reached_call(process);
        let last = self.scoreboard.as_mut().map(|scoreboard| scoreboard.release(process, lease)).unwrap_or_default();
        for message in last.unread.into_iter().flatten() {
            self.handle_message(message);
        }
        match cause {
            ExitCause::Failed(message) => {
                let event = Event::Failed { process, message };
                self.emit(&event);
                failure::report_unless_logged(Level::Warn, &event);
            }
            // The panic hook has printed the panic already.
            ExitCause::Panicked(message) => {
                self.emit(&Event::Failed { process, message: format!("panicked: {message}") });
            }
            ExitCause::Stale => {
                self.stale.push(process);
                if process.is_thread() {
                    self.emit(&Event::Stale { process });
                }
            }
            ExitCause::Exited | ExitCause::ReturnedLate => {}
        }
        let out_of_memory = self.was_out_of_memory(process, exit);
        let stop_noted = last.stop_noted;
        let exited = ExitedProcess { process, exit, out_of_memory, reached_call, stop_noted };
        self.policy.handle_exited(Instant::now(), exited);
    }

    /// Returns whether this process has reached the call that starts the service. If it has not, but another
    /// process of the same worker has, also reports that to the policy.
    fn note_reached_call(&mut self, process: Process) -> bool {
        let Some(scoreboard) = &self.scoreboard else { return true };
        let reached_call = scoreboard.has_reached(process);
        if !reached_call && self.policy.processes_of(process.id).into_iter().any(|other| scoreboard.has_reached(other))
        {
            self.policy.handle_reached_call(process.id);
        }
        reached_call
    }

    /// Handles the end of a thread or process that did not end in time. The policy already counts it as exited.
    fn handle_late_return(&mut self, process: Process) {
        self.stale.retain(|stale| *stale != process);
        if !process.is_thread() {
            self.policy.handle_abandoned_exited(Instant::now(), process);
        }
        self.emit(&Event::Returned { process });
    }

    /// Returns whether the kernel's out-of-memory killer has killed this process.
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
            self.emit(&Event::Listening { pool: "", listener, address });
        }
    }

    /// Reports the worker's listeners on which shutdown(2) was called, and lets them listen again if possible. The
    /// initial starts do without it, because no worker had a socket before them.
    #[inline(never)]
    fn restore_listeners(&mut self, id: usize) {
        for ShutDown { listener, address, is_restored } in self.sockets.restore(id) {
            self.emit(&Event::ListenerShutDown { pool: "", listener, address, restored: is_restored });
        }
    }

    fn emit(&mut self, event: &Event) {
        let policy = &self.policy;
        self.observers.emit(event, &|| policy.up());
    }
}

/// Returns a seed for the random delays. The seed differs between services, so that services that start together do not
/// also restart their workers together.
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
