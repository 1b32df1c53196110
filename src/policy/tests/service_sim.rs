//! [`ServiceSim`]: a simulation of a service with several pools.

use super::observed::Observed;
use super::sim::{config, exited, refusal, some_time};
use crate::exit::Exit;
use crate::policy::*;

pub const UPGRADE: UpgradeConfig = UpgradeConfig { timeout: Duration::from_secs(60), refusal: None };

/// Returns the settings of a pool with the default settings of the simulations.
pub fn pool(name: &'static str, workers: usize) -> PoolConfig {
    PoolConfig { config: Config { pool: name, ..config(workers) }, optional: false, removed: false }
}

pub fn optional(name: &'static str, workers: usize) -> PoolConfig {
    PoolConfig { optional: true, ..pool(name, workers) }
}

/// A call of one of the methods of [`Service`] that take an event or a command.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    Started(Process),
    StartFailed { pool: usize, id: usize },
    Ready(Process),
    Beat(Process),
    Retire(Process),
    StopAll(Process),
    StopPool(Process),
    Exited(ExitedProcess),
    AbandonedExited(Process),
    ReachedCall(Process),
    CoreDump(Process),
    WorkLeft { pool: usize, id: usize },
    Request { to: Option<usize>, request: Request },
    ProgramStop { to: Option<usize> },
    LimitWorkers { pool: usize, processes: usize },
    Interruption,
    ExtendDeadlines,
    Timeout,
    ExecuteRequests,
}

impl Input {
    fn apply(self, service: &mut Service, now: Instant) {
        match self {
            Input::Started(process) => service.handle_started(now, process),
            Input::StartFailed { pool, id } => service.handle_start_failed(now, pool, id, refusal(id)),
            Input::Ready(process) => service.handle_ready(now, process),
            Input::Beat(process) => service.handle_beat(now, process),
            Input::Retire(process) => service.handle_retire(now, process),
            Input::StopAll(process) => service.handle_stop_all(now, process),
            Input::StopPool(process) => service.handle_stop_pool(now, process),
            Input::Exited(exited) => service.handle_exited(now, exited),
            Input::AbandonedExited(process) => service.handle_abandoned_exited(now, process),
            Input::ReachedCall(process) => service.handle_reached_call(process),
            Input::CoreDump(process) => service.handle_core_dump(now, process),
            Input::WorkLeft { pool, id } => service.handle_work_left(now, pool, id),
            Input::Request { to, request } => service.handle_request(now, to, request),
            Input::ProgramStop { to } => service.handle_program_stop(now, to),
            Input::LimitWorkers { pool, processes } => service.limit_workers(pool, processes),
            Input::Interruption => service.handle_interruption(now),
            Input::ExtendDeadlines => service.extend_deadlines(now),
            Input::Timeout => service.handle_timeout(now),
            Input::ExecuteRequests => service.execute_requests(now),
        }
    }

    /// Applies the call to a policy that is used alone.
    fn apply_alone(self, policy: &mut Policy, now: Instant) {
        match self {
            Input::Started(process) => policy.handle_started(now, process),
            Input::StartFailed { id, .. } => policy.handle_start_failed(now, id, refusal(id)),
            Input::Ready(process) => policy.handle_ready(now, process.id, process.generation),
            Input::Beat(process) => policy.handle_beat(now, process.id, process.generation),
            Input::Retire(process) => policy.handle_retire(now, process),
            Input::StopAll(process) | Input::StopPool(process) => policy.handle_stop_all(now, process),
            Input::Exited(exited) => policy.handle_exited(now, exited),
            Input::AbandonedExited(process) => policy.handle_abandoned_exited(now, process),
            Input::ReachedCall(process) => policy.handle_reached_call(process.id),
            Input::CoreDump(process) => policy.handle_core_dump(now, process),
            Input::WorkLeft { id, .. } => policy.handle_work_left(now, id),
            Input::Request { request, .. } => policy.handle_request(now, request),
            Input::ProgramStop { .. } => policy.handle_program_stop(now),
            Input::LimitWorkers { processes, .. } => policy.limit_workers(processes),
            Input::Interruption => policy.handle_interruption(now),
            Input::ExtendDeadlines => policy.extend_deadlines(now),
            Input::Timeout => policy.handle_timeout(now),
            Input::ExecuteRequests => policy.execute_requests(now),
        }
    }

