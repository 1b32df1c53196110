//! The processes that a backend has started and that are not reaped yet.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::error::Result;
use crate::exit::{Exit, Process};
use crate::sys::{self, Signal};

/// In no order, because to keep one is to move others, and what is written between two forks is copied for every child. (A
/// `HashMap` would make its keys here, and all the children would share them for every map of theirs.)
#[derive(Debug, Default)]
pub(super) struct Children(Vec<Process>);

impl Children {
    pub fn add(&mut self, child: Process) {
        self.0.push(child);
    }

    /// Nothing is done to one that has ended.
    pub fn send(&mut self, child: Process, signal: Signal) -> Result<()> {
        match self.find(child.pid) {
            Some(at) if self.0[at] == child => Ok(sys::send(child.pid, signal)?),
            // It has been reaped, and its pid may be another one's by now.
            _ => Ok(()),
        }
    }

    pub fn reap_one(&mut self, pid: u32) -> Result<Option<(Process, Exit)>> {
        let Some(at) = self.find(pid) else { return Ok(None) };
        Ok(sys::reap(pid)?.map(|status| (self.0.swap_remove(at), exit_of(status))))
    }

    pub fn reap_all(&mut self) -> Result<Vec<(Process, Exit)>> {
        let mut ended = Vec::new();
        while let Some(pid) = sys::peek_exited()? {
            if let Some(child) = self.reap_one(pid)? {
                ended.push(child);
            } else if sys::is_init() {
                sys::reap(pid)?;
            } else {
                self.sweep(&mut ended)?;
                break;
            }
        }
        Ok(ended)
    }

    /// A child of the program's own has ended, and waits to be reaped by the program. While it does, it may hide ours.
    fn sweep(&mut self, ended: &mut Vec<(Process, Exit)>) -> Result<()> {
        let pids: Vec<u32> = self.0.iter().map(|child| child.pid).collect();
        for pid in pids {
            ended.extend(self.reap_one(pid)?);
        }
        Ok(())
    }

    fn find(&self, pid: u32) -> Option<usize> {
        self.0.iter().rposition(|child| child.pid == pid)
    }
}

/// Whatever ended the supervision, nobody is left behind. (In the parent: a worker forgets this without dropping it.)
impl Drop for Children {
    fn drop(&mut self) {
        // One that has become another user's, and cannot be killed, is not waited for.
        self.0.retain(|child| sys::send(child.pid, Signal::Kill).is_ok());
        for child in &self.0 {
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
        let mut children = Children(vec![now]);
        children.send(Process { id: 0, ..now }, Signal::Kill).expect("nothing to be done");
        cat.stdin.as_mut().expect("a pipe").write_all(b"!").expect("a reader");
        let mut echo = [0];
        cat.stdout.as_mut().expect("a pipe").read_exact(&mut echo).expect("it still lives");
        children.send(now, Signal::Kill).expect("a signal");
        assert_eq!(cat.wait().expect("its status").signal(), Some(9));
        children.0.clear();
    }
}
