//! Collects the state in the old program.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::state::{DoorbellState, PidFileState, PoolState, State};
use crate::exit::Process;
use crate::listener::{Passed, SocketLine};
use crate::pid_file::PassedPidFile;
use crate::policy::ServiceSnapshot;
use crate::scoreboard::{Scoreboard, Waker};
use crate::sys::{self, SignalHandover, WakeReceiver};

/// The state and its descriptors.
pub(in crate::supervisor) struct Outgoing<'a> {
    state: State,
    fds: Vec<BorrowedFd<'a>>,
}

/// The text of a state and the descriptors that it refers to.
pub(in crate::supervisor) struct Text<'a> {
    pub text: String,
    pub fds: Vec<BorrowedFd<'a>>,
}

impl<'a> Outgoing<'a> {
    /// Begins with the snapshot that the policy has just made.
    pub fn new(format: u32, snapshot: ServiceSnapshot, uptime: Duration, signals: SignalHandover<'a>) -> Outgoing<'a> {
        let pools = snapshot.pools.into_iter();
        let SignalHandover { text, fds } = signals;
        let state = State {
            format,
            taken: sys::monotonic_nanos(),
            uptime,
            signals: text,
            signal_fds: fds.len(),
            doorbell: None,
            pid_file: None,
            roll_requested: snapshot.roll_requested,
            upgrade_requested: snapshot.upgrade_requested,
            pools: pools.map(|snapshot| PoolState { snapshot, board: None, files: Vec::new() }).collect(),
            others: Vec::new(),
            sockets: Vec::new(),
        };
        Outgoing { state, fds }
    }

    fn add(&mut self, fd: BorrowedFd<'a>) -> usize {
        self.fds.push(fd);
        self.fds.len() - 1
    }

    pub fn add_doorbell(&mut self, receiver: &'a WakeReceiver, waker: &'a Waker) {
        let receiver = self.add(receiver.as_fd());
        let waker = self.add(waker.as_fd());
        self.state.doorbell = Some(DoorbellState { receiver, waker });
    }

    pub fn add_pid_file(&mut self, PassedPidFile { path, fd }: PassedPidFile<'a>) {
        let position = self.add(fd);
        self.state.pid_file = Some(PidFileState { path: path.to_owned(), position });
    }

    /// Adds those of the children that the snapshot does not contain: checkers that were killed, and processes that the
    /// parent has abandoned. The new program has to reap them too.
    pub fn add_others(&mut self, children: impl Iterator<Item = Process>) {
        let workers: Vec<Process> = self.state.pools.iter().flat_map(PoolState::processes).collect();
        self.state.others = children.filter(|child| !workers.contains(child)).collect();
    }

    /// Adds the shared memory of a pool, which the snapshot contains.
    pub fn add_board(&mut self, pool: &str, board: &'a Scoreboard) {
        let files = board.files().map(|file| self.add(file)).collect();
        if let Some(state) = self.state.pools.iter_mut().find(|state| state.snapshot.name == pool) {
            state.board = Some(board.state());
            state.files = files;
        }
    }

    pub fn add_socket(&mut self, socket: Passed<'a>) {
        let position = self.add(socket.fd);
        self.state.sockets.push(SocketLine { spec: socket.spec, position });
    }

    pub fn finish(self) -> Text<'a> {
        Text { text: self.state.to_string(), fds: self.fds }
    }
}