    /// Returns the only pool that may change. `None` if the call concerns all pools.
    fn concerns(self, service: &Service) -> Option<usize> {
        match self {
            Input::Started(process)
            | Input::Ready(process)
            | Input::Beat(process)
            | Input::Retire(process)
            | Input::StopPool(process)
            | Input::AbandonedExited(process)
            | Input::ReachedCall(process)
            | Input::CoreDump(process)
            | Input::Exited(ExitedProcess { process, .. }) => service.index_of(process),
            Input::StartFailed { pool, .. } | Input::WorkLeft { pool, .. } | Input::LimitWorkers { pool, .. } => {
                Some(pool)
            }
            Input::Request { to, .. } | Input::ProgramStop { to } => to,
            Input::StopAll(_)
            | Input::Interruption
            | Input::ExtendDeadlines
            | Input::Timeout
            | Input::ExecuteRequests => None,
        }
    }
}

/// A simulation of the processes and the clock around the policy of a service. See [`Sim`](super::sim::Sim), which
/// simulates a single pool.
pub struct ServiceSim {
    pub service: Service,
    /// The policy of the only pool. It gets the same calls and must return the same actions.
    twin: Option<Policy>,
    pub now: Instant,
    pub pools: Vec<Observed>,
    /// The lines of all events, in their order.
    pub log: Vec<String>,
    pub is_optional: Vec<bool>,
    /// Whether the stop of this pool was requested, or its failure was reported.
    may_stop: Vec<bool>,
    may_stop_all: bool,
    pub ended: Vec<bool>,
    /// Whether no more than one pool may roll at a time, because no rolling restart of a single pool was requested.
    pub rolls_one_by_one: bool,
    /// Whether the simulation checks that a call that concerns one pool does not change another.
    pub checks_isolation: bool,
    pub actions_per_event: usize,
    /// Whether the checker of an upgrade runs.
    pub is_checking: bool,
    /// Whether the policy has requested the execution of the new program.
    pub is_executing: bool,
}

impl ServiceSim {
    pub fn new(pools: Vec<PoolConfig>) -> ServiceSim {
        let mut sim = ServiceSim::before_start(pools, 1);
        sim.run_actions();
        sim
    }

    /// Returns a service that has not executed any action yet.
    pub fn before_start(pools: Vec<PoolConfig>, seed: u64) -> ServiceSim {
        let now = some_time();
        let count = pools.len();
        let is_optional = pools.iter().map(|pool| pool.optional && count > 1).collect();
        ServiceSim {
            service: Service::new(pools, UPGRADE, seed, now),
            twin: None,
            now,
            pools: (0..count).map(|_| Observed::default()).collect(),
            log: Vec::new(),
            is_optional,
            may_stop: vec![false; count],
            may_stop_all: false,
            ended: vec![false; count],
            rolls_one_by_one: true,
            checks_isolation: true,
            actions_per_event: usize::MAX,
            is_checking: false,
            is_executing: false,
        }
    }

    /// Returns a service with one pool, next to a policy with the same settings that must do the same.
    pub fn with_twin(pool: PoolConfig, seed: u64) -> ServiceSim {
        let mut sim = ServiceSim::before_start(vec![pool.clone()], seed);
        sim.twin = Some(Policy::new(pool.config, seed, sim.now));
        sim
    }

