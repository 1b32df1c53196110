//! The registry of child processes.

use std::process::{self, ExitStatus};
use std::time::{Duration, Instant};
use std::{mem, thread};

use crate::backend::{ChildExit, ExitCause};
use crate::error::Result;
use crate::exit::{Exit, Process};
use crate::sys::{self, ChildHandle, Signal};

/// The longest time that the end of the supervision waits for the exit of processes that it has killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The child processes that have not been reaped yet, whichever launcher started them.
///
/// A pid belongs to a process until the process is reaped. After that, the system may give the pid to another process.
/// So that no signal reaches such a process, only this registry sends signals to the children and reaps them.
///
/// The list is unordered, so that a removal moves only one entry and writes to few pages. Every page that the parent
/// writes between two forks is copied for each worker (copy-on-write).
///
/// The list is not a `HashMap`, because a `HashMap` would draw its random keys in the parent. Every worker would then
/// inherit these keys for its own maps.
#[derive(Debug)]
pub(super) struct Children {
    entries: Vec<(Process, ChildHandle)>,
    /// The processes that SIGKILL has not ended. The end of the supervision does not wait for them.
    abandoned: Vec<Process>,
    /// The pid of the parent of these children. A fork has a copy of this value and must not kill them.
    parent: u32,
}

impl Default for Children {
    fn default() -> Children {
        Children { entries: Vec::new(), abandoned: Vec::new(), parent: process::id() }
    }
}

impl Children {
    pub fn add(&mut self, process: Process, child: ChildHandle) {
        self.entries.push((process, child));
    }

    /// Sends a signal to a process. Does nothing if the process has been reaped, because its pid may now belong to
    /// another process.
    pub fn send(&self, process: Process, signal: Signal) -> Result<()> {
        match self.entries.iter().find(|(known, _)| *known == process) {
            Some((_, child)) => Ok(child.send(signal)?),
            None => Ok(()),
        }
    }

    /// Returns whether the kernel is writing a core dump of this process.
    pub fn is_dumping_core(&self, process: Process) -> bool {
        self.entries.iter().any(|(known, child)| *known == process && child.is_dumping_core())
    }

    /// Records that the end of the supervision does not wait for this process. Returns false if it has been reaped.
    pub fn abandon(&mut self, process: Process) -> bool {
        let is_known = self.entries.iter().any(|(known, _)| *known == process);
        if is_known {
            self.abandoned.push(process);
        }
        is_known
    }

    /// Reaps the child with this pid. Returns `None` if the child still runs, or if no worker has this pid.
    pub fn reap(&mut self, pid: u32) -> Result<Option<ChildExit>> {
        let Some(at) = self.entries.iter().rposition(|(_, child)| child.pid() == pid) else { return Ok(None) };
        let exit = match self.entries[at].1.reap() {
            Ok(None) => return Ok(None),
            Ok(Some(status)) => exit_of(status),
            Err(error) if sys::is_echild(&error) => Exit::Unknown,
            Err(error) => return Err(error.into()),
        };
        let process = self.entries.swap_remove(at).0;
        self.abandoned.retain(|abandoned| *abandoned != process);
        Ok(Some(ChildExit { process, exit, cause: ExitCause::Exited, lease: None }))
    }

    /// Returns the children that have not been reaped.
    pub fn processes(&self) -> impl Iterator<Item = Process> {
        self.entries.iter().map(|(process, _)| *process)
    }

    /// Returns whether a worker has this pid.
    pub fn contains(&self, pid: u32) -> bool {
        self.entries.iter().any(|(_, child)| child.pid() == pid)
    }

    /// Tries to reap every child, one by one.
    pub fn reap_each(&mut self, exits: &mut impl Extend<ChildExit>) -> Result<()> {
        let pids: Vec<u32> = self.entries.iter().map(|(_, child)| child.pid()).collect();
        for pid in pids {
            exits.extend(self.reap(pid)?);
        }
        Ok(())
    }

