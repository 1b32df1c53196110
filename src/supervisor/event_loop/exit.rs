//! Handles the exits of workers.

use std::time::Instant;

use ::log::Level;

use super::EventLoop;
use crate::backend::{ChildExit, ExitCause};
use crate::event::Event;
use crate::exit::{Exit, OutOfMemory, Process};
use crate::failure;
use crate::policy::ExitedProcess;

impl EventLoop<'_> {
    /// Handles an exit. First handles the last messages that the exited process has written.
    pub(super) fn handle_exit(&mut self, ChildExit { process, exit, cause, lease }: ChildExit) {
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

    /// Counts a process as exited although SIGKILL has not ended it. Does nothing if it has been reaped meanwhile.
    pub(super) fn abandon(&mut self, process: Process) {
        if self.children.abandon(process) {
            self.reaper.add([ChildExit { process, exit: Exit::Stale, cause: ExitCause::Stale, lease: None }]);
        }
    }
}
