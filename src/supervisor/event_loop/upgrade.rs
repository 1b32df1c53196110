//! Carries out an upgrade, as the policy decides: opens the program on disk, starts the processes that try it, and
//! executes it.
//!
//! The program is opened once. The checker, the trial workers and the parent itself execute this open file, so a file
//! that is replaced in the meantime does not matter.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use ::log::Level;

use super::EventLoop;
use crate::backend::candidate::{Candidate, CheckAnswer, FORMATS, PoolToTry, StartedCandidate, TrialRequest};
use crate::backend::draw_secret;
use crate::error::{Error, Result};
use crate::exit::{Exit, Process};
use crate::listener::{self, BoundListener, Passed, Retired};
use crate::policy::TrialPool;
use crate::prefork::UpgradeSettings;
use crate::supervisor::handover::{Adoption, Outgoing, Text};
use crate::supervisor::pool::Pool;
use crate::sys::{self, ChildHandle, NewProgram, Signal};

/// The id of the process that checks the new program. No worker has this id.
const CHECKER: usize = usize::MAX;

/// The parent warns if the new program takes longer than this to reach its call, because nothing supervises the workers
/// in this time.
const LONG_STARTUP: Duration = Duration::from_secs(1);

/// The part of an upgrade that the supervisor carries out.
#[derive(Debug)]
pub(in crate::supervisor) struct Upgrader {
    settings: UpgradeSettings,
    /// `None` if no upgrade is in progress. Boxed to keep [`EventLoop`] small: each of its pages to which the parent
    /// writes between two forks is copied for each worker (copy-on-write).
    attempt: Option<Box<Attempt>>,
    /// The number of checkers that have been started. It is the generation of the next one.
    checkers: u32,
    /// The sockets that only processes of the program before the last upgrade use.
    retired: Option<Retired>,
}

#[derive(Debug)]
struct Attempt {
    program: NewProgram,
    begun: Instant,
    checker: Process,
    /// The process that checks the new program, until its answer is complete.
    check: Option<Candidate>,
    answer: Option<CheckAnswer>,
    /// The time from the start of the checker to its answer.
    startup: Duration,
    trials: Vec<Trial>,
    /// Whether the policy has decided to execute the program.
    is_exec_due: bool,
}

/// A trial worker.
#[derive(Debug)]
struct Trial {
    process: Process,
    candidate: Candidate,
}

impl Upgrader {
    pub fn new(settings: UpgradeSettings, retired: Option<Retired>) -> Upgrader {
        Upgrader { settings, attempt: None, checkers: 0, retired }
    }

    /// Returns whether this trial worker has reached its call. Returns `None` for other processes.
    fn has_reached(&mut self, process: Process) -> Option<bool> {
        let trial = self.trial(process)?;
        Some(trial.candidate.has_reached().unwrap_or(false))
    }

    /// Closes, in a forked worker, the descriptors of an upgrade that is in progress, and those of listeners that its
    /// program does not have. Otherwise the worker would keep these listeners open. Writes to no memory, because the
    /// kernel would have to copy it (copy-on-write).
    #[inline]
    pub fn close_inherited(&self) {
        self.retired.iter().for_each(Retired::close_inherited);
        let Some(Attempt { program, check, answer, trials, .. }) = self.attempt.as_deref() else { return };
        sys::close_inherited(program.as_fd());
        let trials = trials.iter().map(|trial| &trial.candidate);
        check.iter().chain(trials).for_each(Candidate::close_inherited);
        let new_sockets = answer.iter().flat_map(|answer| &answer.new_sockets);
        new_sockets.for_each(|socket| sys::close_inherited(socket.fd.as_fd()));
    }

    fn trial(&mut self, process: Process) -> Option<&mut Trial> {
        self.attempt.as_mut()?.trials.iter_mut().find(|trial| trial.process == process)
    }
}