    /// Returns the pids of the children that have exited without a notification. On Unix, these are the children that
    /// other code in this process has reaped. On Windows, these are the children whose exits the notifying thread has
    /// not reported yet.
    pub fn missed(&self) -> Vec<u32> {
        let children = self.entries.iter().map(|(_, child)| child);
        children.filter(|child| child.was_reaped_elsewhere()).map(ChildHandle::pid).collect()
    }
}

/// Kills and reaps all children, whatever ended the supervision. Does nothing in a fork of the parent: a worker forgets
/// the registry, but code of the program, such as `on_event`, may also fork, and unwind there.
///
/// The loop does not wait in waitpid(2), because a process that is blocked inside the kernel does not exit after
/// SIGKILL.
impl Drop for Children {
    fn drop(&mut self) {
        if self.parent != process::id() {
            return;
        }
        // The kernel may refuse to send the signal to a child that has changed its user. The parent does not wait for
        // such a child.
        self.entries.retain(|(_, child)| child.send(Signal::Kill).is_ok());
        let abandoned = mem::take(&mut self.abandoned);
        self.entries.retain(|(process, child)| !abandoned.contains(process) && matches!(child.reap(), Ok(None)));
        let give_up_at = Instant::now() + KILL_TIMEOUT;
        let mut pause = Duration::from_micros(100);
        while !self.entries.is_empty() && Instant::now() < give_up_at {
            thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(50));
            self.entries.retain(|(_, child)| matches!(child.reap(), Ok(None)));
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    status.code().map(Exit::Code).or(sys::signal_of(status).map(Exit::Signal)).unwrap_or(Exit::Unknown)
}

#[cfg(all(test, unix))]
pub(super) mod tests {
    use std::io::{Read, Write};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    pub fn spawn(program: &str) -> Child {
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program of POSIX")
    }

    pub fn register(children: &mut Children, id: usize, child: &Child) -> Process {
        let process = Process { pool: "", id, generation: 0, pid: Some(child.id()) };
        children.add(process, ChildHandle::new(child.id()));
        process
    }

    #[test]
    fn signals_for_a_reaped_process_are_not_sent() {
        let mut cat = spawn("cat");
        let mut children = Children::default();
        let now = register(&mut children, 1, &cat);
        children.send(Process { id: 0, ..now }, Signal::Kill).expect("no error");
        cat.stdin.as_mut().expect("a pipe").write_all(b"!").expect("a reader");
        let mut echo = [0];
        cat.stdout.as_mut().expect("a pipe").read_exact(&mut echo).expect("a living process");
        children.send(now, Signal::Kill).expect("a signal");
        assert_eq!(cat.wait().expect("its status").signal(), Some(9));
        children.entries.clear();
    }

    #[test]
    fn a_dropped_registry_kills_and_reaps_its_children() {
        let mut cat = spawn("cat");
        let mut children = Children::default();
        register(&mut children, 0, &cat);
        assert!(children.reap(cat.id()).expect("waitpid").is_none(), "it still runs");
        drop(children);
        let error = cat.wait().expect_err("it has been reaped");
        assert_eq!(error.raw_os_error(), Some(libc::ECHILD));
    }

    #[test]
    fn a_dropped_registry_does_not_wait_for_abandoned_children() {
        let mut cat = spawn("cat");
        let mut children = Children::default();
        let process = register(&mut children, 0, &cat);
        assert!(children.abandon(process));
        assert!(!children.abandon(Process { id: 1, ..process }), "no such child");
        drop(children);
        assert_eq!(cat.wait().expect("a child that was not reaped").signal(), Some(9));
    }

    #[test]
    fn a_child_reaped_elsewhere_has_an_unknown_exit() {
        let mut cat = spawn("cat");
        let mut children = Children::default();
        let process = register(&mut children, 0, &cat);
        assert!(children.missed().is_empty());
        drop(cat.stdin.take());
        cat.wait().expect("its status");
        assert_eq!(children.missed(), [cat.id()]);
        let exit = children.reap(cat.id()).expect("no error").expect("an exit");
        assert_eq!(exit.process, process);
        assert_eq!(exit.exit, Exit::Unknown);
        assert!(children.missed().is_empty() && children.entries.is_empty());
    }
}