    /// Makes a call, without executing the actions that follow.
    pub fn tell(&mut self, input: Input) {
        self.note_stop_request(input);
        let concerned = input.concerns(&self.service).filter(|_| self.checks_isolation && self.pools.len() > 1);
        let before = concerned.map(|index| self.snapshot_of_others(index));
        input.apply(&mut self.service, self.now);
        if let Some((index, before)) = concerned.zip(before).filter(|&(index, _)| !self.stops_service(index)) {
            assert_eq!(self.snapshot_of_others(index), before, "{input:?} has changed another pool");
        }
        if let Some(twin) = &mut self.twin {
            input.apply_alone(twin, self.now);
        }
    }

    /// Makes a call, and executes the actions that follow.
    pub fn run(&mut self, input: Input) {
        self.tell(input);
        self.run_actions();
    }

    fn snapshot_of_others(&self, index: usize) -> Vec<String> {
        let others = (0..self.pools.len()).filter(|&other| other != index);
        others.map(|other| format!("{:?}", self.service.pool(other))).collect()
    }

    /// Returns whether this pool stops because of a failure that stops the service.
    fn stops_service(&self, index: usize) -> bool {
        let stop = self.service.pool(index).stop.as_ref();
        !self.is_optional[index] && stop.is_some_and(|stop| stop.outcome.as_ref().map_or(true, Reason::is_failure))
    }

    fn note_stop_request(&mut self, input: Input) {
        match input {
            Input::StopAll(_)
            | Input::ProgramStop { to: None }
            | Input::Request { to: None, request: Request::Stop | Request::QuickStop } => self.may_stop_all = true,
            Input::ProgramStop { to: Some(index) }
            | Input::Request { to: Some(index), request: Request::Stop | Request::QuickStop } => {
                self.may_stop[index] = true;
            }
            Input::StopPool(process) => {
                let index = self.service.index_of(process).expect("a pool");
                self.may_stop[index] = true;
            }
            Input::Request { to: Some(_), request: Request::Roll } => self.rolls_one_by_one = false,
            _ => {}
        }
    }

    /// Records the failure of a pool.
    fn note_failure(&mut self, index: usize) {
        self.may_stop[index] = true;
        self.may_stop_all |= !self.is_optional[index];
    }

    /// Executes the actions of the policies, and checks the invariants.
    pub fn run_actions(&mut self) {
        // Each turn executes the requests and then all actions, so the number of turns without an event is limited.
        for turn in 0.. {
            assert!(turn < 4 * self.pools.len() + 8, "the requests never end");
            if self.run_turn() {
                break;
            }
        }
        for (index, observed) in self.pools.iter().enumerate() {
            observed.check(self.service.policy_mut(index));
        }
        if let Some(twin) = &mut self.twin {
            assert_eq!(self.service.next_deadline(), twin.next_deadline());
            assert_eq!(self.service.up(), twin.up());
            assert_eq!(self.service.is_stopping(), twin.is_stopping());
        }
    }

    /// Executes requests and actions. Returns whether nothing is left to do until the next event.
    fn run_turn(&mut self) -> bool {
        self.note_draining();
        let is_idle = (0..self.pools.len()).all(|index| self.service.pool(index).actions.is_empty());
        if is_idle && self.service.has_requests() {
            for (index, observed) in self.pools.iter_mut().enumerate() {
                observed.note_requests(self.service.pool(index));
            }
            self.tell(Input::ExecuteRequests);
            self.note_draining();
        }
        for _ in 0..self.actions_per_event {
            let Some((index, action)) = self.poll_action() else {
                self.pools.iter_mut().for_each(|observed| observed.scaling = false);
                return !self.service.has_requests();
            };
            self.execute(index, action);
        }
        true
    }

    fn note_draining(&mut self) {
        for (index, observed) in self.pools.iter_mut().enumerate() {
            observed.delays_actions = self.actions_per_event < usize::MAX;
            observed.note_draining(self.service.pool(index));
        }
    }

    fn poll_action(&mut self) -> Option<(usize, Action)> {
        let polled = self.service.poll_action();
        if let Some(twin) = &mut self.twin {
            let action = polled.as_ref().map(|(_, action)| action);
            assert_eq!(format!("{action:?}"), format!("{:?}", twin.poll_action()));
        }
        polled
    }

