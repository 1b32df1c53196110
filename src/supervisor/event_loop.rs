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

mod exit;
mod request;
mod start;
#[cfg_attr(not(all(target_os = "linux", not(taskfork_portable))), path = "event_loop/no_upgrade.rs")]
mod upgrade;

use std::time::Instant;

use ::log::Level;

use super::children::Children;
use super::descriptors::Descriptors;
use super::memory::MemoryReader;
use super::observer::Observers;
use super::poller::Waited;
use super::pool::Pool;
use super::reaper::Reaper;
use super::status::{ServiceInfo, View};
use crate::error::Result;
use crate::event::Event;
use crate::exit::Process;
use crate::failure;
use crate::handle::HandleReceiver;
use crate::listener::ShutDown;
use crate::policy::{Action, Outcome, Service, WorkerSignal};
use crate::report::PoolReport;
use crate::scoreboard::WorkerMessage;
use crate::sys::Signal;
use crate::worker::Worker;

pub(super) use upgrade::Upgrader;

/// The way in which the loop ended.
pub(super) enum LoopExit {
    /// This process is a child that the loop has just forked.
    Child(Worker),
    /// This process is the parent, and the service has ended.
    Finished(Outcome),
}

pub(super) struct EventLoop<'a> {
    policy: Service,
    /// This field is declared before the pools, which have the launchers and the sockets. So dropping this value kills
    /// and reaps the children before it drops the pools.
    children: Children,
    reaper: Reaper,
    /// The pools, in the order of the policy's pools.
    pools: Vec<Pool>,
    /// The pool of the workers that can be forked now, because the memory of the others is left out of a fork. `None`
    /// if the memory of several pools may be left out. The memory of the only pool is never left out.
    #[cfg(unix)]
    sharing: Option<usize>,
    observers: Observers,
    info: ServiceInfo,
    memory: MemoryReader,
    /// The requests of the program. `None` if the program has no callback, and so no handle.
    program_requests: Option<HandleReceiver>,
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only Linux has upgrades")
    )]
    upgrader: Upgrader,
    descriptors: &'a mut Descriptors,
    /// Whether the last call of `collect_signals` may have left signals.
    has_unread_signals: bool,
    /// The worker threads and processes that the policy counts as exited, although they have not ended.
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

    /// Runs the loop until the service ends. In a forked child, returns right after the fork.
    pub fn run(&mut self) -> Result<LoopExit> {
        self.emit_listening();
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

    fn send(&mut self, process: Process, signal: Signal) {
        if process.is_thread() {
            if let Some(pool) = self.policy.index_of(process) {
                self.pools[pool].launcher.signal_thread(process, signal);
            }
        } else if let Err(error) = self.children.send(process, signal) {
            self.observers.output().log(Level::Warn, &format_args!("{process}: {error:?}"));
        }
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
        self.close_retired();
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

    /// Flushes the observers that are due. The observer that is about to show the status of the service
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

fn signal_for(message: WorkerSignal) -> Signal {
    match message {
        WorkerSignal::Stop => Signal::Terminate,
        WorkerSignal::QuickStop => Signal::Quit,
        WorkerSignal::Abort => Signal::Abort,
        WorkerSignal::Kill => Signal::Kill,
        WorkerSignal::Reopen => Signal::User1,
    }
}
