//! Collects the requests of operators and of the program.

use std::time::Instant;

use super::EventLoop;
use crate::error::Result;
use crate::handle::{HandleReceiver, Target};
use crate::policy::Request;
use crate::sys::{self, FEW_PROCESSES, Signal, SignalInfo};

/// The largest number of signals that the parent reads at once. The limit keeps a process that sends signals in a loop
/// from keeping the parent busy. The kinds of signals take turns, so the parent still reads each signal that is
/// pending.
const MAX_SIGNALS: usize = 64;

impl EventLoop<'_> {
    /// Passes all pending requests to the policy, those of the program as well. For each SIGCHLD, reaps the child that
    /// the signal names. Returns whether any signal was pending. If signals arrive faster than this method reads them,
    /// it leaves some of them to the next call.
    pub(super) fn collect_signals(&mut self) -> Result<bool> {
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

    pub(super) fn has_program_requests(&self) -> bool {
        self.program_requests.as_ref().is_some_and(HandleReceiver::has_requests)
    }

    /// Passes the requests to the policy that the program has made through its handles.
    pub(super) fn take_program_requests(&mut self) {
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