    fn execute(&mut self, index: usize, action: Action) {
        let name = self.name(index);
        match action {
            Action::Start { id, generation } => self.start(index, id, generation),
            Action::Send { process, message } => {
                assert_eq!(process.pool, name);
                self.pools[index].send(self.service.pool(index), self.now, process, message);
            }
            Action::Abandon { process } => {
                assert_eq!(process.pool, name);
                if self.pools[index].abandon(process) {
                    self.tell(Input::Exited(exited(process, Exit::Stale)));
                }
            }
            Action::Emit(event) => self.note_event(index, &event),
            Action::Check => {
                assert!(!self.is_checking, "a checker runs already");
                self.is_checking = true;
            }
            Action::EndCheck => {
                assert!(self.is_checking, "no checker runs");
                self.is_checking = false;
            }
            Action::StartTrial { id, generation } => self.start(index, id, generation),
            Action::Exec => {
                let queued = (0..self.pools.len()).any(|index| !self.service.pool(index).actions.is_empty());
                assert!(!queued && !self.is_checking, "the execution would lose actions");
                self.is_executing = true;
            }
        }
    }

    fn start(&mut self, index: usize, id: usize, generation: u32) {
        assert!(!self.service.is_closed(index), "child {id} started while stopping");
        assert!(!self.ended[index], "child {id} started after the end");
        if self.pools[index].refuses_starts {
            if self.service.pool(index).needs_start(id) {
                self.note_failure(index);
            }
            return self.tell(Input::StartFailed { pool: index, id });
        }
        let process = self.pools[index].start(self.service.pool(index), self.now, id, generation);
        self.tell(Input::Started(process));
    }

    fn note_event(&mut self, index: usize, event: &Event) {
        let of_service = matches!(
            event,
            Event::RequestIgnored { .. }
                | Event::UpgradeStarted
                | Event::UpgradeAborted { .. }
                | Event::UpgradeFinished
        );
        assert!(of_service || event.pool() == self.name(index), "{event}");
        match event {
            Event::RestartLimitReached { .. } | Event::StartupFailed { .. } => self.note_failure(index),
            Event::Stopping { .. } => {
                assert!(self.may_stop_all || self.may_stop[index], "pool {index} stops for no reason {:#?}", self.log);
                assert!(!self.ended[index], "pool {index} stops after its end");
            }
            Event::PoolEnded { .. } => {
                assert!(!self.ended[index], "pool {index} ends twice");
                assert!(self.pools[index].alive.is_empty(), "pool {index} has processes at its end");
                self.ended[index] = true;
            }
            _ => {}
        }
        self.pools[index].note_event(self.service.pool(index), self.now, event);
        self.log.push(event.to_string());
        let rolling = self.pools.iter().filter(|observed| observed.rolling).count();
        let is_stopping = self.service.is_stopping();
        assert!(rolling == 0 || self.service.is_rolling() || is_stopping, "{rolling} pools roll");
        assert!(rolling <= 1 || !self.rolls_one_by_one, "{rolling} pools roll");
    }

    /// Lets the checker succeed. `pools` are the pools that need a trial worker.
    pub fn pass_check(&mut self, pools: &[usize]) {
        let trial = |&index: &usize| {
            let Config { ready_timeout, workers, .. } = self.service.pool(index).config;
            TrialPool { index, ready_timeout, workers }
        };
        let trials = pools.iter().map(trial).collect();
        self.pass_check_of(trials);
    }

    pub fn pass_check_of(&mut self, trials: Vec<TrialPool>) {
        assert!(std::mem::take(&mut self.is_checking), "no checker runs");
        self.service.handle_check_passed(self.now, trials);
        self.run_actions();
    }

    /// Lets the checker or the execution of the new program fail.
    pub fn fail_upgrade(&mut self, reason: &str) {
        self.is_checking = false;
        self.is_executing = false;
        self.service.handle_upgrade_failed(self.now, reason.to_owned());
        self.run_actions();
    }

