//! Workers are forks of the parent.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::{Backend, Started};
use crate::error::{Error, Result};
use crate::exit::{Exit, Process};
use crate::sys::{self, ForkError, Forked, Lifeline, Signal, Threads};

/// Sorted by pid, because a `HashMap` would make its keys here, and all the children would share them for every map of
/// theirs; and in one piece, because what is written between two forks is copied for every child.
#[derive(Debug)]
pub(crate) struct Fork {
    /// Those that are not reaped yet.
    children: Vec<Process>,
    lifeline: Lifeline,
}

impl Fork {
    /// Refused with more than one thread, before anything is forked.
    pub fn new() -> Result<Fork> {
        if let Threads::Several(count) = sys::thread_count()? {
            return Err(Error::threads(count));
        }
        Ok(Fork { children: Vec::new(), lifeline: Lifeline::new()? })
    }

    /// A child of the program's own has ended, and waits to be reaped by the program. While it does, it may hide ours.
    fn sweep(&mut self, ended: &mut Vec<(Process, Exit)>) -> Result<()> {
        let pids: Vec<u32> = self.children.iter().map(|child| child.pid).collect();
        for pid in pids {
            ended.extend(self.reap_one(pid)?);
        }
        Ok(())
    }

    /// Where this child is, or would be.
    fn find(&self, pid: u32) -> std::result::Result<usize, usize> {
        self.children.binary_search_by_key(&pid, |child| child.pid)
    }
}

impl Backend for Fork {
    fn start(&mut self, id: usize, generation: u32) -> Result<Started> {
        match sys::fork() {
            Ok(Forked::Parent(pid)) => {
                if let Err(at) = self.find(pid) {
                    self.children.insert(at, Process { id, generation, pid });
                }
                Ok(Started::Pid(pid))
            }
            Ok(Forked::Child) => {
                self.lifeline.hold();
                Ok(Started::Here)
            }
            Err(ForkError::Threads(count)) => Err(Error::threads(count).starting(id)),
            Err(ForkError::Call(error)) => Err(Error::from(error).starting(id)),
        }
    }

    fn send(&mut self, process: Process, signal: Signal) -> Result<()> {
        match self.find(process.pid) {
            Ok(at) if self.children[at] == process => Ok(sys::send(process.pid, signal)?),
            // It has been reaped, and its pid may be another one's by now.
            _ => Ok(()),
        }
    }

    fn reap_one(&mut self, pid: u32) -> Result<Option<(Process, Exit)>> {
        let Ok(at) = self.find(pid) else { return Ok(None) };
        Ok(sys::reap(pid)?.map(|status| (self.children.remove(at), exit_of(status))))
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

/// Whatever ended the supervision, nobody is left behind. (In the parent: a worker forgets this without dropping it.)
impl Drop for Fork {
    fn drop(&mut self) {
        // One that has become another user's, and cannot be killed, is not waited for.
        self.children.retain(|child| sys::send(child.pid, Signal::Kill).is_ok());
        for child in &self.children {
            let _ = sys::reap_blocking(child.pid);
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    status.code().map(Exit::Code).or(status.signal().map(Exit::Signal)).unwrap_or(Exit::Code(-1))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_is_meant_for_a_process_that_was_reaped_does_not_reach_the_next_one_with_its_pid() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat(1)");
        let now = Process { id: 1, generation: 0, pid: cat.id() };
        let mut fork = Fork { children: vec![now], lifeline: Lifeline::new().expect("a lifeline") };
        fork.send(Process { id: 0, ..now }, Signal::Kill).expect("nothing to be done");
        cat.stdin.as_mut().expect("a pipe").write_all(b"!").expect("a reader");
        let mut echo = [0];
        cat.stdout.as_mut().expect("a pipe").read_exact(&mut echo).expect("it still lives");
        fork.send(now, Signal::Kill).expect("a signal");
        assert_eq!(cat.wait().expect("its status").signal(), Some(9));
        fork.children.clear();
    }
}
