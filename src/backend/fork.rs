//! Workers are forks of the parent.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::{Backend, Started};
use crate::error::{Error, Result};
use crate::exit::{Exit, Process};
use crate::sys::{self, ForkError, Forked, Lifeline, Signal, Threads};

/// The children that are not reaped yet, by pid.
///
/// A tree, because the keys of a `HashMap` would be made here and shared by all the children, for every map of theirs.
#[derive(Debug)]
pub(crate) struct Fork {
    children: BTreeMap<u32, Process>,
    lifeline: Lifeline,
}

impl Fork {
    /// Refused with more than one thread, before anything is forked.
    pub fn new() -> Result<Fork> {
        if let Threads::Several(count) = sys::thread_count()? {
            return Err(Error::threads(count));
        }
        Ok(Fork { children: BTreeMap::new(), lifeline: Lifeline::new()? })
    }

    /// A child of the program's own has ended, and waits to be reaped by the program. While it does, it may hide ours.
    fn sweep(&mut self, ended: &mut Vec<(Process, Exit)>) -> Result<()> {
        let pids: Vec<u32> = self.children.keys().copied().collect();
        for pid in pids {
            ended.extend(self.reap_one(pid)?);
        }
        Ok(())
    }
}

impl Backend for Fork {
    fn start(&mut self, id: usize, generation: u32) -> Result<Started> {
        match sys::fork() {
            Ok(Forked::Parent(pid)) => {
                self.children.insert(pid, Process { id, generation, pid });
                Ok(Started::Pid(pid))
            }
            Ok(Forked::Child) => {
                // They are the parent's; to let go of them one by one would copy the pages they are on.
                std::mem::forget(std::mem::take(&mut self.children));
                self.lifeline.hold();
                Ok(Started::Here)
            }
            Err(ForkError::Threads(count)) => Err(Error::threads(count).starting(id)),
            Err(ForkError::Call(error)) => Err(Error::from(error).starting(id)),
        }
    }

    fn send(&mut self, process: Process, signal: Signal) -> Result<()> {
        match self.children.contains_key(&process.pid) {
            true => Ok(sys::send(process.pid, signal)?),
            false => Ok(()),
        }
    }

    fn reap_one(&mut self, pid: u32) -> Result<Option<(Process, Exit)>> {
        if !self.children.contains_key(&pid) {
            return Ok(None);
        }
        let Some(status) = sys::reap(pid)? else { return Ok(None) };
        Ok(self.children.remove(&pid).map(|process| (process, exit_of(status))))
    }

    fn reap_all(&mut self) -> Result<Vec<(Process, Exit)>> {
        let mut ended = Vec::new();
        while let Some(pid) = sys::peek_exited()? {
            if let Some(worker) = self.reap_one(pid)? {
                ended.push(worker);
            } else if sys::is_init() {
                sys::reap(pid)?;
            } else {
                self.sweep(&mut ended)?;
                break;
            }
        }
        Ok(ended)
    }
}

/// Whatever ended the supervision, nobody is left behind.
impl Drop for Fork {
    fn drop(&mut self) {
        for &pid in self.children.keys() {
            let _ = sys::send(pid, Signal::Kill);
        }
        for &pid in self.children.keys() {
            let _ = sys::reap_blocking(pid);
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    status.code().map(Exit::Code).or(status.signal().map(Exit::Signal)).unwrap_or(Exit::Code(-1))
}
