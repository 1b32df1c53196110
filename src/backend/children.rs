//! The processes that a backend has started and that are not reaped yet.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::{ChildExit, ExitCause};
use crate::error::Result;
use crate::exit::{Exit, Process};
use crate::sys::{self, ChildHandle, Signal};

/// Between two looks at each of them. One that took long because this process was stopped says nothing about the next.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Of one that somebody else has reaped.
const UNKNOWN: Exit = Exit::Unknown;

#[derive(Debug, Default)]
pub(super) struct Children {
    /// In no order, because to keep one is to move others, and what is written between two forks is copied for every child. (A
    /// `HashMap` would make its keys here, and all the children would share them for every map of theirs.)
    known: Vec<(Process, ChildHandle)>,
    /// Not before then is each of them looked at.
    not_before: Option<Instant>,
    /// They would have been.
    owes_look: bool,
}

impl Children {
    pub fn add(&mut self, id: usize, generation: u32, child: ChildHandle) -> u32 {
        let pid = child.pid();
        self.known.push((Process { id, generation, pid: Some(pid) }, child));
        pid
    }

    /// Nothing is done to one that has ended.
    pub fn send(&mut self, process: Process, signal: Signal) -> Result<()> {
        match self.known.iter().find(|(known, _)| *known == process) {
            Some((_, child)) => Ok(child.send(signal)?),
            // It has been reaped, and its pid may be another one's by now.
            None => Ok(()),
        }
    }

    pub fn reap_one(&mut self, pid: u32) -> Result<Option<ChildExit>> {
        let Some(at) = self.find(pid) else { return Ok(None) };
        let exit = match self.known[at].1.reap() {
            Ok(None) => return Ok(None),
            Ok(Some(status)) => exit_of(status),
            Err(error) if sys::is_echild(&error) => UNKNOWN,
            Err(error) => return Err(error.into()),
        };
        let process = self.known.swap_remove(at).0;
        Ok(Some(ChildExit { process, exit, cause: ExitCause::Exited, lease: None }))
    }

    /// Where that is somebody else's doing, and no matter of course, for a hundredth of the time at most.
    pub fn reap_missed(&mut self) -> Result<Vec<ChildExit>> {
        let begun = Instant::now();
        self.owes_look = cfg!(unix) && self.not_before.is_some_and(|at| begun < at);
        if self.owes_look {
            return Ok(Vec::new());
        }
        let has_ended = |(_, child): &(Process, ChildHandle)| child.was_reaped_elsewhere().then_some(child.pid());
        let pids: Vec<u32> = self.known.iter().filter_map(has_ended).collect();
        let now = Instant::now();
        self.not_before = Some(now + ((now - begun) * 100).min(LONGEST_PAUSE));
        let mut ended = Vec::new();
        for pid in pids {
            ended.extend(self.reap_one(pid)?);
        }
        Ok(ended)
    }

    pub fn reap_all(&mut self) -> Result<Vec<ChildExit>> {
        let mut ended = Vec::new();
        while let Some(pid) = sys::peek_exited()? {
            if let Some(child) = self.reap_one(pid)? {
                ended.push(child);
            } else if !sys::reap_as_init(pid)? {
                self.reap_each(&mut ended)?;
                return Ok(ended);
            }
        }
        // Whom somebody else has waited for is told of by nothing but the signal that was the reason to look.
        if cfg!(unix) {
            ended.extend(self.reap_missed()?);
        }
        Ok(ended)
    }

    pub fn next_look(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.owes_look)
    }

    /// A child of the program's own has ended, and waits to be reaped by the program. While it does, it may hide ours.
    fn reap_each(&mut self, ended: &mut Vec<ChildExit>) -> Result<()> {
        let pids: Vec<u32> = self.known.iter().map(|(_, child)| child.pid()).collect();
        for pid in pids {
            ended.extend(self.reap_one(pid)?);
        }
        Ok(())
    }

    fn find(&self, pid: u32) -> Option<usize> {
        self.known.iter().rposition(|(_, child)| child.pid() == pid)
    }
}

/// Whatever ended the supervision, nobody is left behind. (In the parent: a worker forgets this without dropping it.)
impl Drop for Children {
    fn drop(&mut self) {
        // One that has become another user's, and cannot be killed, is not waited for.
        self.known.retain(|(_, child)| child.send(Signal::Kill).is_ok());
        for (_, child) in &self.known {
            let _ = child.reap_blocking();
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    status.code().map(Exit::Code).or(sys::signal_of(status).map(Exit::Signal)).unwrap_or(UNKNOWN)
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_is_meant_for_a_process_that_was_reaped_does_not_reach_the_next_one_with_its_pid() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat(1)");
        let mut children = Children::default();
        children.add(1, 0, ChildHandle::new(cat.id()));
        let now = Process { id: 1, generation: 0, pid: Some(cat.id()) };
        children.send(Process { id: 0, ..now }, Signal::Kill).expect("nothing to be done");
        cat.stdin.as_mut().expect("a pipe").write_all(b"!").expect("a reader");
        let mut echo = [0];
        cat.stdout.as_mut().expect("a pipe").read_exact(&mut echo).expect("it still lives");
        children.send(now, Signal::Kill).expect("a signal");
        assert_eq!(cat.wait().expect("its status").signal(), Some(9));
        children.known.clear();
    }
}