    /// Executes the new program, which calls with these settings. The first pools are those of the old program.
    pub fn adopt(&mut self, pools: Vec<PoolConfig>) {
        let taken = self.now;
        let snapshot = self.service.snapshot(taken);
        for (index, pool) in snapshot.pools.iter().enumerate() {
            let starts_again = pool.condition == PoolCondition::Failed;
            self.pools[index].adopt(starts_again);
            self.ended[index] &= !starts_again;
            let children = pool.slots.iter().flat_map(|slot| &slot.children);
            // Without a ready timeout in the old program, these processes have not reported that they are ready.
            for child in children.filter(|child| matches!(child.role, ChildRole::Trial | ChildRole::Serving)) {
                let Process { id, generation, .. } = child.process;
                self.pools[index].alive.get_mut(&(id, generation)).expect("alive").ready = true;
            }
        }
        self.is_optional = pools.iter().map(|pool| pool.removed || pool.optional && pools.len() > 1).collect();
        for pool in &pools[snapshot.pools.len()..] {
            self.pools.push(Observed::default());
            self.may_stop.push(pool.removed);
            self.ended.push(false);
        }
        for (index, _) in pools.iter().enumerate().filter(|(_, pool)| pool.removed) {
            self.may_stop[index] = true;
        }
        self.service = Service::adopt(pools, UPGRADE, snapshot.clone(), 1, taken, self.now);
        self.is_executing = false;
        self.is_checking = false;
        check_adoption(&snapshot, &self.service.snapshot(taken));
        self.run_actions();
    }

    pub fn name(&self, index: usize) -> &'static str {
        self.service.pool(index).config.pool
    }

    pub fn request(&mut self, request: Request) {
        self.run(Input::Request { to: None, request });
    }

    pub fn request_in(&mut self, pool: usize, request: Request) {
        self.run(Input::Request { to: Some(pool), request });
    }

    pub fn process(&self, pool: usize, id: usize, generation: u32) -> Process {
        self.pools[pool].alive[&(id, generation)].process
    }

    pub fn ready(&mut self, pool: usize, id: usize, generation: u32) {
        self.pools[pool].alive.get_mut(&(id, generation)).expect("alive").ready = true;
        self.run(Input::Ready(self.process(pool, id, generation)));
    }

    pub fn end(&mut self, pool: usize, id: usize, generation: u32, exit: Exit) {
        self.end_with(pool, id, generation, |process| exited(process, exit));
    }

    /// Ends a process. `facts` returns the facts about the exit.
    pub fn end_with(&mut self, pool: usize, id: usize, generation: u32, facts: impl FnOnce(Process) -> ExitedProcess) {
        let process = self.pools[pool].exit(self.now, id, generation);
        let exited = facts(process);
        if exited.nested_call {
            self.pools[pool].nested.push(process);
        }
        self.run(Input::Exited(exited));
    }

    /// Ends every process of the pool that the policy has asked to stop.
    pub fn end_stopped(&mut self, pool: usize) {
        for (id, generation) in self.alive(pool) {
            if self.sent(pool, id, generation).contains(&WorkerSignal::Stop) {
                self.end(pool, id, generation, Exit::Code(0));
            }
        }
    }

    /// Moves the clock by `time`. On the way, lets the policies handle every deadline at its time.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(deadline) = self.service.next_deadline().filter(|&deadline| deadline <= until) {
            self.wake_at(deadline);
        }
        self.now = until;
    }

    pub fn wake_at(&mut self, at: Instant) {
        self.now = self.now.max(at);
        self.tell(Input::ExtendDeadlines);
        for pool in 0..self.pools.len() {
            let policy = self.service.pool(pool);
            let draining = if self.pools[pool].has_work { policy.draining(self.now) } else { Vec::new() };
            let kills = policy.kills_due(self.now);
            draining.into_iter().for_each(|id| self.tell(Input::WorkLeft { pool, id }));
            for process in kills {
                if self.pools[pool].dumping.contains(&(process.id, process.generation)) {
                    self.tell(Input::CoreDump(process));
                }
            }
        }
        self.run(Input::Timeout);
        let next = self.service.next_deadline();
        assert!(next.is_none_or(|next| next > self.now), "the next deadline is in the future");
    }

    pub fn alive(&self, pool: usize) -> Vec<(usize, u32)> {
        self.pools[pool].alive.keys().copied().collect()
    }

    pub fn sent(&self, pool: usize, id: usize, generation: u32) -> &[WorkerSignal] {
        &self.pools[pool].alive[&(id, generation)].sent
    }

    /// Ends every process to which the policy has sent SIGKILL.
    pub fn exit_killed(&mut self) {
        for pool in 0..self.pools.len() {
            for (id, generation) in self.alive(pool) {
                let is_blocked = self.pools[pool].blocked.contains(&(id, generation));
                if !is_blocked && self.sent(pool, id, generation).contains(&WorkerSignal::Kill) {
                    self.end(pool, id, generation, Exit::Signal(9));
                }
            }
        }
    }

    pub fn logged(&self, line: &str) -> bool {
        self.log.iter().any(|logged| logged.contains(line))
    }

    /// Returns the lines with this text that were logged since the last call of this method, and forgets all lines.
    pub fn take_log(&mut self, text: &str) -> Vec<String> {
        let log = std::mem::take(&mut self.log);
        log.into_iter().filter(|line| line.contains(text)).collect()
    }

    pub fn outcome(&mut self) -> Outcome {
        let twin = self.twin.as_mut().map(|twin| twin.poll_end().expect("the end"));
        let outcome = self.service.poll_end().expect("the end");
        assert!(twin.is_none_or(|twin| format!("{twin:?}") == format!("{outcome:?}")));
        outcome
    }

    /// Returns the reason of each pool.
    pub fn reasons(&self) -> Vec<Reason> {
        self.service.reports().iter().map(|pool| pool.reason().clone()).collect()
    }
}

