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

#[cfg_attr(not(all(target_os = "linux", not(taskfork_portable))), path = "event_loop/no_upgrade.rs")]
mod upgrade;

use std::time::Instant;

use ::log::Level;

use super::children::Children;
use super::descriptors::Descriptors;
use super::handover::Adoption;
use super::memory::MemoryReader;
use super::observer::Observers;
use super::poller::Waited;
use super::pool::{Pool, StartedIn};
use super::reaper::Reaper;
use super::status::{ServiceInfo, View};
use crate::backend::{ChildExit, ExitCause};
use crate::error::Result;
use crate::event::Event;
use crate::exit::{Exit, OutOfMemory, Process};
use crate::failure;
use crate::handle::{HandleReceiver, Target};
use crate::listener::ShutDown;
use crate::policy::{Action, ExitedProcess, Outcome, Request, Service, WorkerSignal};
use crate::report::PoolReport;
use crate::scoreboard::WorkerMessage;
use crate::sys::{self, ChildHandle, FEW_PROCESSES, Signal, SignalInfo};
use crate::worker::Worker;

pub(super) use upgrade::Upgrader;

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

pub(super) struct EventLoop<'a> {
    policy: Service,
    /// This field is declared before the pools, which have the launchers and the sockets. So dropping this value kills
    /// and reaps the children before it drops the pools.
    children: Children,
    reaper: Reaper,
    /// The pools, in the order of the policy's pools.
    pools: Vec<Pool>,
    /// The pool whose workers can be forked now, because the memory of the others is left out of a fork. `None` if the
    /// memory of several pools may be left out. The memory of the only pool is never left out.
    #[cfg(unix)]
    sharing: Option<usize>,
    observers: Observers,
    info: ServiceInfo,
    memory: MemoryReader,
    /// The requests of the program. `None` if the program has no callback, and so no handle.
    program_requests: Option<HandleReceiver>,
    upgrader: Upgrader,
    descriptors: &'a mut Descriptors,
    /// Whether the last call of `collect_signals` may have left signals.
    has_unread_signals: bool,
    /// The worker threads that the policy counts as exited, although they still run.
    stale: Vec<Process>,
}

