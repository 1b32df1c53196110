//! Starts workers.

use std::time::Instant;

use super::EventLoop;
use crate::error::Result;
use crate::event::Event;
use crate::exit::Process;
use crate::supervisor::pool::StartedIn;
use crate::sys::ChildHandle;
use crate::worker::Worker;

impl EventLoop<'_> {
    /// Starts a worker process or thread. Returns the worker if this process is a forked child, and `None` in the
    /// parent.
    pub(super) fn start(&mut self, at: usize, id: usize, generation: u32) -> Option<Worker> {
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

    /// Closes the descriptors of the other pools and of an upgrade in a forked worker.
    #[cfg(unix)]
    fn close_others(&self, own: usize) {
        let others = self.pools.iter().enumerate().filter(|&(at, _)| at != own);
        others.for_each(|(_, pool)| pool.close_inherited());
        self.upgrader.close_inherited();
    }

    pub(super) fn handle_started(
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
}
