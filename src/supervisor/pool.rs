//! What the parent has for each pool: the launcher, the shared memory and the sockets.

use crate::backend::{ChildExit, Launcher, StartRequest, Started};
use crate::error::Result;
use crate::exit::Process;
use crate::listener::{Listeners, Sockets};
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use crate::scoreboard::SlotHandle;
use crate::scoreboard::{LastMessages, Scoreboard, SlotLease, Work, WorkerMessage};
use crate::sys::ChildHandle;
use crate::worker::Worker;

pub(super) struct Pool {
    pub name: &'static str,
    /// The number of workers that the pool starts with.
    pub initial_workers: usize,
    pub launcher: Box<dyn Launcher>,
    pub scoreboard: Option<Scoreboard>,
    pub sockets: Sockets,
}

/// The process in which [`Pool::start`] has returned.
pub(super) enum StartedIn {
    /// This process is the parent. The fields are the handle of the new process, or `None` if the worker is a thread,
    /// and the worker's status slot.
    Parent(Option<ChildHandle>, Option<usize>),
    /// This process is the forked worker.
    Child(Worker),
}

impl Pool {
    /// Starts a process or thread of worker `id`. `count` is the number of workers in the pool. `max_requests` is the
    /// number of units of work after which the process wakes the parent.
    ///
    /// Inlined, so that fewer stack frames are in use at a fork. The kernel copies the pages of these frames
    /// (copy-on-write).
    #[inline]
    pub fn start(&mut self, id: usize, generation: u32, count: usize, max_requests: Option<u64>) -> Result<StartedIn> {
        let slot = self.allocate().map_err(|error| error.starting(id))?;
        if let Some((scoreboard, slot)) = self.scoreboard.as_ref().zip(slot) {
            scoreboard.limit_work(slot, max_requests);
        }
        let listeners = self.sockets.of(id)?;
        let slot_handle = self.scoreboard.as_ref().zip(slot).map(|(scoreboard, slot)| scoreboard.slot_handle(slot));
        let request = StartRequest { pool: self.name, id, generation, count, slot_handle, listeners: &listeners };
        match self.launcher.start(request)? {
            Started::Child => Ok(StartedIn::Child(self.enter(id, generation, count, slot, listeners))),
            Started::Parent(child) => Ok(StartedIn::Parent(child, slot)),
        }
    }

    /// Returns a cleared status slot for a process that is about to be started. `None` if the pool has no shared
    /// memory.
    pub fn allocate(&mut self) -> Result<Option<usize>> {
        Ok(self.scoreboard.as_mut().map(Scoreboard::allocate).transpose()?)
    }

    /// Returns what gives a process access to its status slot.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub fn slot_handle(&self, slot: Option<usize>) -> Option<SlotHandle<'_>> {
        self.scoreboard.as_ref().zip(slot).map(|(scoreboard, slot)| scoreboard.slot_handle(slot))
    }

    /// Returns the worker in a process that has just been forked.
    fn enter(&mut self, id: usize, generation: u32, count: usize, slot: Option<usize>, listeners: Listeners) -> Worker {
        self.sockets.release_in_child();
        let status = self.scoreboard.as_ref().zip(slot).map(|(scoreboard, slot)| scoreboard.writer(slot));
        #[cfg(unix)]
        if let Some(scoreboard) = &self.scoreboard {
            scoreboard.close_inherited();
        }
        Worker::new(self.name, id, generation, count, status, listeners)
    }

    /// Sets whether the workers that are forked from now on have the memory of this pool. Does nothing if the pool does
    /// not fork its workers, because forked workers never have its memory.
    #[cfg(unix)]
    pub fn set_inherited(&self, yes: bool) -> Result<()> {
        match &self.scoreboard {
            Some(scoreboard) if self.launcher.forks() => Ok(scoreboard.set_inherited(yes)?),
            _ => Ok(()),
        }
    }

    /// Closes the descriptors of this pool in a forked worker of another pool. That worker must not hold the sockets of
    /// this pool open. Writes to no memory, because the kernel would have to copy it (copy-on-write).
    #[cfg(unix)]
    pub fn close_inherited(&self) {
        self.launcher.release_in_child();
        self.sockets.close_inherited();
        if let Some(scoreboard) = &self.scoreboard {
            scoreboard.close_inherited();
        }
    }

    pub fn assign(&mut self, slot: Option<usize>, process: Process) {
        if let Some((scoreboard, slot)) = self.scoreboard.as_mut().zip(slot) {
            scoreboard.assign(slot, process);
        }
    }

    pub fn read_messages(&mut self) -> Vec<WorkerMessage> {
        self.scoreboard.as_mut().map(Scoreboard::read_messages).unwrap_or_default()
    }

    pub fn take_thread_exits(&mut self) -> Vec<ChildExit> {
        self.launcher.take_thread_exits()
    }

    pub fn beats(&self) -> impl Iterator<Item = Process> {
        self.scoreboard.iter().flat_map(Scoreboard::beats)
    }

    /// Returns the work counts of all processes.
    pub fn works(&self) -> impl Iterator<Item = (Process, Work)> {
        self.scoreboard.iter().flat_map(Scoreboard::works)
    }

    /// Returns whether this process has reached the call that starts the service.
    pub fn has_reached(&self, process: Process) -> bool {
        self.scoreboard.as_ref().is_none_or(|scoreboard| scoreboard.has_reached(process))
    }

    /// Releases the status slot of a process that has ended, and returns its last messages.
    pub fn release(&mut self, process: Process, lease: SlotLease) -> LastMessages {
        self.scoreboard.as_mut().map(|scoreboard| scoreboard.release(process, lease)).unwrap_or_default()
    }
}