impl EventLoop<'_> {
    /// Takes over the processes of the program before an upgrade. Handles what has happened since then: first stop
    /// requests, then the messages and the exits.
    pub(in crate::supervisor) fn adopt(&mut self, adoption: Adoption) -> Result<()> {
        adoption.processes().for_each(|process| self.register_adopted(process));
        for &process in adoption.others() {
            self.register_adopted(process);
            // SIGKILL has not ended it yet, so the end of the service does not wait for it.
            self.children.abandon(process);
            if process.id != CHECKER {
                self.stale.push(process);
            }
        }
        self.report_window(&adoption);
        // Before the start of a worker with an id that the old program did not have.
        self.update_listeners();
        self.collect_signals()?;
        // The signals of exits between the two programs may have coalesced.
        self.reaper.scan(&mut self.children)?;
        self.collect_signals()?;
        self.read_messages();
        while let Some(exit) = self.reaper.next_exit() {
            self.handle_exit(exit);
        }
        Ok(())
    }

    fn register_adopted(&mut self, process: Process) {
        if let Some(pid) = process.pid {
            self.children.add(process, ChildHandle::new(pid));
        }
    }

    /// Closes the parent's copies of the sockets that this program does not use, once all processes of the program
    /// before the upgrade have been asked to stop. After a rolling restart that was aborted, some of them may serve for
    /// long.
    pub(super) fn close_retired(&mut self) {
        let Some(retired) = &mut self.upgrader.retired else { return };
        if !self.policy.has_adopted_running() {
            retired.close();
        }
    }

    /// Opens the program on disk, and starts the process that checks it.
    pub(super) fn start_check(&mut self) {
        if let Err(reason) = self.try_start_check() {
            self.fail_upgrade(reason);
        }
    }

    fn try_start_check(&mut self) -> std::result::Result<(), String> {
        let bound = listener::bound();
        let passed = passed(&self.pools, &bound, self.upgrader.retired.as_ref());
        let own: Vec<RawFd> = passed.iter().map(|socket| socket.fd.as_raw_fd()).collect();
        let foreign = sys::foreign_listeners(&own);
        if !foreign.is_empty() {
            return Err(format!(
                "the new program would not get the listening sockets that this program has opened itself ({}); open \
                 them with taskfork::bind",
                foreign.join(", ")
            ));
        }
        let program = NewProgram::open(self.upgrader.settings.program.as_deref())?;
        let begun = Instant::now();
        let StartedCandidate { child, candidate } = Candidate::check(&program, &passed, FORMATS)?;
        let pid = child.pid();
        let checker = Process { pool: "", id: CHECKER, generation: self.upgrader.checkers, pid: Some(pid) };
        self.upgrader.checkers = self.upgrader.checkers.wrapping_add(1);
        self.children.add(checker, child);
        let path = program.path().display();
        self.observers.output().log(Level::Info, &format_args!("Checking the new program {path} (pid {pid})"));
        let registered = self.descriptors.register_candidate(&candidate);
        self.upgrader.attempt = Some(Box::new(Attempt {
            program,
            begun,
            checker,
            check: Some(candidate),
            answer: None,
            startup: Duration::ZERO,
            trials: Vec::new(),
            is_exec_due: false,
        }));
        registered.map_err(|error| error.to_string())
    }

    /// Reads what the checker has sent.
    pub(super) fn read_check(&mut self) {
        let Some(attempt) = &mut self.upgrader.attempt else { return };
        let Some(check) = &mut attempt.check else { return };
        match check.read_answer() {
            Ok(None) => {}
            Ok(Some(answer)) => {
                attempt.startup = attempt.begun.elapsed();
                attempt.answer = Some(answer);
                attempt.check = None;
                // It has nothing else to do.
                let checker = attempt.checker;
                self.send(checker, Signal::Kill);
            }
            Err(reason) => self.fail_upgrade(reason),
        }
    }

    /// Handles the exit of a checker. Returns whether the process is a checker.
    pub(super) fn handle_checker_exit(&mut self, process: Process, exit: Exit) -> bool {
        if process.id != CHECKER {
            return false;
        }
        self.read_check();
        let Some(attempt) = self.upgrader.attempt.as_mut().filter(|attempt| attempt.checker == process) else {
            return true;
        };
        if let Some(check) = &mut attempt.check {
            let reason = check.explain_exit(exit);
            self.fail_upgrade(reason);
        } else if let Some(answer) = &attempt.answer {
            let names: Vec<&str> = self.pools.iter().map(|pool| pool.name).collect();
            let pools = answer.pools_to_try(&names);
            let startup = attempt.startup;
            self.warn_of_startup(startup);
            let pools = pools.into_iter().map(|pool| self.trial_of(pool)).collect();
            self.policy.handle_check_passed(Instant::now(), pools);
        }
        true
    }

    fn trial_of(&self, PoolToTry { index, ready_timeout, workers }: PoolToTry) -> TrialPool {
        // Without shared memory, the trial worker cannot report that it is ready.
        let ready_timeout = ready_timeout.filter(|_| self.pools[index].scoreboard.is_some());
        TrialPool { index, ready_timeout, workers }
    }

    fn warn_of_startup(&mut self, startup: Duration) {
        if startup > LONG_STARTUP {
            let seconds = startup.as_secs_f64();
            let line = format!(
                "the new program takes {seconds:.1} s to reach its call; after it is executed, nothing supervises the \
                 workers in this time"
            );
            self.observers.output().log(Level::Warn, &line);
        }
    }

    /// Starts a process of the new program as worker `id`.
    pub(super) fn start_trial(&mut self, at: usize, id: usize, generation: u32) {
        match self.try_start_trial(at, id, generation) {
            Ok(StartedTrial { slot, candidate, child }) => {
                let process = Process { pool: self.pools[at].name, id, generation, pid: Some(child.pid()) };
                if let Some(attempt) = &mut self.upgrader.attempt {
                    attempt.trials.push(Trial { process, candidate });
                }
                self.handle_started(at, id, generation, slot, Some(child));
            }
            Err(reason) => {
                let error = Error::unfit("upgrade", reason).starting(id).in_pool(self.pools[at].name);
                self.policy.handle_start_failed(Instant::now(), at, id, error);
            }
        }
    }

    fn try_start_trial(&mut self, at: usize, id: usize, generation: u32) -> std::result::Result<StartedTrial, String> {
        let Some(Attempt { program, answer: Some(answer), .. }) = self.upgrader.attempt.as_deref() else {
            return Err("there is no upgrade".to_owned());
        };
        let slot = self.pools[at].allocate().map_err(|error| error.to_string())?;
        let bound = listener::bound();
        let mut sockets = passed(&self.pools, &bound, self.upgrader.retired.as_ref());
        sockets.extend(answer.new_sockets.iter().map(listener::Given::passed));
        let name = self.pools[at].name;
        let count = answer.pools.iter().find(|pool| pool.name == name).map_or(1, |pool| pool.workers);
        let slot_handle = self.pools[at].slot_handle(slot);
        let request = TrialRequest { pool: name, id, generation, count, slot_handle, passed: sockets };
        let StartedCandidate { child, candidate } = Candidate::start_worker(program, &request, FORMATS)?;
        Ok(StartedTrial { slot, candidate, child })
    }

    /// Handles the exit of a trial worker, before the policy handles it as the exit of a worker: its own refusal is a
    /// better reason than its exit status.
    pub(super) fn explain_trial_exit(&mut self, process: Process, exit: Exit) {
        let Some(trial) = self.upgrader.trial(process) else { return };
        let reason = trial.candidate.explain_exit(exit);
        self.fail_upgrade(reason);
    }

    /// Returns whether this trial worker has reached its call. Returns `None` for other processes.
    pub(super) fn trial_has_reached(&mut self, process: Process) -> Option<bool> {
        self.upgrader.has_reached(process)
    }

    /// Ends the process that checks the new program.
    pub(super) fn end_check(&mut self) {
        let Some(attempt) = self.upgrader.attempt.take() else { return };
        self.send(attempt.checker, Signal::Kill);
        discard_new_sockets(attempt.answer);
    }

    fn fail_upgrade(&mut self, reason: String) {
        self.end_check();
        self.policy.handle_upgrade_failed(Instant::now(), reason);
    }

    /// Forgets the new program, because the upgrade has ended. If it `has_succeeded`, no process of the old program is
    /// left.
    pub(super) fn forget_upgrade(&mut self, has_succeeded: bool) {
        if let Some(attempt) = self.upgrader.attempt.take() {
            discard_new_sockets(attempt.answer);
        }
        if has_succeeded {
            self.upgrader.retired = None;
        }
    }

    /// Reports how long nothing has supervised the workers.
    fn report_window(&mut self, adoption: &Adoption) {
        let time = adoption.since_exec();
        let level = if time > LONG_STARTUP { Level::Warn } else { Level::Debug };
        let seconds = time.as_secs_f64();
        let line = format!(
            "the new program has reached its call after {seconds:.3} s, in which nothing supervised the workers"
        );
        self.observers.output().log(level, &line);
    }

    /// Makes the loop execute the new program once it has handled everything that has happened.
    pub(super) fn request_exec(&mut self) {
        if let Some(attempt) = &mut self.upgrader.attempt {
            attempt.is_exec_due = true;
        }
    }

    /// Returns whether the policy has decided to execute the new program.
    pub(super) fn is_exec_due(&self) -> bool {
        self.upgrader.attempt.as_ref().is_some_and(|attempt| attempt.is_exec_due)
    }

    /// Executes the new program in this process, unless something has arrived that must be handled before. Returns only
    /// if the program was not executed, and then the old program goes on.
    pub(super) fn exec(&mut self) -> Result<()> {
        self.collect_signals()?;
        // The new program reads no message that this program has read.
        self.read_messages();
        // The new program cannot reap a process again, and would not learn its exit status.
        if self.reaper.has_exits() {
            return Ok(());
        }
        if self.policy.may_execute() {
            let reason = self.try_exec().unwrap_or_else(|error| error);
            // The signals are part of the state, and may have been read for it.
            self.has_unread_signals = true;
            self.fail_upgrade(reason);
        }
        Ok(())
    }

    /// Returns the reason why the new program cannot be executed.
    fn try_exec(&mut self) -> std::result::Result<String, String> {
        let Some(Attempt { program, answer: Some(answer), .. }) = self.upgrader.attempt.as_deref() else {
            return Err("there is no upgrade".to_owned());
        };
        let format = answer.format(&FORMATS).ok_or("the programs have no common format")?;
        let secret = draw_secret().map_err(|error| format!("{}: {}", error.call, error.source))?;
        let path = program.path().display();
        let line = format!("Executing the new program {path} (state format {format})");
        self.observers.output().log(Level::Info, &line);
        self.observers.output().flush();
        ::log::logger().flush();
        let bound = listener::bound();
        let Text { text, fds } = self.state(format, answer, &bound);
        Ok(program.exec(secret, &text, &fds, self.upgrader.settings.timeout()))
    }

    /// Returns the state that the new program needs.
    fn state<'s>(&'s self, format: u32, answer: &'s CheckAnswer, bound: &'s [BoundListener]) -> Text<'s> {
        let snapshot = self.policy.snapshot(Instant::now());
        let mut outgoing = Outgoing::new(format, snapshot, self.info.age(), self.descriptors.signal_handover());
        let mut scoreboards = self.pools.iter().filter_map(|pool| pool.scoreboard.as_ref());
        if let Some((receiver, scoreboard)) = self.descriptors.wake_receiver().zip(scoreboards.next()) {
            outgoing.add_doorbell(receiver, scoreboard.waker());
        }
        if let Some(pid_file) = self.descriptors.passed_pid_file() {
            outgoing.add_pid_file(pid_file);
        }
        for Pool { name, scoreboard, .. } in &self.pools {
            if let Some(scoreboard) = scoreboard {
                outgoing.add_board(name, scoreboard);
            }
        }
        outgoing.add_others(self.children.processes());
        for socket in passed(&self.pools, bound, self.upgrader.retired.as_ref()) {
            outgoing.add_socket(socket);
        }
        for socket in &answer.new_sockets {
            outgoing.add_socket(socket.passed());
        }
        outgoing.finish()
    }
}

/// Closes the sockets that the new program would have needed, and removes their files.
fn discard_new_sockets(answer: Option<CheckAnswer>) {
    if let Some(answer) = answer {
        listener::discard(answer.new_sockets);
    }
}

/// Returns all sockets of the service. The retired ones are among them, because the next program may need them again:
/// it may be the one from before the last upgrade.
fn passed<'a>(pools: &'a [Pool], bound: &'a [BoundListener], retired: Option<&'a Retired>) -> Vec<Passed<'a>> {
    let listened = pools.iter().flat_map(|pool| pool.sockets.passed());
    let retired = retired.into_iter().flat_map(Retired::passed);
    listened.chain(bound.iter().map(BoundListener::passed)).chain(retired).collect()
}

struct StartedTrial {
    slot: Option<usize>,
    candidate: Candidate,
    child: ChildHandle,
}