/// Checks that the new program has each process of the old one exactly once, with the same times.
fn check_adoption(before: &ServiceSnapshot, after: &ServiceSnapshot) {
    for before in &before.pools {
        let after = after.pools.iter().find(|pool| pool.name == before.name).expect("the pool is adopted");
        for before in &before.slots {
            let after = &after.slots[before.id];
            let times = |child: &ChildSnapshot| (child.process, child.age, child.ready_for, child.silent_for);
            let sorted = |slot: &SlotSnapshot| {
                let mut children: Vec<_> = slot.children.iter().map(times).collect();
                children.sort_by_key(|child| child.0.generation);
                children
            };
            assert_eq!(sorted(before), sorted(after));
            let counts = |slot: &SlotSnapshot| (slot.generation, slot.processes, slot.restarts, slot.exit);
            assert_eq!(counts(before), counts(after));
            for child in &before.children {
                let adopted = after.children.iter().find(|after| after.process == child.process).expect("a process");
                assert!(fits(child.role, adopted.role), "{child:?} became {adopted:?}");
            }
        }
    }
}

/// Returns whether the new program may give a process with the first role the second one.
fn fits(before: ChildRole, after: ChildRole) -> bool {
    let is_stopping = matches!(after, ChildRole::Stopping { .. } | ChildRole::Draining { .. });
    match before {
        ChildRole::Trial => after == ChildRole::Serving || is_stopping,
        ChildRole::Serving | ChildRole::NotReady { .. } | ChildRole::Probation { .. } => before == after || is_stopping,
        ChildRole::Aborting { kill_in } => before == after || after == ChildRole::Stopping { kill_in },
        // A removed worker without its own sockets in the new program has nothing to drain.
        ChildRole::Draining { .. } => before == after || is_stopping,
        ChildRole::Stopping { .. } | ChildRole::Killed { .. } => before == after,
    }
}