impl<'a> EventLoop<'a> {
    /// Creates the loop in a box. Not inlined, so that the stack frame of this function is gone before the first fork:
    /// every page of the stack that the parent writes to between two forks is copied for each worker (copy-on-write).
    #[inline(never)]
    pub fn new(
        policy: Service,
        pools: Vec<Pool>,
        observers: Observers,
        info: ServiceInfo,
        program_requests: Option<HandleReceiver>,
        upgrader: Upgrader,
        descriptors: &'a mut Descriptors,
    ) -> Box<EventLoop<'a>> {
        Box::new(EventLoop {
            policy,
            children: Children::default(),
            reaper: Reaper::new(),
            #[cfg(unix)]
            sharing: (pools.len() == 1).then_some(0),
            pools,
            observers,
            info,
            memory: MemoryReader::default(),
            program_requests,
            upgrader,
            descriptors,
            has_unread_signals: false,
            stale: Vec::new(),
        })
    }

    /// Takes over the processes of the program before an upgrade.
    pub fn adopt(&mut self, adoption: Adoption) {
        for process in adoption.processes() {
            if let Some(pid) = process.pid {
                self.children.add(process, ChildHandle::new(pid));
            }
        }
        // The signals of exits between the two programs may have coalesced.
        self.reaper.request_scan();
        self.report_window(&adoption);
        // Before the start of a worker whose id the old program did not have.
        self.update_listeners();
        // A stop request that has arrived between the two programs comes before anything else.
        self.has_unread_signals = true;
    }

    /// Runs the loop until the service ends. In a forked child, returns right after the fork.
    pub fn run(&mut self) -> Result<LoopExit> {
        self.emit_listening();
        if self.has_unread_signals {
            self.collect_signals()?;
        }
        loop {
            self.flush_observers();
            self.take_program_requests();
            if self.policy.has_requests() {
                self.policy.execute_requests(Instant::now());
            }
            while let Some((pool, action)) = self.policy.poll_action() {
                if let Some(worker) = self.execute(pool, action) {
                    return Ok(LoopExit::Child(worker));
                }
                self.collect_signals()?;
                self.flush_observers();
            }
            self.update_listeners();
            if let Some(exit) = self.reaper.next_exit() {
                self.handle_exit(exit);
            } else if self.reaper.is_scan_due(Instant::now()) {
                self.reaper.scan(&mut self.children)?;
                self.collect_signals()?;
                // A worker that has lost the doorbell sends SIGCHLD instead, and each SIGCHLD requests a scan.
                self.read_messages();
            } else if self.is_exec_due() {
                self.exec()?;
            } else if let Some(end) = self.policy.poll_end() {
                return Ok(LoopExit::Finished(end));
            } else {
                self.wait_for_events()?;
            }
        }
    }

    /// Returns the reports of all pools and the list of stale threads, and drops everything else.
    pub fn into_reports(self: Box<Self>) -> (Vec<PoolReport>, Vec<Process>) {
        let event_loop = *self;
        (event_loop.policy.reports(), event_loop.stale)
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
        self.read_check();
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
                self.policy.handle_request(Instant::now(), None, request);
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
        for (target, request) in self.program_requests.iter().flat_map(HandleReceiver::take) {
            let to = match target {
                Target::Service => None,
                Target::Pool(at) => Some(at),
                Target::Unknown(name) => {
                    self.policy.handle_ignored(name);
                    continue;
                }
            };
            match request {
                Request::Stop => self.policy.handle_program_stop(now, to),
                Request::Scale(workers) if workers > FEW_PROCESSES => {
                    self.policy.limit_workers(to.unwrap_or(0), sys::process_limit());
                    self.policy.handle_request(now, to, request);
                }
                request => self.policy.handle_request(now, to, request),
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
            self.reaper.add(self.pools.iter_mut().flat_map(Pool::take_thread_exits));
        }
        Ok(())
    }

    fn read_messages(&mut self) {
        for pool in 0..self.pools.len() {
            for message in self.pools[pool].read_messages() {
                self.handle_message(message);
            }
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
        self.memory.read_due(&mut self.policy, &self.children, self.observers.output());
        self.take_beats(now);
        self.policy.handle_timeout(now);
    }

    /// Extends the drain of a removed worker if connections still wait at its own sockets. Also extends the drain if
    /// the worker still gets new connections, because the parent could not steer them to the other workers. In this
    /// case the parent tries the steering again.
    fn extend_drains(&mut self, now: Instant) {
        for (at, Pool { sockets, .. }) in self.pools.iter_mut().enumerate() {
            for id in self.policy.pool(at).draining(now) {
                let still_serves = !sockets.is_left_out(id);
                if still_serves {
                    sockets.retry();
                }
                if still_serves || sockets.has_waiting(id) {
                    self.policy.handle_work_left(now, at, id);
                }
            }
        }
    }

    /// Delays the SIGKILL of a process while the kernel is writing a core dump of it.
    fn wait_for_core_dumps(&mut self, now: Instant) {
        for at in 0..self.pools.len() {
            for process in self.policy.pool(at).kills_due(now) {
                if self.children.is_dumping_core(process) {
                    self.policy.handle_core_dump(now, process);
                }
            }
        }
    }

    /// Executes an action. Returns the worker if this process is a child that the action has forked. Returns `None` in
    /// the parent.
    fn execute(&mut self, pool: usize, action: Action) -> Option<Worker> {
        match action {
            Action::Emit(event) => match event {
                Event::PoolEnded { success, .. } => self.emit_end(pool, &event, success),
                Event::UpgradeAborted { .. } | Event::UpgradeFinished => {
                    self.forget_upgrade(matches!(event, Event::UpgradeFinished));
                    self.emit(&event);
                }
                event => self.emit(&event),
            },
            Action::Check => self.start_check(),
            Action::EndCheck => self.end_check(),
            Action::StartTrial { id, generation } => self.start_trial(pool, id, generation),
            Action::Exec => self.request_exec(),
            Action::Abandon { process } => self.abandon(process),
            Action::Send { process, message } => self.send(process, signal_for(message)),
            Action::Start { id, generation } => return self.start(pool, id, generation),
        }
        None
    }

    /// Reports the end of a pool. If an optional pool has failed and the log does not have this event, writes the event
    /// to standard error, because the service may go on for a long time.
    fn emit_end(&mut self, pool: usize, event: &Event, success: bool) {
        // Before the event, so that a client that knows of it is refused.
        self.pools[pool].sockets.close();
        self.emit(event);
        if !success && self.policy.is_optional(pool) {
            failure::report_unless_logged(Level::Error, event);
        }
    }

    /// Counts a process as exited although SIGKILL has not ended it. Does nothing if it has been reaped meanwhile.
    fn abandon(&mut self, process: Process) {
        if self.children.abandon(process) {
            self.reaper.add([ChildExit { process, exit: Exit::Stale, cause: ExitCause::Stale, lease: None }]);
        }
    }

    fn send(&mut self, process: Process, signal: Signal) {
        if process.is_thread() {
            if let Some(pool) = self.policy.index_of(process) {
                self.pools[pool].launcher.signal_thread(process, signal);
            }
        } else if let Err(error) = self.children.send(process, signal) {
            self.observers.output().log(Level::Warn, &format_args!("{process}: {error:?}"));
        }
    }

    /// Starts a worker process or thread. Returns the worker if this process is a forked child, and `None` in the
    /// parent.
    fn start(&mut self, at: usize, id: usize, generation: u32) -> Option<Worker> {
        if generation > 0 || id >= self.pools[at].initial_workers {
            self.restore_listeners(at, id);
        }
        if self.pools[at].launcher.forks() {
            self.observers.output().flush();
        }
        match self.try_start(at, id, generation) {
            Ok(StartedIn::Child(worker)) => {
                #[cfg(unix)]
                self.close_others(at);
                return Some(worker);
            }
            Ok(StartedIn::Parent(child, slot)) => self.handle_started(at, id, generation, slot, child),
            Err(error) => {
                let error = error.in_pool(self.pools[at].name);
                self.policy.handle_start_failed(Instant::now(), at, id, error);
            }
        }
        None
    }

    #[inline]
    fn try_start(&mut self, at: usize, id: usize, generation: u32) -> Result<StartedIn> {
        #[cfg(unix)]
        self.share_memory_of(at).map_err(|error| error.starting(id))?;
        // The parent counts the workers before it forks. If each worker counted instead, it would read more of the
        // memory inherited from the parent, at the cost of page faults.
        let count = self.policy.pool(at).wanted();
        let max_requests = self.policy.pool(at).request_limit(id, generation);
        self.pools[at].start(id, generation, count, max_requests)
    }

    /// Makes the next fork a fork of this pool: the worker gets the shared memory of this pool only.
    #[cfg(unix)]
    fn share_memory_of(&mut self, at: usize) -> Result<()> {
        if self.sharing != Some(at) {
            self.sharing = None;
            self.pools.iter().enumerate().try_for_each(|(other, pool)| pool.set_inherited(other == at))?;
            self.sharing = Some(at);
        }
        Ok(())
    }

    /// Closes the descriptors of the other pools in a forked worker.
    #[cfg(unix)]
    fn close_others(&self, own: usize) {
        let others = self.pools.iter().enumerate().filter(|&(at, _)| at != own);
        others.for_each(|(_, pool)| pool.close_inherited());
    }

    fn handle_started(
        &mut self,
        at: usize,
        id: usize,
        generation: u32,
        slot: Option<usize>,
        child: Option<ChildHandle>,
    ) {
        let pool = &mut self.pools[at];
        let process = Process { pool: pool.name, id, generation, pid: child.as_ref().map(ChildHandle::pid) };
        pool.assign(slot, process);
        if let Some(child) = child {
            self.children.add(process, child);
        }
        self.policy.handle_started(Instant::now(), process);
        self.emit(&Event::Started { process });
    }

    /// Makes the kernel send new connections only to the workers that serve. Must be called before the parent asks a
    /// draining worker to stop.
    ///
    /// Closes the listeners of a pool when every worker of it has been asked to stop or has finished: no process is
    /// started from then on, and each worker has its own copies. So the system refuses new clients as soon as the
    /// workers have closed their copies.
    fn update_listeners(&mut self) {
        for (at, Pool { name, sockets, .. }) in self.pools.iter_mut().enumerate() {
            if self.policy.is_closed(at) {
                sockets.close();
            } else if let Err(error) = sockets.serve(self.policy.pool(at).serving()) {
                let error = error.in_pool(name);
                self.observers.output().log(Level::Warn, &format_args!("{error:?}"));
            }
        }
    }

    fn handle_message(&mut self, message: WorkerMessage) {
        let now = Instant::now();
        match message {
            WorkerMessage::Ready(process) => self.policy.handle_ready(now, process),
            WorkerMessage::StopAll(process) => self.policy.handle_stop_all(now, process),
            WorkerMessage::StopPool(process) => self.policy.handle_stop_pool(now, process),
            WorkerMessage::Retire(process) => self.policy.handle_retire(now, process),
            WorkerMessage::WorkDone(process) => self.policy.handle_work_done(now, process),
        }
    }

    /// Handles an exit. First handles the last messages that the exited process has written.
    fn handle_exit(&mut self, ChildExit { process, exit, cause, lease }: ChildExit) {
        let was_abandoned = cause == ExitCause::Exited && self.stale.contains(&process);
        if cause == ExitCause::ReturnedLate || was_abandoned {
            self.handle_late_return(process);
            return;
        }
        if self.handle_checker_exit(process, exit) {
            return;
        }
        let Some(at) = self.policy.index_of(process) else { return };
        let reached_call = self.note_reached_call(at, process);
        self.explain_trial_exit(process, exit);
        let last = self.pools[at].release(process, lease);
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
        let out_of_memory = self.was_out_of_memory(at, process, exit);
        let stop_noted = last.stop_noted;
        let nested_call = last.nested_call || self.pools[at].launcher.take_nested_call(process);
        let work_in_progress = last.work.in_progress;
        let exited =
            ExitedProcess { process, exit, out_of_memory, reached_call, stop_noted, nested_call, work_in_progress };
        self.policy.handle_exited(Instant::now(), exited);
    }

    /// Returns whether this process has reached the call that starts the service. If it has not, but another
    /// process of the same worker has, also reports that to the policy.
    fn note_reached_call(&mut self, at: usize, process: Process) -> bool {
        let of_trial = self.trial_has_reached(process);
        let pool = &self.pools[at];
        let reached_call = of_trial.unwrap_or_else(|| pool.has_reached(process));
        let others = || self.policy.pool(at).processes_of(process.id);
        if !reached_call && others().into_iter().any(|other| pool.has_reached(other)) {
            self.policy.handle_reached_call(process);
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
    fn was_out_of_memory(&mut self, at: usize, process: Process, exit: Exit) -> OutOfMemory {
        if exit != Exit::Signal(9) || process.is_thread() || self.policy.pool(at).has_killed(process) {
            return OutOfMemory::No;
        }
        match self.descriptors.take_out_of_memory() {
            Some(true) => OutOfMemory::Yes,
            Some(false) => OutOfMemory::No,
            None => OutOfMemory::Perhaps,
        }
    }

    fn emit_listening(&mut self) {
        for at in 0..self.pools.len() {
            let pool = self.pools[at].name;
            for (listener, address) in self.pools[at].sockets.addresses().into_iter().enumerate() {
                self.emit(&Event::Listening { pool, listener, address });
            }
        }
    }

    /// Reports the worker's listeners on which shutdown(2) was called, and lets them listen again if possible. The
    /// initial starts do without it, because no worker had a socket before them.
    #[inline(never)]
    fn restore_listeners(&mut self, at: usize, id: usize) {
        let pool = self.pools[at].name;
        for ShutDown { listener, address, is_restored } in self.pools[at].sockets.restore(id) {
            self.emit(&Event::ListenerShutDown { pool, listener, address, restored: is_restored });
        }
    }

    fn emit(&mut self, event: &Event) {
        self.info.note_event(event);
        let service = View { policy: &self.policy, pools: &self.pools, info: &self.info };
        self.observers.emit(event, &service);
    }

    /// Flushes the observers whose deadline has passed. The observer that is about to show the status of the service
    /// to the program gets the heartbeats up to now.
    fn flush_observers(&mut self) {
        if self.observers.is_status_due() {
            self.take_beats(Instant::now());
        }
        self.observers.flush(&View { policy: &self.policy, pools: &self.pools, info: &self.info });
    }

    /// Passes the heartbeats to the policy.
    fn take_beats(&mut self, now: Instant) {
        for process in self.pools.iter().flat_map(Pool::beats) {
            self.policy.handle_beat(now, process);
        }
    }
}

fn request_of(signal: Signal) -> Option<Request> {
    match signal {
        Signal::Terminate | Signal::Interrupt => Some(Request::Stop),
        Signal::Quit => Some(Request::QuickStop),
        Signal::Hangup => Some(Request::Roll),
        Signal::TerminalInput => Some(Request::ScaleUp),
        Signal::TerminalOutput => Some(Request::ScaleDown),
        Signal::User1 => Some(Request::Reopen),
        Signal::User2 => Some(Request::Upgrade),
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
