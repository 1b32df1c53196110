//! Workers are forks of the parent.

use std::time::Instant;

use super::children::Children;
use super::{ChildExit, Launcher, StartRequest, Started};
use crate::error::{Error, Result};
use crate::exit::Process;
use crate::setup::WorkerSetup;
use crate::sys::{self, ForkError, Forked, Lifeline, Signal, Threads};

#[derive(Debug)]
pub(crate) struct Fork {
    children: Children,
    setup: Option<WorkerSetup>,
    lifeline: Lifeline,
}

impl Fork {
    /// Refused with more than one thread, before anything is made or taken.
    pub fn check() -> Result<()> {
        match sys::thread_count()? {
            Threads::Several(count) => Err(Error::threads(count)),
            Threads::One => Ok(()),
        }
    }

    pub fn new(setup: Option<WorkerSetup>) -> Result<Fork> {
        Ok(Fork { children: Children::default(), setup, lifeline: Lifeline::new()? })
    }
}

impl Launcher for Fork {
    fn flush(&mut self) {
        sys::flush_output();
    }

    fn start(&mut self, StartRequest { id, generation, .. }: StartRequest<'_>) -> Result<Started> {
        match sys::fork() {
            Ok(Forked::Parent(child)) => Ok(Started::Parent(Some(self.children.add(id, generation, child)))),
            Ok(Forked::Child) => {
                if let Some(setup) = &self.setup {
                    setup.for_worker(id).apply(id);
                }
                self.lifeline.hold();
                Ok(Started::Child)
            }
            Err(ForkError::Threads(count)) => Err(Error::threads(count).starting(id)),
            Err(ForkError::Call(error)) => Err(Error::from(error).starting(id)),
        }
    }

    fn send(&mut self, process: Process, signal: Signal) -> Result<()> {
        self.children.send(process, signal)
    }

    fn reap_one(&mut self, pid: u32) -> Result<Option<ChildExit>> {
        self.children.reap_one(pid)
    }

    fn reap_missed(&mut self) -> Result<Vec<ChildExit>> {
        self.children.reap_missed()
    }

    fn reap_all(&mut self) -> Result<Vec<ChildExit>> {
        self.children.reap_all()
    }

    fn next_look(&self) -> Option<Instant> {
        self.children.next_look()
    }
}
